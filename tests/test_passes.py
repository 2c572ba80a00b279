import itertools
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import distributed, nn
from torch.testing._internal.distributed.fake_pg import FakeStore

from peft_surgical.errors import ModelError
from peft_surgical.running.passes import in_passes, parts, shares
from peft_surgical.running.replicas import Replica
from peft_surgical.running.sharing import shard
from peft_surgical.running.workers import Worker
from peft_surgical.staging.recipe import Recipe

from .adapters import deltas
from .test_training import ALL, Task
from .threads import threads
from .tiny import tiny_model


@pytest.mark.parametrize(
    ("lengths", "tokens", "made"),
    [
        ([3, 5, 2, 2], None, [[0, 1, 2, 3]]),
        ([3, 5, 2, 2], 100, [[1, 0, 2, 3]]),
        # Padding counts: behind a 5 there is room for as many as are 5 long, and 3, 2 and 2 are 9 tokens together.
        ([3, 5, 2, 2], 19, [[1, 0, 2], [3]]),
        ([3, 5, 2, 2], 10, [[1, 0], [2, 3]]),
        ([3, 5, 2, 2], 9, [[1], [0, 2, 3]]),
        ([3, 5, 2, 2], 6, [[1], [0, 2], [3]]),
        # A row that is too long by itself still runs.
        ([3, 5, 2, 2], 1, [[1], [0], [2], [3]]),
        ([], 4, []),
        ([], None, []),
    ],
)
def test_parts_by_hand(lengths, tokens, made):
    assert parts(range(len(lengths)), lengths, tokens) == made


@pytest.mark.parametrize("tokens", [5, 12, 30, 84])
def test_no_other_parts_are_fewer(tokens):
    lengths = [7, 3, 3, 9, 12, 4, 8]
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    least = len(order)
    for cuts in itertools.product([False, True], repeat=len(order) - 1):
        made = [[order[0]]]
        for row, cut in zip(order[1:], cuts, strict=True):
            made = [*made, [row]] if cut else [*made[:-1], [*made[-1], row]]
        if all(len(part) == 1 or max(lengths[row] for row in part) * len(part) <= tokens for part in made):
            least = min(least, len(made))
    found = parts(range(len(lengths)), lengths, tokens)
    assert len(found) == least
    assert sorted(itertools.chain(*found)) == list(range(len(lengths)))
    assert all(len(part) == 1 or max(lengths[row] for row in part) * len(part) <= tokens for part in found)


@pytest.mark.parametrize(
    ("lengths", "tokens", "workers", "made"),
    [
        # Of 12 tokens, padding included, 5 and 2 + 3 are the nearest to half.
        ([5, 2, 3], None, 2, [[[0]], [[2, 1]]]),
        ([4, 4, 4, 4], None, 2, [[[0, 1]], [[2, 3]]]),
        # 8 tokens of both together are 4 of each, and three passes are one more for the second.
        ([2, 2, 2, 2, 2], 8, 2, [[[0, 1], [4]], [[2, 3]]]),
        ([2, 2, 2, 2, 2, 2, 2], 8, 2, [[[0, 1], [4, 5]], [[2, 3], [6]]]),
        ([2, 2, 2, 2], 100, 3, [[[0, 1]], [[2, 3]], []]),
        ([3], None, 2, [[[0]], []]),
        ([3], 1, 2, [[[0]], []]),
        ([], None, 2, [[], []]),
        ([3, 5, 2], 100, 1, [[[1, 0, 2]]]),
    ],
)
def test_shares_by_hand(lengths, tokens, workers, made):
    assert shares(range(len(lengths)), lengths, tokens, workers) == made


@pytest.mark.parametrize("workers", [2, 3, 4])
@pytest.mark.parametrize("tokens", [None, 12, 30, 84])
def test_shares_are_even_and_no_larger_than_allowed(workers, tokens):
    lengths = [7, 3, 3, 9, 12, 4, 8, 5, 5, 6, 2]
    dealt = shares(range(len(lengths)), lengths, tokens, workers)
    passes = list(itertools.chain(*dealt))
    assert sorted(itertools.chain(*passes)) == list(range(len(lengths)))
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1
    sizes = [len(part) * max(lengths[row] for row in part) for part in passes]
    if tokens is None:
        order = sorted(lengths, reverse=True)
        cuts = itertools.combinations(range(1, len(order)), workers - 1)
        edges = ([0, *inner, len(order)] for inner in cuts)
        least = min(max((b - a) * order[a] for a, b in itertools.pairwise(own)) for own in edges)
        assert (len(passes), max(sizes)) == (workers, least)
    else:
        assert all(len(part) == 1 or size <= tokens // workers for part, size in zip(passes, sizes, strict=True))


class Device:
    """Holds so many rows and no more, and adds each row's number to two gradients before it notices: a parameter's and
    that of what all rows share."""

    def __init__(self, holds):
        self.holds, self.tried, self.model = holds, [], nn.Module()
        self.parameter, self.shared = (nn.Parameter(torch.zeros(1)) for _ in range(2))

    @property
    def workers(self):
        begun = SimpleNamespace(leaves=[self.shared])
        runner = SimpleNamespace(prefix_once=lambda: nullcontext(begun), model=self.model)
        return [Worker(runner, [self.parameter], Replica(None))]

    def run(self, _, part):
        self.tried.append(list(part))
        for row in part[: self.holds]:
            ((self.parameter + self.shared) * row).backward()
        if len(part) > self.holds:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return tuple(part)

    def step(self, count, run=None):
        """A step of so many rows, each of one token."""
        return in_passes(range(count), [1] * count, run or self.run, self.workers, tokens=None)


def test_a_pass_without_memory_is_taken_back_and_run_in_halves():
    device = Device(holds=2)
    device.parameter.grad = torch.tensor([100.0])
    assert device.step(5) == [(0, 1), (2,), (3, 4)]
    assert device.tried == [[0, 1, 2, 3, 4], [0, 1], [2, 3, 4], [2], [3, 4]]
    assert device.parameter.grad == 100 + 0 + 1 + 2 + 3 + 4
    assert device.shared.grad == 0 + 1 + 2 + 3 + 4


def test_what_cannot_be_halved_or_is_no_lack_of_memory_is_raised():
    device = Device(holds=0)
    with pytest.raises(torch.OutOfMemoryError):
        device.step(2)
    assert device.tried == [[0, 1], [0]]

    def broken(*_):
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        device.step(2, broken)


@pytest.mark.parametrize("size", [1, 2])
def test_a_pass_that_processes_run_together_is_not_cut_by_one_of_them(size):
    device = Device(holds=2)
    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=size)
    try:
        device.model = tiny_model("llama")
        shard(device.model)
        if size == 1:
            assert device.step(3) == [(0,), (1, 2)]
        else:
            with pytest.raises(ModelError, match=r"a pass of 3 rows, .* --low-memory \(pass_tokens in a recipe"):
                device.step(3)
            assert device.tried == [[0, 1, 2]]
    finally:
        distributed.destroy_process_group()


