import pytest
import torch
from torch import nn

from peft_surgical.errors import ModelError
from peft_surgical.passes import _parts, in_passes
from peft_surgical.training import Recipe

from .adapters import deltas
from .test_training import ALL, Task


@pytest.mark.parametrize(
    ("lengths", "tokens", "parts"),
    [
        ([3, 5, 2, 2], None, [[0, 1, 2, 3]]),
        ([3, 5, 2, 2], 100, [[0, 1, 2, 3]]),
        # Padding counts: two rows of 3 and 5 are 10 tokens, and so are two of 2 behind a 5.
        ([3, 5, 2, 2], 10, [[0, 1], [2, 3]]),
        ([3, 5, 2, 2], 9, [[0], [1], [2, 3]]),
        ([3, 5, 2, 2], 15, [[0, 1, 2], [3]]),
        # A row that is too long by itself still runs.
        ([3, 5, 2, 2], 1, [[0], [1], [2], [3]]),
        ([], 4, []),
    ],
)
def test_parts_by_hand(lengths, tokens, parts):
    assert _parts(range(len(lengths)), lengths, tokens) == parts


class Device:
    """Holds so many rows and no more, and adds each row's number to a gradient before it notices."""

    def __init__(self, holds):
        self.holds, self.parameter, self.tried = holds, nn.Parameter(torch.zeros(1)), []

    def run(self, part):
        self.tried.append(list(part))
        for row in part[: self.holds]:
            (self.parameter * row).backward()
        if len(part) > self.holds:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return tuple(part)


def test_a_pass_without_memory_is_taken_back_and_run_in_halves():
    device = Device(holds=2)
    device.parameter.grad = torch.tensor([100.0])
    found = in_passes(range(5), [1] * 5, [device.parameter], device.run)
    assert found == [(0, 1), (2,), (3, 4)]
    assert device.tried == [[0, 1, 2, 3, 4], [0, 1], [2, 3, 4], [2], [3, 4]]
    assert device.parameter.grad == 100 + 0 + 1 + 2 + 3 + 4


def test_what_cannot_be_halved_or_is_no_lack_of_memory_is_raised():
    device = Device(holds=0)
    with pytest.raises(torch.OutOfMemoryError):
        in_passes(range(2), [1, 1], [device.parameter], device.run)
    assert device.tried == [[0, 1], [0]]

    def broken(_):
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        in_passes(range(2), [1, 1], [device.parameter], broken)


def trained(family, **changes):
    task = Task(family)
    record = task.train(Recipe(steps=4, pass_tokens=changes.pop("pass_tokens", None), **ALL, **changes))
    return record, torch.cat([delta.detach() for delta in deltas(task.model).values()]), task


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_training_in_parts_is_training_at_once(family, monkeypatch):
    record, scales, _ = trained(family)
    widths = []
    plain = Task(family).runner.__class__.logits

    def noted(self, indices, spans):
        widths.append(len(indices) * max(len(self.rows[i]) - len(self.prefix) for i in indices))
        return plain(self, indices, spans)

    monkeypatch.setattr("peft_surgical.suffix.SuffixRunner.logits", noted)
    parts, cut, task = trained(family, pass_tokens=10)
    assert max(widths) <= 10
    assert len(widths) > 4 * 2
    # Sums in another order: float32 rounding of gradients, in steps of the same length.
    assert (cut - scales).norm() < 1e-4 * scales.norm()
    assert (parts.loss, parts.worst, parts.kl) == pytest.approx((record.loss, record.worst, record.kl), rel=1e-4)
    assert scales.abs().max() > 1e-2
    assert task.parameters[0].grad is not None


def test_training_goes_on_with_the_memory_there_is(monkeypatch):
    _, scales, _ = trained("llama")
    plain = Task().runner.__class__.logits

    def small(self, indices, spans):
        if len(indices) > 2 and torch.is_grad_enabled():
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return plain(self, indices, spans)

    monkeypatch.setattr("peft_surgical.suffix.SuffixRunner.logits", small)
    _, cut, _ = trained("llama")
    assert (cut - scales).norm() < 1e-4 * scales.norm()


def test_a_limit_that_holds_nothing():
    with pytest.raises(ModelError, match="pass_tokens must be 1 or more, or None for no limit; got 0"):
        Recipe(pass_tokens=0)
