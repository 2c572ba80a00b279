"""That what is said to act on a model does, and that the model is then as it was."""

import pytest
import torch
from peft import IA3Config, LoraConfig, PromptTuningConfig, get_peft_model

from peft_surgical.errors import AdapterError
from peft_surgical.measuring.states import adapter_state

from .adapters import add, logits, perturb, tiny_peft
from .tiny import tiny_model


def trainability(model):
    return {name: parameter.requires_grad for name, parameter in model.named_parameters()}


def peft_states(model):
    return (
        trainability(model),
        list(model.base_model.active_adapters),
        model.active_adapter,
        [
            (layer._disable_adapters, layer.active_adapters)
            for layer in model.modules()
            if hasattr(layer, "_disable_adapters")
        ],
    )


def two_lora():
    model = get_peft_model(tiny_model("llama"), LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    model.add_adapter("second", LoraConfig(target_modules=["v_proj"], init_lora_weights=False))
    return model.eval()


def two_ia3():
    config = {"target_modules": ["k_proj"], "feedforward_modules": []}
    model = get_peft_model(tiny_model("llama"), IA3Config(**config))
    model.add_adapter("second", IA3Config(**config))
    for name, parameter in model.named_parameters():
        if "ia3_l" in name:
            parameter.data.mul_(3.0 if "second" in name else 0.5)
    return model.eval()


def two_surgical():
    model = tiny_peft("llama")
    add(model, "second")
    perturb(model, "second", seed=4)
    return model


@pytest.mark.parametrize("make", [two_surgical, two_lora, two_ia3])
@pytest.mark.parametrize("outside", ["plain", "disabled", "both"])
def test_states_act_and_are_restored(make, outside):
    model, base = make(), logits(tiny_model("llama"))
    names = ["default", "second"]
    frozen = next(p for n, p in model.named_parameters() if p.requires_grad)
    frozen.requires_grad_(False)
    if outside == "disabled":
        model.base_model.disable_adapter_layers()
    elif outside == "both":
        model.base_model.set_adapter(names, inference_mode=True)
    before, said = peft_states(model), logits(model)
    results = {}
    for adapters in ([], ["default"], ["second"], names):
        with adapter_state(model, adapters)():
            results[tuple(adapters)] = logits(model)
        assert peft_states(model) == before
        with pytest.raises(RuntimeError, match="inside"), adapter_state(model, adapters)():
            raise RuntimeError("inside")
        assert peft_states(model) == before
    assert torch.equal(logits(model), said)
    assert torch.equal(results[()], base)
    different = list(results.values())
    assert all(not torch.equal(a, b) for i, a in enumerate(different) for b in different[:i])


@pytest.mark.parametrize("disabled", [False, True])
def test_whole_modules_of_an_adapter_act_with_it(disabled):
    model = tiny_peft("llama", modules_to_save=["lm_head"])
    model.get_output_embeddings().modules_to_save["default"].weight.data.mul_(1.5)
    edited, base = logits(model), logits(tiny_model("llama"))
    if disabled:
        model.base_model.disable_adapter_layers()
    before, said = peft_states(model), logits(model)
    for adapters, expected in (([], base), (["default"], edited)):
        with adapter_state(model, adapters)():
            assert torch.equal(logits(model), expected)
        assert peft_states(model) == before
        assert torch.equal(logits(model), said)


def test_a_learned_prompt_is_a_state_too():
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = get_peft_model(tiny_model("llama"), config).eval()
    with adapter_state(model, [])():
        assert torch.equal(logits(model), logits(tiny_model("llama")))
    with adapter_state(model, ["default"])():
        assert logits(model).shape[1] == logits(tiny_model("llama")).shape[1] + 3
    model.add_adapter("second", config)
    with pytest.raises(AdapterError, match="act one at a time; asked for default, second"):
        with adapter_state(model, ["default", "second"])():
            pass


def test_adapters_that_cannot_act_at_once():
    model = tiny_peft("llama", modules_to_save=["lm_head"])
    model.add_adapter("second", model.peft_config["default"])
    before, said = peft_states(model), logits(model)
    words = r"the adapters default, second cannot act at once: Only one adapter can be set at a time for \w+\.$"
    with pytest.raises(AdapterError, match=words), adapter_state(model, ["default", "second"])():
        pass
    assert peft_states(model) == before
    assert torch.equal(logits(model), said)


def test_adapters_that_are_not_there():
    with pytest.raises(AdapterError, match="there is no adapter named 'learn'; the model has default"):
        adapter_state(tiny_peft("llama"), ["default", "learn"])
    with pytest.raises(AdapterError, match="no adapter named 'learn'; the model has none"):
        adapter_state(tiny_model("llama"), ["learn"])
