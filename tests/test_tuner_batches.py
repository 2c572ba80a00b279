"""Batches in which every row has an adapter of its own."""

import pytest
import torch

from peft_surgical.errors import AdapterError
from tests.adapters import add, logits, perturb, tiny_peft
from tests.tiny import tiny_ids, tiny_model


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_mixed_batch_scales_each_row_by_its_own_adapter(family):
    model = tiny_peft(family)
    add(model, "other")
    names = ["default", "__base__", "other", "default"]
    ids = tiny_ids(batch=4)
    with torch.no_grad():
        mixed = model(ids, adapter_names=names).logits
    assert torch.allclose(mixed[1], logits(tiny_model(family), ids)[1], atol=1e-5)
    for row, name in enumerate(names):
        if name != "__base__":
            model.set_adapter(name)
            torch.testing.assert_close(logits(model, ids)[row], mixed[row], atol=1e-5, rtol=1e-5)
            assert not torch.allclose(mixed[row], logits(tiny_model(family), ids)[row], atol=1e-3)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"num_return_sequences": 2, "num_beams": 2}])
def test_mixed_batch_generation(options):
    model = tiny_peft()
    perturb(model, spread=0.9)
    ids = tiny_ids(batch=2)
    options = {"max_new_tokens": 6, "do_sample": False, **options}
    mixed = model.generate(input_ids=ids, adapter_names=["__base__", "default"], **options)
    edited = model.generate(input_ids=ids, **options)
    with model.disable_adapter():
        base = model.generate(input_ids=ids, **options)
    half = len(mixed) // 2
    assert not torch.equal(base[:half], edited[:half])
    assert torch.equal(mixed[:half], base[:half])
    assert torch.equal(mixed[half:], edited[half:])


def test_mixed_batch_refusals():
    model = tiny_peft()
    with pytest.raises(AdapterError, match="2 names for a batch of 3 rows"):
        logits(model, tiny_ids(batch=3), adapter_names=["default", "__base__"])
    with pytest.raises(AdapterError, match="no adapter named 'x'"):
        logits(model, adapter_names=["x", "default"])
    model.train()
    with pytest.raises(AdapterError, match="eval mode only"):
        logits(model, adapter_names=["default", "default"])
    model.eval()
    model.merge_adapter()
    with pytest.raises(AdapterError, match="not merged"):
        logits(model, adapter_names=["default", "default"])
