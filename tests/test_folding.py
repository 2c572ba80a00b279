from dataclasses import replace

import pytest
import torch
from peft import AdaptionPromptConfig, get_peft_model

from peft_surgical.adapters.edits import Edit, ModuleScale
from peft_surgical.adapters.low_rank import LowRank
from peft_surgical.adapters.mergeable import read_mergeable
from peft_surgical.errors import AdapterError, ModelError
from peft_surgical.folding import check_rewritable, folded_apart, steps_of
from peft_surgical.tuner.coordinates import Coordinates

from .adapters import tiny_peft
from .tiny import tiny_model

NAME = "model.layers.1.mlp.down_proj"
KEY = f"{NAME}.weight"
SCALES = Edit({NAME: ModuleScale(Coordinates("input", ((0, 3),)), torch.tensor([2.0, 0.5, 3.0]), 48)}, base_model="b")
ADDED = LowRank({NAME: (torch.ones(1, 48), torch.full((32, 1), 0.25))}, name="added")


def folded(model, steps, dtype=None):
    made = folded_apart(model, steps, model.state_dict(), dtype)
    return {key: values for found in made for key, values in found.items()}


def new(model, *adapters, dtype=None):
    found = folded(model, steps_of(adapters), dtype)
    assert [*found] == [KEY]
    return found[KEY]


def test_steps_are_runs_of_a_kind():
    assert steps_of([SCALES]) == [SCALES]
    assert [type(step) for step in steps_of([SCALES, SCALES, ADDED, ADDED, SCALES])] == [Edit, LowRank, Edit]
    assert torch.equal(steps_of([SCALES, SCALES])[0].modules[NAME].scale, torch.tensor([4.0, 0.25, 9.0]))
    assert torch.equal(steps_of([ADDED, ADDED])[0].added(NAME), torch.full((32, 48), 0.5))
    with pytest.raises(AdapterError, match="nothing to multiply"):
        steps_of([])
    other = LowRank(ADDED.factors, base_model="c", name="other")
    with pytest.raises(AdapterError, match="made for different base models: the edit for b, other for c"):
        steps_of([SCALES, other])


def test_kinds_follow_one_another_in_their_order():
    """By hand: what is added before a scale is scaled by it, and what is added behind it is not."""
    model = tiny_model("llama")
    old, factor = model.get_parameter(KEY).detach(), SCALES.modules[NAME].dense(48)
    assert torch.equal(new(model, ADDED, SCALES)[0], (old + 0.25) * factor)
    assert torch.equal(new(model, SCALES, ADDED)[0], old * factor + 0.25)
    assert torch.equal(new(model, SCALES, ADDED, SCALES)[0], (old * factor + 0.25) * factor)
    assert torch.equal(model.get_parameter(KEY), tiny_model("llama").get_parameter(KEY))


def test_kinds_that_follow_one_another_are_rounded_once():
    model = tiny_model("llama", dtype=torch.bfloat16)
    old, factor = model.get_parameter(KEY).detach(), SCALES.modules[NAME].dense(48)
    exact = (old.float() + 0.25) * factor
    values, rounding = new(model, ADDED, SCALES)
    assert torch.equal(values, exact.bfloat16())
    assert rounding.touched == int((exact != old.float()).sum())
    assert rounding.unchanged == int(((exact != old.float()) & (exact.bfloat16() == old)).sum())
    assert torch.equal(new(model, ADDED, SCALES, dtype=torch.float32)[0], exact)
    wide = tiny_model("llama")
    exact = (wide.get_parameter(KEY).detach() + 0.25) * factor
    assert torch.equal(new(wide, ADDED, SCALES, dtype=torch.bfloat16)[0], exact.bfloat16())


def test_what_one_of_two_kinds_acts_on_is_as_if_that_were_alone():
    model, other = tiny_model("llama", dtype=torch.bfloat16), "model.layers.0.mlp.down_proj"
    beside = replace(ADDED, factors=ADDED.factors | {other: ADDED.factors[NAME]})
    both, alone = (folded(model, steps) for steps in ([SCALES, beside], [beside]))
    assert both.keys() == alone.keys() == {KEY, f"{other}.weight"}
    assert torch.equal(both[f"{other}.weight"][0], alone[f"{other}.weight"][0])
    assert both[f"{other}.weight"][1] == alone[f"{other}.weight"][1]
    assert torch.equal(both[KEY][0], new(model, SCALES, ADDED)[0])


