"""Relearning of models with adapters of each kind, and with one on top of another."""

import copy

import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model

from peft_surgical.measuring.relearning import relearned_state
from peft_surgical.tuner import SurgicalIA3Config

from .adapters import COMPONENTS, logits, tiny_peft
from .conftest import fingerprint
from .localizing import capital, word_tokenizer
from .tiny import tiny_model

KINDS = {
    "surgical": None,
    "surgical and whole modules": SurgicalIA3Config(
        components=list(COMPONENTS), init_weights=False, modules_to_save=["lm_head"]
    ),
    "lora": LoraConfig(target_modules=["up_proj", "q_proj"], init_lora_weights=False),
    "lora on the head": LoraConfig(target_modules=["v_proj", "lm_head"], init_lora_weights=False),
    "whole modules": LoraConfig(target_modules=["v_proj"], init_lora_weights=False, modules_to_save=["lm_head"]),
    "ia3": IA3Config(target_modules=["up_proj"], feedforward_modules=["up_proj"], init_ia3_weights=False),
}


def with_adapter(kind):
    if kind == "surgical":
        return tiny_peft("llama")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = get_peft_model(tiny_model("llama"), copy.deepcopy(KINDS[kind])).eval()
        for name, parameter in model.named_parameters():
            if "modules_to_save" in name:
                parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return model


def relearn(model, adapters):
    return relearned_state(model, word_tokenizer(), capital(), adapters, 3, learning_rate=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_whoever_relearns_has_the_merged_weights_and_no_more(kind):
    """A model with adapters relearns as its merged checkpoint does, to within the rounding of a merge."""
    model = with_adapter(kind)
    before = fingerprint(model)
    with relearn(model, ["default"])():
        found = logits(model)
    assert fingerprint(model) == before
    exact = logits(model)
    merged = copy.deepcopy(model).merge_and_unload()
    whole = fingerprint(merged)
    with relearn(merged, [])():
        expected = logits(merged)
    assert fingerprint(merged) == whole
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)
    assert (found - exact).abs().max() > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_the_base_below_adapters_relearns_as_it_would_without_them(kind):
    bare, model = tiny_model("llama"), with_adapter(kind)
    assert all(parameter.requires_grad for parameter in bare.parameters())
    before = fingerprint(model)
    with relearn(bare, [])():
        expected = logits(bare)
    with relearn(model, [])():
        assert torch.equal(logits(model), expected)
    assert fingerprint(model) == before
    assert fingerprint(bare) == fingerprint(tiny_model("llama"))
    assert all(parameter.requires_grad for parameter in bare.parameters())


def surgical_on(model):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return get_peft_model(model, SurgicalIA3Config(components=["L1.mlp"], init_weights=False)).eval()


@pytest.mark.parametrize("inner", ["lora", "ia3"])
def test_what_a_surgical_adapter_stands_on_is_folded_with_it(inner):
    """Both adapters have PEFT's own name, by which to merge one is to merge the other."""
    model = surgical_on(with_adapter(inner).base_model.model)
    before = fingerprint(model)
    with relearn(model, ["default"])():
        found = logits(model)
    assert fingerprint(model) == before
    merged = surgical_on(with_adapter(inner).merge_and_unload()).merge_and_unload()
    with relearn(merged, [])():
        torch.testing.assert_close(found, logits(merged), atol=1e-4, rtol=1e-3)
