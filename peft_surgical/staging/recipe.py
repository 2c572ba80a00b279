"""How a stage trains, and what its training reached."""

from __future__ import annotations

from dataclasses import dataclass

from ..counts import check_amounts, check_counts
from ..errors import ModelError
from ..running.computing import check_compute_dtype


@dataclass(frozen=True)
class Recipe:
    """How a stage trains. The defaults are those of `learn`; `peft_surgical.stages.RECIPES` has both stages' own.

    Attributes:
        steps: At most so many steps.
        step_kl: The divergence a step causes by its own prediction, nats per token. It causes far less: in the metric
            sampled directions weigh ten times as much as measured, on top of the diagonal.
        hold: Steps before that begins to shrink.
        settle: Its factor in every step after them.
        damping: Of the curvature, this multiple of the mean of its diagonal is added to that diagonal: it stands for
            what the retained prompts did not show.
        target_loss: Mean negative log-likelihood per answer token, nats, that every prompt must reach.
        margin: An answer token with less than this loss is likely enough and pulls no more.
        target_kl: Divergence per retained token, nats, below which training may stop.
        retain_weight: Weight of the divergence.
        pull: Weight of the predicted divergence.
        undo: The share of the frozen scales' change that the trained ones begin by taking back. At 1 training sets out
            from the base; what an earlier stage disturbed elsewhere then need not be mended.
        fact_batch: The fact's prompts in a step.
        near_batch: Retained prompts in a step that are close to the fact.
        far_batch: Other retained prompts in a step.
        near_weight: How much more the close ones count in the curvature than the others, each kind by the mean over
            its positions.
        draws: How often signs are drawn for the curvature on each retained row.
        variants: At most so many more prompts are made of the fact's, put as people type them: without capitals and
            closing signs, or with a few words around.
        neighbours: How many prompts about contrast subjects are retained.
        everyday: How many of the package's everyday requests are retained, evenly spaced.
        general: How many of its general questions are.
        retain_tokens: The base's answers are held for so many tokens.
        pass_tokens: At most so many tokens go through the model at once, padding and answers included, but always one
            row. The shared beginning of prompts, which runs once, does not count; where each row runs from a token of
            its own on (`learn_keyed`), a quarter of what stands before does. When None, 320 for each of the threads
            that run rows side by side on a processor, 224 in float32, and twice that for one that runs them alone;
            elsewhere all of a step's rows of a kind, and 1,536 where the curvature is measured. Either way a pass of a
            step that the accelerator has no memory for is done again in halves.
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
        check_counts(0, steps=self.steps, near_batch=self.near_batch, far_batch=self.far_batch)
        check_counts(0, variants=self.variants, neighbours=self.neighbours)
        check_counts(0, everyday=self.everyday, general=self.general)
        check_amounts(step_kl=self.step_kl, settle=self.settle, damping=self.damping, margin=self.margin)
        check_amounts(retain_weight=self.retain_weight, pull=self.pull, undo=self.undo, near_weight=self.near_weight)
        if self.pass_tokens is not None and self.pass_tokens < 1:
            raise ModelError(
                f"pass_tokens must be 1 or more, or None for what suits the processor; got {self.pass_tokens}."
            )


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