def test_workers_share_rows_and_who_has_none_is_not_asked():
    first, second, third = (Device(holds=9) for _ in range(3))
    devices = {id(device.parameter): device for device in (first, second, third)}

    def run(worker, part):
        return devices[id(worker.parameters[0])].run(worker, part)

    workers = [*first.workers, *second.workers, *third.workers]
    found = in_passes([10, 11, 12], [3, 1, 1], run, workers[:2], tokens=None)
    assert found == [(10,), (11, 12)]
    assert (first.tried, second.tried) == ([[10]], [[11, 12]])
    # Gradients are gathered in the first one's.
    assert first.parameter.grad == 10 + 11 + 12
    assert second.parameter.grad is None
    # Nor does it run what all rows share.
    workers[2].runner.prefix_once = None
    found = in_passes([5, 6], [1, 1], run, workers, tokens=None)
    assert (found, third.tried) == ([(5,), (6,)], [])


def trained(family, **changes):
    task = Task(family)
    record = task.train(Recipe(steps=4, pass_tokens=changes.pop("pass_tokens", None), **ALL, **changes))
    return record, torch.cat([delta.detach() for delta in deltas(task.model).values()]), task


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_training_in_parts_is_training_at_once(family, monkeypatch):
    record, scales, _ = trained(family)
    widths = []
    plain = Task(family).runner.__class__.read

    def noted(self, indices, spans):
        widths.append(len(indices) * max(len(self.rows[i]) - len(self.prefix) for i in indices))
        return plain(self, indices, spans)

    monkeypatch.setattr("peft_surgical.running.suffix.SuffixRunner.read", noted)
    small, cut, task = trained(family, pass_tokens=10)
    assert max(widths) <= 10
    assert len(widths) > 4 * 2
    # Sums in another order: float32 rounding of gradients, in steps of the same length.
    assert (cut - scales).norm() < 1e-4 * scales.norm()
    assert (small.loss, small.worst, small.kl) == pytest.approx((record.loss, record.worst, record.kl), rel=1e-4)
    assert scales.abs().max() > 1e-2
    assert task.parameters[0].grad is None


def test_a_processor_gets_passes_that_are_no_larger_than_it_gains_by(monkeypatch):
    monkeypatch.setattr("peft_surgical.running.workers._OWN_IN_FLOAT32", 5)
    with threads(1):
        assert torch.equal(trained("llama")[1], trained("llama", pass_tokens=10)[1])


def test_training_goes_on_with_the_memory_there_is(monkeypatch):
    _, scales, _ = trained("llama")
    plain = Task().runner.__class__.read

    def small(self, indices, spans):
        if len(indices) > 2 and torch.is_grad_enabled():
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return plain(self, indices, spans)

    monkeypatch.setattr("peft_surgical.running.suffix.SuffixRunner.read", small)
    _, cut, _ = trained("llama")
    assert (cut - scales).norm() < 1e-4 * scales.norm()


def test_a_limit_that_holds_nothing():
    with pytest.raises(ModelError, match=r"pass_tokens must be a whole number of 1 or more, .* got 0"):
        Recipe(pass_tokens=0)


@pytest.mark.parametrize("tokens", [None, 20])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_training_side_by_side_is_training_alone(family, tokens, monkeypatch):
    monkeypatch.setattr("peft_surgical.running.workers._LEAST", 10)
    with threads(1):
        record, scales, _ = trained(family, pass_tokens=tokens)
    runners, plain = set(), Task(family).runner.__class__.read

    def noted(self, indices, spans):
        runners.add(id(self.model))
        return plain(self, indices, spans)

    monkeypatch.setattr("peft_surgical.running.suffix.SuffixRunner.read", noted)
    with threads(2):
        beside, found, task = trained(family, pass_tokens=tokens)
        assert len(runners) == 2
        assert torch.equal(trained(family, pass_tokens=tokens)[1], found)
    # As in parts: sums in another order.
    assert (found - scales).norm() < 1e-4 * scales.norm()
    assert (beside.loss, beside.worst, beside.kl) == pytest.approx((record.loss, record.worst, record.kl), rel=1e-4)
    assert all(parameter.grad is None for parameter in task.parameters)
