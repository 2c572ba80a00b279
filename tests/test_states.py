import copy
from functools import partial

import pytest
import torch
from peft import LoraConfig

import peft_surgical as ps
from peft_surgical.errors import AdapterError
from peft_surgical.measuring.relearning import relearned_state
from peft_surgical.measuring.rounding import rounded_state
from peft_surgical.measuring.states import adapter_state, adapters_act, restored

from .adapters import logits, prompted
from .localizing import capital, word_tokenizer
from .test_states_act import peft_states, two_ia3, two_lora, two_surgical
from .tiny import tiny_ids, tiny_model

NAMES = ["default", "second"]


@pytest.mark.parametrize("adapters", [[], ["default"], ["second"]])
def test_what_trained_before_adapters_were_switched_off_trains_again_after_a_state(adapters):
    model = two_surgical()
    before = peft_states(model)
    with model.disable_adapter():
        inside = peft_states(model)
        with adapter_state(model, adapters)():
            pass
        assert peft_states(model) == inside
    assert peft_states(model) == before


@pytest.mark.parametrize("times", [1, 3])
def test_an_interrupt_while_weights_are_put_back_is_raised_when_they_are(times):
    class Weight(torch.Tensor):
        left = times

        def copy_(self, *args):
            if Weight.left:
                Weight.left -= 1
                raise KeyboardInterrupt
            return super().copy_(*args)

    weights = [torch.ones(2), torch.ones(2).as_subclass(Weight), torch.ones(2)]
    with pytest.raises(KeyboardInterrupt), restored(weights):
        weights[2].mul_(2)
    assert [weight.tolist() for weight in weights] == [[1.0, 1.0]] * 3


def test_a_state_leaves_no_attributes_on_the_model():
    model = two_surgical()
    before = [set(vars(module)) for module in model.modules()]
    with adapter_state(model, ["second"])():
        pass
    assert [set(vars(module)) for module in model.modules()] == before


@pytest.mark.parametrize("make", [two_surgical, two_lora, two_ia3])
@pytest.mark.parametrize("merged", [["default"], ["second"], NAMES])
def test_what_is_merged_is_taken_out_for_a_state_and_merged_again(make, merged):
    model = make()
    kinds = [adapter_state]
    # Weights that PEFT unmerges are off by a rounding, which few bits may make a step of theirs.
    if make is two_surgical:
        kinds.append(partial(rounded_state, bits=4))
    states = [kind(model, adapters) for adapters in ([], ["default"], NAMES) for kind in kinds]
    expected = []
    for state in states:
        with state():
            expected.append(logits(model))
    model.merge_adapter(merged)
    before, weights, said = peft_states(model), copy.deepcopy(model.state_dict()), logits(model)
    for state, wanted in zip(states, expected, strict=True):
        with state():
            torch.testing.assert_close(logits(model), wanted, rtol=1e-4, atol=1e-4)
        assert peft_states(model) == before
        assert all(torch.equal(weights[key], value) for key, value in model.state_dict().items())
        assert torch.equal(logits(model), said)
        layers = [module for module in model.modules() if getattr(module, "merged_adapters", None)]
        assert {name for layer in layers for name in layer.merged_adapters} == set(merged)


def test_a_model_of_which_no_adapter_is_active_is_its_base():
    model = two_surgical()
    assert adapters_act(model)
    model.base_model.set_adapter([])
    assert not adapters_act(model)


@pytest.mark.parametrize("whole", [None, ["lm_head"]])
@pytest.mark.parametrize("kind", ["before each row", "in attention"])
def test_learned_tokens_and_what_is_saved_whole_with_them_are_states(kind, whole):
    model = prompted(kind, modules_to_save=whole)
    model.requires_grad_(False)
    said, base = logits(model), logits(tiny_model("llama"))

    def held():
        wrappers = [module for module in model.modules() if hasattr(module, "modules_to_save")]
        trainable = [parameter.requires_grad for parameter in model.parameters()]
        return trainable, model.active_adapter, [(w.active_adapters, w.disable_adapters) for w in wrappers]

    before = held()
    assert adapters_act(model)
    with adapter_state(model, [])():
        assert torch.equal(logits(model), base)
        assert not adapters_act(model)
    assert held() == before
    with adapter_state(model, ["tokens"])():
        assert torch.equal(logits(model), said)
    assert held() == before
    assert torch.equal(logits(model), said)


