import pytest
import torch

from peft_surgical.errors import ArchitectureError
from peft_surgical.staging.acting import scaling_at
from peft_surgical.tuner.layer import layers_with

from .adapters import logits
from .test_by_subject import taught
from .tiny import tiny_ids


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_scales_act_on_marked_tokens_only(family):
    stage = taught(family)
    model, layers = stage.model.get_base_model(), layers_with("learn", stage.model)
    ids = tiny_ids(2, 6)
    with stage.model.disable_adapter():
        base = logits(stage.model, ids)
    everywhere = logits(stage.model, ids)

    def with_marks(where):
        with torch.no_grad(), scaling_at(model, layers, "learn", where):
            return model(input_ids=ids).logits

    assert torch.equal(with_marks(torch.zeros(2, 6, 1)), base)
    torch.testing.assert_close(with_marks(torch.ones(2, 6, 1)), everywhere)
    marks = torch.zeros(2, 6, 1)
    marks[0, 3] = 1
    found = with_marks(marks)
    torch.testing.assert_close(found[1], base[1])
    torch.testing.assert_close(found[0, :3], base[0, :3])
    assert not torch.allclose(found[0, 3:], base[0, 3:], atol=1e-6)
    # A mask of one row would broadcast.
    for shape in ((1, 4, 1), (1, 6, 1)):
        with pytest.raises(ArchitectureError, match=r"one got \[(2, 6|12)\]"):
            with_marks(torch.ones(shape))
    assert torch.equal(logits(stage.model, ids), everywhere)


def test_scales_act_on_marked_tokens_of_a_model_in_half_precision():
    stage = taught("llama")
    model, layers = stage.model.get_base_model().to(torch.bfloat16), layers_with("learn", stage.model)
    ids = tiny_ids(2, 6)
    with torch.no_grad(), scaling_at(model, layers, "learn", torch.zeros(2, 6, 1)):
        nowhere = model(input_ids=ids).logits
    with stage.model.disable_adapter():
        assert torch.equal(nowhere, logits(stage.model, ids))
