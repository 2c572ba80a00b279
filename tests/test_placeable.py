import pytest
from peft import LoraConfig
from torch import nn

from peft_surgical.architectures import check_causal
from peft_surgical.errors import AdapterError, ModelError, SelectionError
from peft_surgical.localizing.bridge import check_localizable
from peft_surgical.merging import merge
from peft_surgical.staging.placeable import check_at_hand, check_bare, check_below_head, check_free, check_whole
from peft_surgical.tuner import unload

from .adapters import add, prompted, saved, tiny_peft
from .offloading import offloaded
from .tiny import tiny_model


def test_a_model_whose_adapters_stand_on_it_is_not_bare_and_alone_not_whole():
    model = tiny_model("llama")
    check_bare(model, "this")
    check_whole(model)
    adapted = tiny_peft()
    check_whole(adapted)
    for given in (adapted, adapted.get_base_model()):
        with pytest.raises(AdapterError, match="this takes a bare model, and this one has adapters"):
            check_bare(given, "this")
    with pytest.raises(AdapterError, match="has adapters on it, put there by transformers or"):
        check_whole(adapted.get_base_model())
    check_whole(adapted.unload())
    model.add_adapter(LoraConfig(target_modules=["down_proj"]))
    with pytest.raises(AdapterError, match="put there by transformers or by a PEFT model"):
        check_whole(model)


@pytest.mark.parametrize("kind", ["before each row", "in attention"])
def test_a_model_with_learned_tokens_or_what_is_saved_with_them_is_neither(kind, tmp_path):
    inside = prompted(kind, modules_to_save=["lm_head"] if kind == "before each row" else None).get_base_model()
    with pytest.raises(AdapterError, match="this takes a bare model, and this one has adapters"):
        check_bare(inside, "this")
    with pytest.raises(AdapterError, match="has adapters on it, put there by transformers or"):
        check_whole(inside)
    with pytest.raises(ModelError, match="carries a PEFT adapter"):
        check_localizable(inside)
    adapter = saved(tiny_peft(components=["L1.mlp"]), tmp_path / "adapter")
    with pytest.raises(ModelError, match=r"the model has (adapters|layers of a deleted adapter) on it"):
        merge(inside, adapter, tmp_path / "merged")
    check_bare(unload(inside), "this")


def test_what_is_merged_must_be_active_too():
    model = tiny_peft()
    add(model, "other", components=["L0.mlp"])
    model.merge_adapter(["default"])
    check_whole(model)
    model.unmerge_adapter()
    model.set_adapter("default")
    model.merge_adapter(["other"])
    with pytest.raises(AdapterError, match="'other' is merged into the model and not active; unmerge or activate it"):
        check_whole(model)


def test_a_name_that_is_taken_is_refused_with_what_can_be_done():
    model = tiny_peft(adapter="learn")
    check_free(model, ["unlearn"])
    with pytest.raises(AdapterError, match=r"an adapter named 'learn'; give what the model's unload\(\) returns"):
        check_free(model, ["learn"])
    check_free(model.unload(), ["learn"])
    model = tiny_peft(adapter="learn")
    add(model, "other")
    with pytest.raises(AdapterError, match="an adapter named 'learn'; delete it first"):
        check_free(model, ["learn"])
    model.delete_adapter("learn")
    check_free(model, ["learn"])
    check_causal(model)
    model.delete_adapter("other")
    with pytest.raises(AdapterError, match=r"has no adapter any more; give what its unload\(\) returns"):
        check_causal(model)


def test_the_module_that_is_elsewhere_is_named():
    model = offloaded(tiny_model("llama"), ["model.layers.1"])
    check_at_hand(model, ["model.layers.0.mlp.down_proj", "model.layers.9.mlp.down_proj"])
    with pytest.raises(ModelError, match=r"model\.layers\.1\.mlp\.up_proj has no weights at hand .* are offloaded"):
        check_at_hand(model, ["model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj"])
    check_at_hand(tiny_peft(components=["L1.mlp"]), ["model.layers.1.mlp.down_proj"])


def test_the_head_and_its_parts_are_refused_by_whatever_name():
    model = tiny_model("llama")
    model.lm_head = nn.Sequential(model.lm_head)
    model.head = model.lm_head
    check_below_head(model, ["model.layers.0.mlp.down_proj", "elsewhere"])
    for name in ("lm_head", "head", "lm_head.0"):
        with pytest.raises(SelectionError, match=f"leave {name} out of the selection"):
            check_below_head(model, ["model.layers.0.mlp.down_proj", name])
    model.get_output_embeddings = lambda: None
    check_below_head(model, ["lm_head"])


def test_a_module_of_which_a_part_is_offloaded_is_not_at_hand():
    model = tiny_model("gpt2")
    module = model.transformer.h[0].mlp.c_fc
    module.weight = nn.Parameter(module.weight.to("meta"))
    check_at_hand(model, ["transformer.h.1.mlp.c_fc", "elsewhere"])
    with pytest.raises(ModelError, match="no weights at hand to train an adapter on"):
        check_at_hand(model, ["transformer.h.0.mlp.c_fc"])