@pytest.mark.parametrize("whole", [None, ["lm_head"]])
def test_what_acts_inside_of_a_peft_model_is_not_its_base(whole):
    inside = prompted("in attention", modules_to_save=whole).get_base_model()
    assert adapters_act(inside)
    with pytest.raises(AdapterError, match=r"take them off by peft_surgical\.unload\(model\)"):
        adapter_state(inside, [])
    with adapter_state(ps.unload(inside), [])():
        assert torch.equal(logits(inside), logits(tiny_model("llama")))


def test_adapters_that_transformers_put_on_a_model_are_no_states_of_it():
    model = tiny_model("llama")
    model.add_adapter(LoraConfig(target_modules=["v_proj"]), "mine")
    for names in ([], ["mine"]):
        with pytest.raises(AdapterError, match="put there by transformers or by an earlier edit; take them off by"):
            adapter_state(model, names)


def test_states_for_evaluate_are_public():
    model = two_surgical()
    before = logits(model)
    with ps.adapter_state(model, [])():
        assert torch.equal(logits(model), logits(tiny_model("llama")))
    assert torch.equal(logits(model), before)


def merged_ia3(scale, dtype=torch.float32):
    model = two_ia3().to(dtype)
    for name, parameter in model.named_parameters():
        if "ia3_l.second" in name:
            parameter.data.flatten()[3] = scale
    model.merge_adapter(["second"])
    return model


@pytest.mark.parametrize(
    ("scale", "dtype"), [(0.0, torch.float32), (-1e-8, torch.float32), (1e-6, torch.bfloat16), (5e-4, torch.float16)]
)
def test_a_merged_scale_that_no_division_takes_out_is_refused(scale, dtype):
    model = merged_ia3(scale, dtype)
    weights = copy.deepcopy(model.state_dict())
    with pytest.raises(AdapterError, match=r"'second' is merged .* load the model as it was and the adapter unmerged"):
        adapter_state(model, [])().__enter__()
    assert all(torch.equal(weights[key], value) for key, value in model.state_dict().items())


def test_what_division_takes_out_is_told_to_be_inexact():
    model = merged_ia3(1e-4)
    with pytest.warns(UserWarning, match="Unmerge result can be inaccurate"), adapter_state(model, [])():
        torch.testing.assert_close(logits(model), logits(tiny_model("llama")), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("kind", ["merged before", "rounded", "relearned"])
def test_weights_train_after_a_state_in_inference_mode(kind):
    """PEFT's (IA)^3 gives weights new tensors as it merges and unmerges, and those of inference mode never train."""
    model = two_ia3()
    if kind == "merged before":
        model.merge_adapter(["default"])
    states = {
        "merged before": adapter_state(model, []),
        "rounded": rounded_state(model, ["default"], 8),
        "relearned": relearned_state(model, word_tokenizer(), capital(), ["default"], 1),
    }
    weights = copy.deepcopy(model.state_dict())
    with torch.inference_mode():
        for state in (states[kind], states[kind]):
            with state():
                logits(model)
    assert all(torch.equal(weights[key], value) for key, value in model.state_dict().items())
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    model(tiny_ids(), labels=tiny_ids()).loss.backward()


def test_weights_that_were_made_in_inference_mode_are_rounded_there():
    with torch.inference_mode():
        model = copy.deepcopy(two_ia3())
        before = logits(model)
        assert model.get_input_embeddings().weight.is_inference()
        with rounded_state(model, ["default"], 4)():
            assert not torch.equal(logits(model), before)
        assert torch.equal(logits(model), before)


def test_a_model_that_was_made_in_inference_mode_is_rounded_outside_of_it():
    with torch.inference_mode():
        model = copy.deepcopy(tiny_model("llama"))
    before = logits(model)
    with rounded_state(model, [], 4)():
        assert not torch.equal(logits(model), before)
    assert torch.equal(logits(model), before)
