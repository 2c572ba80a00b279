"""Modules that adapters save whole, where adapters are merged that do not act."""

import pytest
import torch
from peft import get_peft_model

from peft_surgical.errors import AdapterError
from peft_surgical.tuner import SurgicalIA3Config
from tests.adapters import logits, perturb
from tests.tiny import tiny_model


def config_of(component, whole):
    saved = ["lm_head"] if whole else None
    return SurgicalIA3Config(components=[component], modules_to_save=saved, task_type="CAUSAL_LM")


@pytest.mark.parametrize("holders", ["a", "b", "ab"])
def test_unloading_merges_what_the_named_adapters_save_whole_and_not_what_acts(holders):
    model = get_peft_model(tiny_model("llama"), config_of("L1.mlp", "a" in holders), adapter_name="a")
    model.add_adapter("b", config_of("L0.mlp", "b" in holders))
    model.eval()
    for number, name in enumerate(holders):
        model.base_model.model.lm_head.modules_to_save[name].weight.data.mul_(1.5 + number)
    perturb(model, "a"), perturb(model, "b")
    found = {}
    for name in "ab":
        model.set_adapter(name)
        found[name] = logits(model)
    model.set_adapter("a")
    assert not torch.allclose(found["a"], found["b"])
    if holders == "ab":
        with pytest.raises(AdapterError, match="both save a Linear module whole"):
            model.merge_and_unload(adapter_names=["a", "b"])
        assert torch.equal(logits(model), found["a"])
    merged = model.merge_and_unload(adapter_names=["b"])
    torch.testing.assert_close(logits(merged), found["b"], rtol=1e-4, atol=1e-5)


def test_a_merged_adapter_that_cannot_be_deleted_keeps_what_it_saves_whole():
    model = get_peft_model(tiny_model("llama"), config_of("L1.mlp", whole=True), adapter_name="a").eval()
    perturb(model, "a")
    model.base_model.model.lm_head.modules_to_save["a"].weight.data.mul_(1.5)
    edited = logits(model)
    model.merge_adapter()
    with pytest.raises(ValueError, match="while they are merged"):
        model.delete_adapter("a")
    torch.testing.assert_close(logits(model), edited)
