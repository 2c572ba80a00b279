from functools import partial

import torch

from peft_surgical.staging import measured as module
from peft_surgical.staging.curvature import Curvature, measure_curvature
from peft_surgical.staging.measured import Measured
from peft_surgical.staging.retain import TopDistribution
from peft_surgical.tuner.layer import layers_with

from .test_training import Task

ADAPTER = "default"


def measured(rows, **options):
    task = Task("llama")
    indices = [len(task.facts) + i for i in rows]
    chosen = [task.retains[i] for i in rows]
    layers, seen = layers_with(ADAPTER, task.model), []
    sample = partial(measure_curvature, task.runner, layers, ADAPTER)
    found = Measured.sampled(sample, indices, chosen, on_row=lambda: seen.append(1), **{"draws": 2, **options})
    assert len(seen) == len(rows)
    return found


def same(left, right):
    pairs = zip(left.curvature.gradients, right.curvature.gradients, strict=True)
    tops = list(zip(left.base, right.base, strict=True))
    return (
        all(torch.equal(*pair) for pair in pairs)
        and all(torch.equal(a.tokens, b.tokens) for a, b in tops)
        and all(torch.equal(a.log_probs, b.log_probs) for a, b in tops)
    )


def test_rows_that_are_selected_are_as_if_measured_alone():
    every = measured([0, 1, 2])
    for rows in ([2, 0], [1], [0, 1, 2]):
        chosen, alone = every.select(rows), measured(rows)
        assert len(chosen.base) == len(rows)
        for left, right in zip(chosen.curvature.gradients, alone.curvature.gradients, strict=True):
            assert right.abs().max() > 0
            torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-6)
        for one, other in zip(chosen.base, alone.base, strict=True):
            assert torch.equal(one.tokens, other.tokens)
            torch.testing.assert_close(one.log_probs, other.log_probs, rtol=1e-4, atol=1e-5)
    assert same(every.select([0, 1, 2]), every)


def test_no_row_of_some_or_none():
    every = measured([0, 1, 2])
    assert [len(own) for own in every.select([]).curvature.gradients] == [0] * len(every.curvature.gradients)
    none = measured([])
    assert same(none.select([]), none)


def test_processes_tell_each_other_on_the_processor_what_each_then_has_where_it_computes(monkeypatch):
    """One that is told of another's accelerator could not compute with it."""
    moved = []
    monkeypatch.setattr(TopDistribution, "to", lambda self, device: moved.append(str(device)) or self)

    def told(own):
        found = own()
        moved.append("told")
        return found

    monkeypatch.setattr(module, "merged", told)
    monkeypatch.setattr(module, "processes", lambda: 2)
    gradients = (torch.zeros(2, 3, device="meta"),)

    def sample(indices, rows, *, on_logits):
        for place in range(len(rows)):
            on_logits(place, torch.zeros(1, 4))
        return Curvature(gradients)

    Measured.sampled(sample, [0, 1], [None, None], on_row=lambda: None)
    assert moved == ["cpu", "cpu", "told", "meta", "meta"]


def test_nothing_is_lost_in_a_file():
    every = measured([0, 1, 2])
    assert same(Measured.of_tensors(every.to_tensors(), torch.device("cpu")), every)
