"""Modules that adapters had before, and that another one now has in another way."""

from collections import OrderedDict

import pytest
import torch
from peft import get_peft_model
from torch import nn

from peft_surgical.errors import SelectionError
from peft_surgical.tuner import SurgicalIA3Config, SurgicalIA3Layer
from tests.adapters import logits, perturb
from tests.tiny import tiny_model

FIRST, SECOND = "model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj"


def config_of(module, side="input", whole=None):
    spec = {module: {"side": side, "ranges": [[0, 4]]}}
    return SurgicalIA3Config(selections=spec, modules_to_save=whole)


WAYS = {
    "other side": (config_of(FIRST), config_of(FIRST, "output")),
    "saved whole": (config_of(FIRST), config_of(SECOND, whole=["layers.0.mlp.down_proj"])),
    "no more saved whole": (config_of(SECOND, whole=["layers.0.mlp.down_proj"]), config_of(FIRST)),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("wrapped", [True, False])
def test_a_deleted_adapter_leaves_its_modules_to_others(way, wrapped):
    before, after = WAYS[way]
    base = logits(tiny_model("llama"))
    model = tiny_model("llama")
    if wrapped:
        model = get_peft_model(model, before, "old").eval()
        model.add_adapter("kept", config_of("lm_head", "output"))
        perturb(model, "kept")
        model.set_adapter("kept")
        base = logits(model)
    else:
        model.add_adapter(before, "old")
    model.delete_adapter("old")
    assert torch.equal(logits(model), base)
    model.add_adapter(*("new", after)[:: 1 if wrapped else -1])
    perturb(model, "new")
    model.set_adapter("new")
    layer = next(m for m in model.modules() if isinstance(m, SurgicalIA3Layer) and "new" in m.coordinates)
    assert layer.side == after.coordinates[next(iter(after.selections))].side
    edited = logits(model)
    assert not torch.equal(edited, base)
    if wrapped:
        model.set_adapter("kept")
        assert torch.equal(logits(model), base)
        model.set_adapter("new")
        torch.testing.assert_close(logits(model.merge_and_unload()), edited, atol=1e-5, rtol=1e-4)


def test_a_refusal_leaves_what_a_deleted_adapter_left():
    model = get_peft_model(tiny_model("llama"), config_of(FIRST), "old")
    model.add_adapter("kept", config_of(SECOND))
    model.set_adapter("kept")
    model.delete_adapter("old")
    modules = [(name, id(module)) for name, module in model.named_modules()]
    with pytest.raises(SelectionError, match="another adapter scales the input"):
        model.add_adapter("new", SurgicalIA3Config(selections=config_of(SECOND, "output").selections))
    assert [(name, id(module)) for name, module in model.named_modules()] == modules


def test_what_a_deleted_adapter_left_in_the_weights_is_not_taken_for_the_base():
    model = tiny_model("llama")
    model.add_adapter(config_of(FIRST), "old")
    perturb(model, "old")
    layer = model.get_submodule(FIRST)
    layer.merge()
    model.delete_adapter("old")
    with pytest.raises(SelectionError, match="another adapter scales the input"):
        model.add_adapter(config_of(FIRST, "output"), "new")
    assert model.get_submodule(FIRST) is layer
    assert layer.merged


def test_what_another_adapter_scales_is_not_saved_whole():
    model = get_peft_model(tiny_model("llama"), config_of(FIRST), "first")
    with pytest.raises(SelectionError, match=r"layers\.0\.mlp\.down_proj cannot be scaled and be in modules_to_save"):
        model.add_adapter("second", config_of(SECOND, whole=["layers.0.mlp"]))


def test_a_module_is_scaled_whose_name_only_begins_as_one_that_is_saved_whole():
    model = nn.Sequential(OrderedDict(up=nn.Linear(4, 4), upper=nn.Linear(4, 4)))
    spec = {"upper": {"side": "input", "ranges": [[0, 4]]}}
    adapted = get_peft_model(model, SurgicalIA3Config(selections=spec, modules_to_save=["up"]))
    assert isinstance(adapted.get_submodule("base_model.model.upper"), SurgicalIA3Layer)


@pytest.mark.parametrize("step", [1, -1])
def test_a_weight_is_laid_out_as_in_gpt2_if_that_of_one_module_is(step):
    names = ["transformer.h.0.mlp.c_proj", "lm_head"][::step]
    config = SurgicalIA3Config(selections={name: {"side": "input", "ranges": [[0, 4]]} for name in names})
    assert get_peft_model(tiny_model("gpt2"), config).peft_config["default"].fan_in_fan_out is True
