"""How a stage trains, and what its training reached."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..counts import check_amounts, check_counts, check_limits
from ..dtypes import dtype_name
from ..errors import ModelError, brief
from ..running.computing import check_compute_dtype


@dataclass(frozen=True)
class Recipe:
    """How a stage trains. The defaults are those of `learn`; [`RECIPES`] has both stages' own.

    Attributes:
        steps: The largest number of steps.
        step_kl: The divergence that a step is predicted to cause, nats per token; it sets the step's length. The real
            one is far smaller, since the metric counts sampled directions ten times, on top of the diagonal.
        hold: How many steps use the whole of `step_kl`.
        settle: Each later step multiplies it by this factor once more.
        damping: This multiple of the mean of the curvature's diagonal is added to the diagonal. It stands for what the
            retained prompts did not show.
        target_loss: Mean negative log-likelihood per answer token, nats, that every prompt must reach.
        margin: An answer token whose loss is below this, nats, is likely enough and has no gradient.
        target_kl: Divergence per retained token, nats, below which training may stop.
        retain_weight: Weight of the divergence that is measured on a step's retained prompts.
        pull: Weight of the divergence that the curvature predicts.
        undo: The share of the frozen scales' change that the trained scales take back before the first step. At 1
            training starts from the base, and need not mend what an earlier stage disturbed elsewhere.
        fact_batch: How many of the fact's prompts are in a step.
        near_batch: How many retained prompts that are close to the fact are in a step.
        far_batch: How many other retained prompts are in a step.
        near_weight: How much more the close ones count in the curvature than the others, each kind by the mean over
            its positions.
        draws: How often signs are drawn for the curvature on each retained row.
        variants: The largest number of prompts that are made of the fact's in addition. They are written as people
            type: without capitals and closing signs, or with a few words around.
        neighbours: The largest number of prompts about contrast subjects that are retained.
        everyday: How many of the package's everyday requests are retained, evenly spaced.
        general: How many of the package's general questions are retained.
        retain_tokens: How many tokens of each of the base's answers are retained.
        pass_tokens: The largest number of tokens that go through the model at once, with padding and answers; one row
            always does. The shared beginning of prompts runs once and does not count. Where each row starts at a token
            of its own (`learn_keyed`), a quarter of what stands before that counts. When None: on a processor 320 for
            each thread that runs rows side by side, 224 in float32, and twice that for a thread that runs alone;
            elsewhere all of a step's rows, and 1,536 where the curvature is measured; anywhere up to 64 rows
            go once through the layers below what trains. With a number or None, a pass of a step or of these layers
            for which the accelerator has no memory is done again in halves.
        compute_dtype: `auto` (bfloat16 where the processor multiplies it clearly faster, else the model's own), or a
            torch dtype name. Scales are float32 in any case.

    Raises:
        ModelError: If `compute_dtype` is not one of those that `load_model` takes, or a number is out of range.
    """

    steps: int = 15
    step_kl: float = 3e-3
    hold: int = 9
    settle: float = 0.7
    damping: float = 1.0
    target_loss: float = 0.1
    margin: float = 0.1
    target_kl: float = 0.01
    retain_weight: float = 5.0
    pull: float = 2.0
    undo: float = 1.0
    fact_batch: int = 8
    near_batch: int = 8
    far_batch: int = 4
    near_weight: float = 3.0
    draws: int = 1
    variants: int = 40
    neighbours: int = 24
    everyday: int = 20
    general: int = 50
    retain_tokens: int = 10
    pass_tokens: int | None = None
    compute_dtype: str = "auto"

    def __post_init__(self) -> None:
        check_compute_dtype(self.compute_dtype)
        check_counts(1, fact_batch=self.fact_batch, draws=self.draws, retain_tokens=self.retain_tokens)
        check_counts(0, steps=self.steps, hold=self.hold, near_batch=self.near_batch, far_batch=self.far_batch)
        check_counts(0, variants=self.variants, neighbours=self.neighbours)
        check_counts(0, everyday=self.everyday, general=self.general)
        check_amounts(step_kl=self.step_kl, settle=self.settle, damping=self.damping, margin=self.margin)
        check_amounts(retain_weight=self.retain_weight, pull=self.pull, undo=self.undo, near_weight=self.near_weight)
        check_limits(target_loss=self.target_loss, target_kl=self.target_kl)
        if self.pass_tokens is not None and (type(self.pass_tokens) is not int or self.pass_tokens < 1):
            raise ModelError(
                "pass_tokens must be a whole number of 1 or more, or None for what suits the processor; got "
                f"{brief(self.pass_tokens)}."
            )


def check_recipe(recipe: object, kind: type) -> None:
    """Refuses a recipe for something else.

    Args:
        recipe: The recipe, if one is given.
        kind: What it must be: none of the kinds has the fields or the defaults of another.

    Raises:
        ModelError: If it is something else.
    """
    if recipe is not None and type(recipe) is not kind:
        given = type(recipe).__name__
        raise ModelError(f"the recipe must be a {kind.__name__}, and is of the type {given}.")


@dataclass(frozen=True)
class TrainingRecord:
    """What a stage's training reached.

    Attributes:
        steps: Optimizer steps taken.
        loss: Mean negative log-likelihood per answer token when each prompt was last seen, nats; infinite where no
            step looked at one.
        worst: The largest such mean of one prompt; infinite where no step looked at one.
        kl: Smoothed divergence per retained token, nats; None where training did not look at it.
        reached: Whether both targets were reached, rather than the steps used up.
        seconds: Wall-clock time of the steps.
        compute_dtype: What the forward and backward passes ran in; `auto` may choose otherwise on another processor.
    """

    steps: int
    loss: float
    worst: float
    kl: float | None
    reached: bool
    seconds: float
    compute_dtype: str

    @classmethod
    def of(
        cls,
        latest: Sequence[float],
        *,
        steps: int,
        kl: float | None,
        reached: bool,
        started: float,
        dtype: torch.dtype,
    ) -> TrainingRecord:
        """The record of a training that ends now.

        Args:
            latest: Each prompt's mean loss when it was last seen, not finite where it never was.
            steps: As recorded.
            kl: As recorded.
            reached: As recorded.
            started: By `time.perf_counter`.
            dtype: Of the passes.
        """
        seen = [loss for loss in latest if math.isfinite(loss)]
        return cls(
            steps=steps,
            loss=sum(seen) / len(seen) if seen else math.inf,
            worst=max(seen, default=math.inf),
            kl=kl,
            reached=reached,
            # A step of a small model takes milliseconds, and costs are told by the step.
            seconds=round(time.perf_counter() - started, 5),
            compute_dtype=dtype_name(dtype),
        )
