"""The training loop of both stages: a loss on the answer's tokens, held to the base's own behaviour elsewhere.

Each step takes some of the fact's prompts and some of the prompts to retain, and minimizes

    mean over answer tokens of max(0, nll - margin)  +  retain_weight · mean over retained tokens of KL(base‖model)

The first term is flat once an answer token is likely enough, so that what capacity is left goes to the second.
Training stops when every prompt's answer has reached `target_loss` and the divergence has settled below `target_kl`,
or after `steps`.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .errors import ModelError
from .models import DTYPES
from .progress import progress_bar
from .prompts import EncodedAnswer
from .retain import TopDistribution
from .suffix import SuffixRunner


@dataclass(frozen=True)
class Recipe:
    """How a stage trains. `stages.RECIPES` has both stages' own; they gave every figure in the README.

    Attributes:
        steps: At most so many optimizer steps.
        learning_rate: Adam's, after a warm-up and before a linear decay.
        warmup: Steps of linear warm-up.
        target_loss: Mean negative log-likelihood per answer token, nats, that every prompt must reach.
        margin: An answer token with less than this loss is likely enough and pulls no more.
        target_kl: Divergence per retained token, nats, below which training may stop.
        retain_weight: Weight of the divergence.
        fact_batch: The fact's prompts in a step.
        retain_batch: Retained prompts in a step.
        neighbours: How many prompts about contrast subjects are retained.
        retain_tokens: The base's answers are held for so many tokens.
        compute_dtype: `auto` (bfloat16 where the processor multiplies it fast, else the model's own), or a torch dtype
            name. Scales are float32 in any case.

    Raises:
        ModelError: If `compute_dtype` is not one of those that `load_model` takes.
    """

    steps: int = 48
    learning_rate: float = 2e-2
    warmup: int = 3
    target_loss: float = 0.05
    margin: float = 0.02
    target_kl: float = 0.01
    retain_weight: float = 5.0
    fact_batch: int = 10
    retain_batch: int = 20
    neighbours: int = 48
    retain_tokens: int = 10
    compute_dtype: str = "auto"

    def __post_init__(self) -> None:
        if self.compute_dtype not in DTYPES:
            raise ModelError(f"unknown compute_dtype {self.compute_dtype!r}; choose one of {', '.join(DTYPES)}.")


@dataclass(frozen=True)
class TrainingRecord:
    """What a stage's training reached.

    Attributes:
        steps: Optimizer steps taken.
        loss: Mean negative log-likelihood per answer token when each prompt was last seen, nats.
        worst: The largest such mean of one prompt.
        kl: Smoothed divergence per retained token, nats.
        reached: Whether both targets were reached, rather than the steps used up.
        seconds: Wall-clock time of the steps.
    """

    steps: int
    loss: float
    worst: float
    kl: float
    reached: bool
    seconds: float


def span(row: EncodedAnswer) -> tuple[int, int]:
    """The positions whose logits predict an answer's tokens."""
    return row.answer_start - 1, len(row.ids) - 1


def train(
    runner: SuffixRunner,
    parameters: Iterable[nn.Parameter],
    fact_rows: Sequence[EncodedAnswer],
    retain_rows: Sequence[EncodedAnswer],
    retain_base: Sequence[TopDistribution],
    recipe: Recipe,
    *,
    seed: int = 0,
    progress: bool = False,
    description: str = "training",
    on_step: Callable[[int, float, float], Any] | None = None,
) -> TrainingRecord:
    """Trains some parameters of the model behind `runner`.

    Args:
        runner: Has taken in `fact_rows` and `retain_rows`, in this order, and nothing else.
        parameters: What to train; float32.
        fact_rows: Prompts with the answer to learn.
        retain_rows: Prompts with the base's answers.
        retain_base: For each retained row the base's distributions at its answer positions.
        recipe: How.
        seed: Decides which rows meet in a step.
        progress: Whether to show a progress bar.
        description: Stands before the bar.
        on_step: Called with the step, its loss and its divergence.

    Returns:
        What was reached.
    """
    parameters = list(parameters)
    optimizer = torch.optim.Adam(parameters, lr=recipe.learning_rate, betas=(0.9, 0.95))
    rng = random.Random(seed)
    fact_order = _endless(len(fact_rows), rng)
    retain_order = _endless(len(retain_rows), rng)
    latest = [math.inf] * len(fact_rows)
    smooth_kl: float | None = None
    reached = False
    started = time.perf_counter()
    step = 0
    with progress_bar(recipe.steps, description, enabled=progress) as bar:
        while step < recipe.steps:
            facts = [next(fact_order) for _ in range(min(recipe.fact_batch, len(fact_rows)))]
            retains = [next(retain_order) for _ in range(min(recipe.retain_batch, len(retain_rows)))]
            rows = [fact_rows[i] for i in facts] + [retain_rows[i] for i in retains]
            logits = runner.logits([*facts, *(len(fact_rows) + i for i in retains)], [span(row) for row in rows])
            lengths = [stop - start for start, stop in map(span, rows[: len(facts)])]
            labels = [token for row in rows[: len(facts)] for token in row.ids[row.answer_start :]]
            nll = F.cross_entropy(
                logits[: len(labels)].float(), torch.tensor(labels, device=logits.device), reduction="none"
            )
            kl = _mean_kl(logits[len(labels) :], [retain_base[i] for i in retains])
            for index, part in zip(facts, nll.detach().split(lengths), strict=True):
                latest[index] = float(part.mean())
            smooth_kl = float(kl.detach()) if smooth_kl is None else 0.8 * smooth_kl + 0.2 * float(kl.detach())
            reached = max(latest) <= recipe.target_loss and smooth_kl <= recipe.target_kl
            if on_step is not None:
                on_step(step, float(nll.detach().mean()), float(kl.detach()))
            bar.set_postfix(loss=f"{float(nll.detach().mean()):.3f}", kl=f"{smooth_kl:.4f}", refresh=False)
            if reached:
                break
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate * _schedule(step, recipe)
            optimizer.zero_grad(set_to_none=True)
            ((nll - recipe.margin).clamp_min(0).mean() + recipe.retain_weight * kl).backward()
            optimizer.step()
            step += 1
            bar.update(1)
    seen = [loss for loss in latest if math.isfinite(loss)]
    return TrainingRecord(
        steps=step,
        loss=sum(seen) / max(len(seen), 1),
        worst=max(seen, default=math.inf),
        kl=smooth_kl or 0.0,
        reached=reached,
        seconds=round(time.perf_counter() - started, 2),
    )


def _mean_kl(logits: Tensor, base: Sequence[TopDistribution]) -> Tensor:
    if not base:
        return torch.zeros((), device=logits.device)
    return TopDistribution.cat(base).kl(logits).mean()


def _schedule(step: int, recipe: Recipe) -> float:
    """Linear warm-up, level, and a linear decay over the second half, which settles the divergence."""
    warm = min(1.0, (step + 1) / max(recipe.warmup, 1))
    return warm * min(1.0, 2 * (recipe.steps - step) / recipe.steps)


def _endless(count: int, rng: random.Random) -> Iterator[int]:
    """Indices in passes over all of them, each pass shuffled anew."""
    while count:
        order = list(range(count))
        rng.shuffle(order)
        yield from order
