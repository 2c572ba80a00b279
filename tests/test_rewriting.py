import warnings

import pytest
import torch
from peft import IA3Config, LoraConfig, PromptTuningConfig, get_peft_model

from peft_surgical.errors import AdapterError
from peft_surgical.measuring.rewriting import check_weights, linear_layers, merged_weights
from peft_surgical.tuner import SurgicalIA3Config

from .adapters import logits, tiny_peft
from .conftest import fingerprint
from .tiny import tiny_model


@pytest.mark.parametrize(("family", "layers"), [("llama", 7), ("gpt2", 4), ("phi3", 4)])
def test_linear_layers_are_the_same_with_adapters_and_without(family, layers):
    bare, adapted = dict(linear_layers(tiny_model(family))), dict(linear_layers(tiny_peft(family)))
    assert len(bare) == 3 * layers
    assert bare.keys() == adapted.keys()
    for name, layer in adapted.items():
        assert torch.equal(layer.weight, bare[name].weight)
    # Nor are an adapter's own.
    assert (
        bare.keys()
        == dict(linear_layers(get_peft_model(tiny_model(family), LoraConfig(target_modules="all-linear")))).keys()
    )


def test_an_adapter_on_the_head_is_taken_back_to_the_bit():
    """The head is not among the layers, but a merge writes to it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = LoraConfig(target_modules=["v_proj", "lm_head"], init_lora_weights=False)
        model = get_peft_model(tiny_model("llama"), config).eval()
    before, edited = fingerprint(model), logits(model)
    with merged_weights(model, ["default"]) as layers:
        assert model.get_base_model().lm_head.get_base_layer() not in layers
        assert fingerprint(model) != before
        torch.testing.assert_close(logits(model), edited)
        with torch.no_grad():
            for layer in layers:
                layer.weight.zero_()
        assert not torch.allclose(logits(model), edited)
    assert fingerprint(model) == before
    assert torch.equal(logits(model), edited)


def test_adapters_that_are_no_weights_are_refused():
    model = get_peft_model(tiny_model("llama"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    with pytest.raises(AdapterError, match="'default' is not one of weights, so it cannot be merged"):
        check_weights(model, ["default"], "rounded")
    check_weights(model, [], "rounded")


@pytest.mark.parametrize("kind", ["surgical", "ia3"])
def test_an_adapter_on_tied_weights_is_refused_before_anything_is_measured(kind):
    base = tiny_model("qwen2")
    assert base.lm_head.weight is base.model.embed_tokens.weight
    if kind == "surgical":
        selections = {"lm_head": {"side": "input", "ranges": [[0, 4]]}}
        model = get_peft_model(base, SurgicalIA3Config(selections=selections, task_type="CAUSAL_LM"))
    else:
        model = get_peft_model(base, IA3Config(target_modules=["lm_head"], feedforward_modules=["lm_head"]))
    with pytest.raises(AdapterError, match="lm_head shares its weight with the embeddings"):
        check_weights(model, ["default"], "rounded")
    check_weights(model, [], "rounded")


def test_an_adapter_of_another_method_on_a_tied_bias_is_refused_since_its_merge_may_change_that_too():
    base = tiny_model("qwen2")
    first, second = (layer.self_attn.v_proj for layer in base.model.layers[:2])
    second.bias = first.bias
    model = get_peft_model(base, IA3Config(target_modules=["layers.0.self_attn.v_proj"], feedforward_modules=[]))
    model.base_model.model.model.layers[0].self_attn.v_proj.ia3_l["default"].data.fill_(2.0)
    with torch.no_grad():
        first.bias.fill_(1.0)
    with pytest.raises(AdapterError, match=r"layers\.0\.self_attn\.v_proj shares its bias with"):
        check_weights(model, ["default"], "rounded")
    model.merge_adapter()
    assert torch.equal(second.bias, torch.full_like(second.bias, 2.0))


def test_an_adapter_beside_one_on_tied_weights_is_merged():
    model = get_peft_model(tiny_model("qwen2"), IA3Config(target_modules=["lm_head"], feedforward_modules=["lm_head"]))
    model.add_adapter("other", IA3Config(target_modules=["v_proj"], feedforward_modules=[]))
    check_weights(model, ["other"], "rounded")


def test_a_merge_that_is_refused_leaves_no_word_of_unmerging():
    selections = {"lm_head": {"side": "input", "ranges": [[0, 4]]}}
    model = get_peft_model(tiny_model("qwen2"), SurgicalIA3Config(selections=selections, task_type="CAUSAL_LM"))
    before = fingerprint(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(AdapterError, match="shares its weight"), merged_weights(model, ["default"]):
            pass
    assert fingerprint(model) == before
