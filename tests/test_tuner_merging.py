"""Adapters folded into the base weights and taken out again, and adapters multiplied into new ones."""

import copy
import warnings

import pytest
import torch
from peft import (
    get_peft_model,
)

from peft_surgical.errors import AdapterError
from peft_surgical.tuner import SurgicalIA3Config, activate
from tests.adapters import add, logits, perturb, tiny_peft, trainable
from tests.tiny import tiny_model

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def test_deleting_an_idle_adapter_leaves_a_merged_one_merged():
    model = tiny_peft()
    add(model, "other")
    model.merge_adapter()
    merged = logits(model)
    model.delete_adapter("other")
    assert model.get_model_status().merged_adapters == ["default"]
    assert torch.equal(logits(model), merged)


@pytest.mark.parametrize("dtype", DTYPES)
def test_merge_unmerge_is_bit_exact(dtype):
    model = tiny_peft(dtype=dtype)
    add(model, "other")
    activate(model, ["default", "other"])
    layer = model.base_model.layers()[0]
    layer.surgical_ia3_delta["default"].data[0] = -1.0
    before, edited = copy.deepcopy(model.state_dict()), logits(model)
    model.merge_adapter()
    assert model.get_model_status().merged_adapters == ["default", "other"]
    assert not all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    torch.testing.assert_close(logits(model), edited, atol=0.2, rtol=0.1)
    with pytest.raises(ValueError, match="while they are merged"):
        model.delete_adapter("other")
    model.unmerge_adapter()
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    assert torch.equal(logits(model), edited)


def test_switching_off_a_merged_model_gives_the_base():
    model = tiny_peft(dtype=torch.bfloat16)
    base, edited = logits(tiny_model("llama", dtype=torch.bfloat16)), logits(model)
    model.merge_adapter()
    with model.disable_adapter():
        assert torch.equal(logits(model), base)
    assert torch.equal(logits(model), edited)


def test_unload_gives_the_base_back():
    model = tiny_peft()
    add(model, "other")
    base = model.unload()
    assert torch.equal(logits(base), logits(tiny_model("llama")))
    assert not any("surgical" in name for name, _ in base.named_modules())


def test_a_merge_that_rounding_loses_warns_and_float32_keeps_it():
    model = tiny_peft(dtype=torch.bfloat16)
    for layer in model.base_model.layers():
        layer.surgical_ia3_delta["default"].data[:] = 0.001
    with pytest.warns(UserWarning, match=r"100\.0% of the weights .* bfloat16; merge in float32"):
        model.merge_adapter()
    model.unmerge_adapter()
    with pytest.warns(UserWarning, match="loses part of the edit"):
        model.merge_and_unload()
    model = tiny_peft()
    for layer in model.base_model.layers():
        layer.surgical_ia3_delta["default"].data[:] = 0.001
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.merge_adapter()


def test_safe_merge_refuses_what_is_not_finite():
    model = tiny_peft()
    model.base_model.layers()[1].surgical_ia3_delta["default"].data[0] = float("inf")
    with pytest.raises(AdapterError, match="NaNs detected in the merged weights"):
        model.merge_and_unload(safe_merge=True)


def test_a_tied_head_is_scaled_but_not_merged():
    config = SurgicalIA3Config(selections={"lm_head": {"side": "input", "ranges": [[0, 4]]}})
    with pytest.warns(UserWarning, match="tied"):
        model = get_peft_model(tiny_model("qwen2"), config)
    perturb(model)
    assert not torch.equal(logits(model), logits(tiny_model("qwen2")))
    with pytest.raises(AdapterError, match="shares its weight with the embeddings"):
        model.merge_adapter()


def test_add_weighted_adapter_is_the_weighted_product():
    model = tiny_peft()
    add(model, "other")
    for name in ("default", "other"):
        perturb(model, name, spread=0.25)
    activate(model, ["default", "other"], trainable=["default"])
    both = logits(model)
    model.add_weighted_adapter(["default", "other"], [1.0, 1.0], "product")
    assert trainable(model) == {"default"}
    model.set_adapter("product")
    assert torch.equal(logits(model), both)
    model.add_weighted_adapter(["default", "default"], [0.5, 0.5], "same")
    model.set_adapter("same")
    first = logits(model)
    model.set_adapter("default")
    torch.testing.assert_close(logits(model), first)


def test_weights_of_one_half_keep_two_identities_an_identity():
    """PEFT's sum would make 0.5 * 1 + 0.5 * (missing = 0) of it."""
    model = tiny_peft(perturbed=False)
    model.add_adapter("other", SurgicalIA3Config(components=["L0.mlp"]))
    model.add_weighted_adapter(["default", "other"], [0.5, 0.5], "mean")
    model.set_adapter("mean")
    assert torch.equal(logits(model), logits(tiny_model("llama")))


@pytest.mark.parametrize(
    ("adapters", "weights", "name", "message"),
    [
        (["default"], [1.0], "default", "already"),
        (["nobody"], [1.0], "new", "no adapter named 'nobody'"),
        (["default"], [1.0, 2.0], "new", "1 adapters and 2 weights"),
        ([], [], "new", "0 adapters"),
    ],
)
def test_bad_weighted_products_are_refused(adapters, weights, name, message):
    with pytest.raises(AdapterError, match=message):
        tiny_peft().add_weighted_adapter(adapters, weights, name)
