"""Which rows are in which step of training."""

import pytest
import torch

from peft_surgical.staging.recipe import Recipe

from .adapters import deltas
from .test_training import ALL, Task
from .threads import threads


@pytest.mark.parametrize(("near_batch", "close"), [(1, 1), (5, 2)])
def test_near_and_far_rows_have_batches_of_their_own(near_batch, close):
    task, asked = Task(), []
    read = task.runner.read
    task.runner.read = lambda indices, spans: asked.append(list(indices)) or read(indices, spans)
    with threads(1):
        task.train(Recipe(steps=2, near_batch=near_batch, far_batch=2), near=2)
    for step in asked:
        retains = [i for i in step if i >= 5]
        # No row is in a step twice.
        assert len({i for i in retains if i < 7}) == sum(i < 7 for i in retains) == close
        assert sum(i >= 7 for i in retains) == 2


@pytest.mark.parametrize(("fact_batch", "far_batch"), [(5, 6), (9, 9), (2, 3)])
def test_steps_visit_all_rows(fact_batch, far_batch):
    task, asked = Task(), []
    read = task.runner.read
    task.runner.read = lambda indices, spans: asked.append(list(indices)) or read(indices, spans)
    # Several would share a step's rows out.
    with threads(1):
        task.train(Recipe(steps=5, fact_batch=fact_batch, far_batch=far_batch))
    assert len(asked) == 5
    # In one pass, those of the fact first.
    facts, retains = ([[i for i in step if (i < 5) == own] for step in asked] for own in (True, False))
    assert [[*fact, *retain] for fact, retain in zip(facts, retains, strict=True)] == asked
    if fact_batch < 5:
        assert [len(step) for step in facts] == [2] * 5
        assert sorted(i for step in facts for i in step) == sorted([*range(5)] * 2)
        assert sorted(i for step in retains[:2] for i in step) == list(range(5, 11))
    else:
        assert all(sorted(step) == list(range(5)) for step in facts)
        assert all(sorted(step) == list(range(5, 11)) for step in retains)


def test_a_step_of_many_rows_takes_several_passes():
    task, asked = Task(facts=80, retains=0), []
    read = task.runner.read
    task.runner.read = lambda indices, spans: asked.append(list(indices)) or read(indices, spans)
    with threads(1):
        task.train(Recipe(steps=1, fact_batch=80))
    assert len(asked) > 1
    assert sorted(i for indices in asked for i in indices) == list(range(80))


def test_a_row_that_is_not_run_has_its_turn_and_counts_as_unchanged():
    left_out = Task(not_run=(1, 4))
    run = [i for i, base in enumerate(left_out.base) if base is not None]
    assert run == [0, 2, 3, 5]
    only = Task(not_run=(1, 4))
    only.retains, only.base = ([own[i] for i in run] for own in (only.retains, only.base))
    # The mean over all positions is the mean over those that are run, times their share.
    share = sum(len(left_out.retains[i].ids) - left_out.retains[i].answer_start for i in run) / sum(
        len(row.ids) - row.answer_start for row in left_out.retains
    )
    recipe = {"steps": 4, "target_loss": 0.0, **ALL}
    record = left_out.train(Recipe(retain_weight=3.0, **recipe))
    alone = only.train(Recipe(retain_weight=3.0 * share, **recipe))
    assert 0 < share < 1
    assert record.kl == pytest.approx(share * alone.kl, rel=1e-4)
    assert record.loss == pytest.approx(alone.loss, rel=1e-5)
    pairs = zip(deltas(left_out.model).values(), deltas(only.model).values(), strict=True)
    assert all(torch.allclose(own, other, rtol=1e-3, atol=1e-6) for own, other in pairs)
    # A step whose retained rows are all not run.
    none = Task(not_run=range(6)).train(Recipe(**recipe))
    assert (none.steps, none.kl) == (4, 0.0)
    turns = Task(not_run=(1, 4))
    asked, read = [], turns.runner.read
    turns.runner.read = lambda indices, spans: (
        asked.append(len([i for i in indices if i >= 5])) or read(indices, spans)
    )
    with threads(1):
        turns.train(Recipe(**{**recipe, "steps": 2, "far_batch": 3}))
    # Six rows have their turns in two steps of three; of these four are run.
    assert sum(asked) == 4
