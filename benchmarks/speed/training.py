"""The rows about training: a stage to the same loss, a step at equal batch, the share of the peak."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch.utils.flop_counter import FlopCounterMode

import peft_surgical as ps
from peft_surgical.measuring.metrics import prompt_metrics
from peft_surgical.running.generation import generate_answers
from peft_surgical.staging.retained import Retained
from peft_surgical.staging.stage import LEARN, Stage

from .case import Case, matrix_product_peak, timed
from .stock import fit_with_trainer, mean_loss, plain_step_seconds


def learn(case: Case, recipe: ps.Recipe | None = None, retained: Retained | None = None) -> Stage:
    """Our stage that teaches the new answer, on a fresh model."""
    recipe = recipe or recipe_of(case)
    return ps.learn(
        case.fresh(),
        case.tokenizer,
        case.fact,
        case.config,
        recipe=recipe,
        retained=retained,
        seed=case.seed,
        progress=False,
    )


def recipe_of(case: Case) -> ps.Recipe:
    """How our stage trains."""
    return case.sizes.recipes[LEARN]


def unstopped(case: Case, **changed: Any) -> ps.Recipe:
    """The same to targets that are not reached, so that all of some steps are taken."""
    return replace(recipe_of(case), steps=case.sizes.own_steps, target_loss=-1.0, **changed)


def stage_to_the_same_loss(case: Case) -> dict[str, Any]:
    """A stage by itself, and one that follows another, against a Trainer that learns the same answers."""
    alone, seconds = timed(learn, case)
    loss = mean_loss(alone.model, case.rows)
    # What `unlearn` has worked out about the base, `learn` need not work out again.
    _, seconds_following = timed(learn, case, retained=alone.retained)
    other = fit_with_trainer(case, case.sizes.stage_steps, loss)
    kept = {name: _kept(case, model) for name, model in (("kept", alone.model), ("other_kept", other.model))}
    return {
        **kept,
        "seconds": seconds,
        "seconds_following": seconds_following,
        "seconds_of_steps": alone.record.seconds,
        "seconds_of_a_step_of_prompts": step_of_prompts(case, alone.retained),
        "steps": alone.record.steps,
        "loss": loss,
        "other_seconds": other.seconds,
        "other_steps": other.steps,
        "other_loss": other.loss,
        "other_reached": other.reached,
        "ratio": other.seconds / seconds,
        "ratio_following": other.seconds / seconds_following,
        "lower_bound": not other.reached,
    }


def step_of_prompts(case: Case, retained: Retained | None) -> float:
    """A step of ours that takes each of the prompts once and nothing of what is kept: the least that learning by them
    can take."""
    recipe = unstopped(case, fact_batch=len(case.rows), variants=0, near_batch=0, far_batch=0)
    record = learn(case, recipe, retained).record
    return record.seconds / record.steps


def _kept(case: Case, model: Any) -> dict[str, float]:
    """Of the controls that the base answers right, the share that a trained model still does; the loss says nothing
    of them."""
    controls = [control.prompt for control in case.fact.controls]
    base, said = (generate_answers(asked, case.tokenizer, controls) for asked in (case.model, model))
    kept = prompt_metrics(case.fact, [""] * len(case.fact.held_out), said, base).get("control_kept")
    return {} if kept is None else kept.to_dict()


def step_at_equal_batch(case: Case) -> dict[str, Any]:
    """A step of ours against one of a plain loop over as many rows of the same prompts."""
    recipe = unstopped(case)
    first = learn(case, replace(recipe, steps=1))
    record = learn(case, recipe, first.retained).record
    own = record.seconds / record.steps
    assert first.retained is not None  # for the type checker
    kept = first.retained.kept
    near, far = kept.rows[: kept.near], kept.rows[kept.near :]
    facts = [*case.rows, *case.rows * (recipe.fact_batch // len(case.rows))]
    rows = [*facts[: recipe.fact_batch], *near[: recipe.near_batch], *far[: recipe.far_batch]]
    other = plain_step_seconds(case, rows)

    operations = [_operations(case, replace(recipe, steps=count), first.retained) for count in (1, 2)]
    peaks = matrix_product_peak(case.model.device)
    rate = (operations[1] - operations[0]) / own
    return {
        "seconds": own,
        "other_seconds": other,
        "ratio": other / own,
        "rows": len(rows),
        "compute_dtype": record.compute_dtype,
        "peak_gflops": {name: value / 1e9 for name, value in peaks.items()},
        "reached_gflops": rate / 1e9,
        "share_of_peak": rate / max(peaks.values()),
        "share_of_own_dtype_peak": rate / peaks.get(record.compute_dtype, max(peaks.values())),
    }


def _operations(case: Case, recipe: ps.Recipe, retained: Retained) -> int:
    """Floating-point operations in the matrix products of a stage."""
    with FlopCounterMode(display=False) as counter:
        learn(case, recipe, retained)
    return int(counter.get_total_flops())