def test_a_scale_taken_back_between_leaves_what_was_added():
    model = tiny_model("llama").double()
    back = Edit({NAME: ModuleScale(Coordinates("input", ((0, 3),)), torch.tensor([0.5, 2.0, 1.0]), 48)})
    values, _ = new(model, SCALES, ADDED, back)
    assert values.dtype == torch.float64
    assert torch.equal(values[:, :2], model.get_parameter(KEY)[:, :2] + torch.tensor([0.125, 0.5]))


def test_a_tied_weight_is_refused_whatever_came_before():
    model = tiny_model("qwen2")
    width = model.lm_head.out_features
    tied = LowRank({"lm_head": (torch.ones(1, 32), torch.ones(width, 1))})
    scales = Edit({"lm_head": ModuleScale(Coordinates("input", ((0, 1),)), torch.ones(1), 32)})
    for adapters in ([SCALES, tied], [ADDED, scales], [scales, tied]):
        with pytest.raises(AdapterError, match=r"lm_head\.weight is tied to another weight"):
            folded(model, steps_of(adapters))


def test_what_is_added_to_a_quantized_weight_is_refused():
    model = tiny_model("llama")
    module = model.get_submodule(NAME)
    module.weight = torch.nn.Parameter(module.weight.detach().to(torch.int8), requires_grad=False)
    with pytest.raises(AdapterError, match=r"a quantized weight \(int8\) cannot take an edit"):
        folded(model, steps_of([ADDED]))


def test_who_cannot_be_folded_into_is_told_why():
    with pytest.raises(ModelError, match="what is done needs the unedited base model, got a PeftModel"):
        check_rewritable(tiny_peft(), "what is done", "do this")
    quantized = tiny_model("llama")
    quantized.is_quantized = True
    with pytest.raises(ModelError, match="the model is quantized; load it in bfloat16 or float32 to do this"):
        check_rewritable(quantized, "what is done", "do this")
    with torch.device("meta"):
        offloaded = tiny_model("llama").to("meta")
    with pytest.raises(ModelError, match="offloaded; load it whole to do this"):
        check_rewritable(offloaded, "what is done", "do this")
    with pytest.raises(ModelError, match="offloaded; load it whole to merge"):
        check_rewritable(offloaded)
    in_part = tiny_model("llama")
    in_part.register_buffer("one", torch.ones(1, device="meta"))
    with pytest.raises(ModelError, match="some weights of the model are offloaded"):
        check_rewritable(in_part)
    prompted = get_peft_model(tiny_model("llama"), AdaptionPromptConfig(adapter_len=2, adapter_layers=1))
    with pytest.raises(ModelError, match="the model has adapters on it; merge needs the unedited base"):
        check_rewritable(prompted.base_model.model)


def test_what_is_in_memory_is_taken_as_it_is():
    assert read_mergeable(SCALES) is SCALES
    assert read_mergeable(ADDED) is ADDED
    with pytest.raises(AdapterError, match="there is no adapter folder nowhere"):
        read_mergeable("nowhere")


def test_what_is_rounded_is_counted_alike_in_one_step_and_in_two():
    """What float32 cannot tell from the weight should not change it, and what is added to no column does not."""
    model = tiny_model("llama", dtype=torch.bfloat16)
    none = Edit({NAME: ModuleScale(Coordinates("input", ((0, 1),)), torch.ones(1), 48)})
    tiny = LowRank({NAME: (torch.ones(1, 48), torch.full((32, 1), 1e-12))})
    small = LowRank({NAME: (torch.ones(1, 48), torch.full((32, 1), 1e-5))})
    for added in (tiny, small, ADDED):
        assert new(model, added)[1] == new(model, added, none)[1]
    old = model.get_parameter(KEY).detach().float()
    assert new(model, tiny)[1].touched == int((old + 1e-12 != old).sum()) < old.numel()
