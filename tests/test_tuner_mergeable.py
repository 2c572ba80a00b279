from unittest.mock import patch

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from peft_surgical.errors import AdapterError
from peft_surgical.merging import merge
from peft_surgical.tuner import SurgicalIA3Config, mergeable
from peft_surgical.tuner.mergeable import check_mergeable, places_of, shared_with
from tests.adapters import logits, perturb, saved, tiny_peft
from tests.tiny import tiny_model


def test_tensors_are_shared_by_the_memory_that_they_lie_in():
    weight, parts = torch.ones(3, 3), torch.ones(4, 3)
    views = {"a": weight, "b": weight.T, "c": torch.ones(3, 3), "d": weight[1:], "e": parts[:2], "f": parts[2:]}
    places = places_of(views)
    shared = {name: shared_with(places, name, view) for name, view in views.items()}
    # Parts of one storage, as of a checkpoint that is mapped into memory, are shared where they overlap.
    assert shared == {"a": "b", "b": "a", "c": None, "d": "a", "e": None, "f": None}


def test_columns_side_by_side_share_nothing():
    fused, heads = torch.ones(6, 8), torch.ones(4, 3, 2)
    views = {"a": fused[:, :4], "b": fused[:, 4:].t(), "c": fused[:, 3:5], "d": fused[2:4, :4]}
    views |= {"e": heads[:, 0], "f": heads[:, 1], "g": heads[1], "h": heads[:, 2].t()}
    places = places_of(views)
    shared = {name: shared_with(places, name, view) for name, view in views.items()}
    assert shared == {"a": "c", "b": "c", "c": "a", "d": "a", "e": "g", "f": "g", "g": "e", "h": "g"}


def test_a_weight_that_is_a_part_of_another_is_not_merged():
    base = tiny_model("llama")
    large, small = base.model.layers[0].mlp.gate_proj, base.model.layers[1].mlp.up_proj
    rows = torch.cat([large.weight.detach(), large.weight.detach()])
    half = len(rows) // 2
    large.weight, small.weight = nn.Parameter(rows[:half]), nn.Parameter(rows[half // 2 : -half // 2])
    spec = {"side": "input", "ranges": [[0, 4]]}
    model = get_peft_model(base, SurgicalIA3Config(selections={"model.layers.1.mlp.up_proj": spec}))
    perturb(model)
    before = rows.clone()
    with pytest.raises(AdapterError, match=r"shares its weight with model\.layers\.0\.mlp\.gate_proj\.weight"):
        model.merge_adapter()
    assert torch.equal(rows, before)


@pytest.mark.parametrize("work", [lambda model, out: check_mergeable(model.base_model.model), None])
def test_each_tensor_is_looked_at_once_however_many_layers_there_are(work, tmp_path):
    model = tiny_peft()
    folder = saved(model, tmp_path / "adapter")
    looked = []

    def seen(tensor):
        looked.append(tensor)
        return False

    base = tiny_model("llama")
    with patch.object(mergeable, "is_wrapper", seen):
        if work is None:
            merge(base, [folder], tmp_path / "out")
        else:
            work(model, tmp_path / "out")
    assert len(model.base_model.surgical_layers()) > 1
    assert 0 < len(looked) <= len(base.state_dict()) + len([*model.parameters()])


def test_a_layer_that_shares_its_weight_is_named():
    model = tiny_peft()
    layers = model.base_model.surgical_layers()
    last = layers[-1].get_base_layer()
    other = nn.Linear(last.in_features, last.out_features, bias=False)
    other.weight = last.weight
    model.base_model.model.beside = other
    with pytest.raises(AdapterError, match=r"shares its weight with beside\.weight"):
        check_mergeable(model.base_model.model)


HEAD, DOWN = ({"side": "output", "ranges": [[0, 4]]}, {"side": "input", "ranges": [[0, 4]]})


@pytest.mark.parametrize("kind", ["tied", "over another method"])
@pytest.mark.parametrize("deleted", [False, True])
@pytest.mark.parametrize("names", [None, ["second"]])
def test_only_what_is_merged_is_asked_whether_it_can_be(kind, deleted, names):
    base = tiny_model("llama")
    if kind == "tied":
        base.lm_head.weight = base.model.embed_tokens.weight
    else:
        base.add_adapter(LoraConfig(target_modules=["lm_head"], init_lora_weights=False), "l")
    model = get_peft_model(base, SurgicalIA3Config(selections={"lm_head": HEAD}), "first").eval()
    model.add_adapter("second", SurgicalIA3Config(selections={"model.layers.1.mlp.down_proj": DOWN}))
    perturb(model, "first"), perturb(model, "second")
    words = "shares its weight" if kind == "tied" else "another method"
    with pytest.raises(AdapterError, match=words):
        model.merge_adapter()
    model.set_adapter("second")
    if deleted:
        model.delete_adapter("first")
    else:
        with pytest.raises(AdapterError, match=words):
            model.merge_adapter(["second", "first"])
    layer, edited = model.base_model.model.model.layers[1].mlp.down_proj, logits(model)
    weight = layer.weight.clone()
    model.merge_adapter(names)
    assert layer.merged_adapters == ["second"]
    torch.testing.assert_close(logits(model), edited, atol=1e-5, rtol=1e-4)
    model.unmerge_adapter()
    assert torch.equal(layer.weight, weight)


@pytest.mark.parametrize("safe_merge", [False, True])
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_a_model_without_values_is_merged_and_unmerged_as_by_other_methods(low_cpu_mem_usage, safe_merge):
    base = tiny_model("llama").to("meta")
    config = SurgicalIA3Config(components=["L0.head.1", "L1.mlp"])
    model = get_peft_model(base, config, low_cpu_mem_usage=low_cpu_mem_usage)
    model.merge_adapter(safe_merge=safe_merge)
    assert all(layer.merged for layer in model.base_model.surgical_layers())
    model.unmerge_adapter()
    model.merge_and_unload(safe_merge=safe_merge)
    assert all(parameter.is_meta for parameter in base.parameters())


@pytest.mark.parametrize(
    "work",
    [
        lambda model: model.base_model.edit("default"),
        lambda model: model.add_weighted_adapter(["default"], [0.5], "new"),
        lambda model: model.merge_adapter(),
        lambda model: model.merge_and_unload(),
    ],
)
def test_scales_that_are_not_loaded_yet_are_not_computed_with(work):
    config = SurgicalIA3Config(components=["L0.head.1", "L1.mlp"])
    model = get_peft_model(tiny_model("llama"), config, low_cpu_mem_usage=True)
    with pytest.raises(AdapterError, match="the scales of 'default' are not loaded yet"):
        work(model)
    assert [*model.peft_config] == ["default"]


def test_only_scales_that_are_merged_have_to_be_loaded():
    model = tiny_peft()
    edited = logits(model)
    model.add_adapter("other", SurgicalIA3Config(components=["L0.head.1"]), low_cpu_mem_usage=True)
    with pytest.raises(AdapterError, match="the scales of 'other' are not loaded yet"):
        model.merge_adapter(["other"])
    model.set_adapter("other")
    model.merge_adapter(["default"])
    torch.testing.assert_close(logits(model), edited, atol=1e-5, rtol=1e-4)
