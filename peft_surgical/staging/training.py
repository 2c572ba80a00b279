"""The training loop of both stages: a loss on the answer's tokens, held to the base's own behaviour elsewhere.

Each step takes some of the fact's prompts and some of the prompts to retain, and follows the natural gradient of

    mean over prompts of the sum over answer tokens of max(0, nll - margin)
        +  retain_weight · mean over retained tokens of KL(base‖model)
        +  pull · predicted divergence from the base

The first term is flat once an answer token is likely enough, so that what capacity is left goes to the others. The
second is of the few rows of a step, over the base's likeliest tokens and all others together; the third, `½ dᵀ F d`
with `d` all that the scales have changed so far (see `curvature`), knows all retained rows at once. A step's length is
set by its own predicted divergence, not by the size of the gradient: every step spends `step_kl`, and less towards the
end so that the terms settle. Training stops when every prompt's answer has reached `target_loss` and the divergence
has settled below `target_kl`, or after `steps`.

Both terms are sums over rows, so a step's rows may be run in several passes (`passes`), by several threads
(`replicas`) and by several processes (`sharing`): what adds up is the same.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, count, islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ModelError
from ..profiling import phase
from ..progress import progress_bar
from ..running.alike import check_alike
from ..running.freed import release_freed
from ..running.passes import in_passes
from ..running.sharing import add_up, by_each, processes, share
from ..running.suffix import SuffixRunner
from ..running.workers import Worker, tokens_of, workers_of
from ..seeding import drawing
from ..texts.prompts import EncodedAnswer, answer_count, answer_ids, span
from .curvature import Metric
from .recipe import Recipe, TrainingRecord
from .retain import TopDistribution

# A scale below this is not divided by.
_DEAD = 0.05


@phase("steps")
def train(
    runner: SuffixRunner,
    parameters: Iterable[nn.Parameter],
    fact_rows: Sequence[EncodedAnswer],
    retain_rows: Sequence[EncodedAnswer],
    retain_base: Sequence[TopDistribution | None],
    recipe: Recipe,
    *,
    metric: Metric,
    frozen: Sequence[Tensor] | None = None,
    origin: Sequence[Tensor] | None = None,
    near: int = 0,
    share_of_loss: float | None = None,
    seed: int,
    progress: bool,
    description: str,
    on_step: Callable[[int, float, float], Any] | None = None,
) -> TrainingRecord:
    """Trains some parameters of the model behind `runner`.

    Args:
        runner: Has taken in `fact_rows` first, then those of `retain_rows` that are run, in their order.
        parameters: What to train; float32.
        fact_rows: Prompts with the answer to learn.
        retain_rows: Prompts with the base's answers.
        retain_base: For each retained row the base's distributions at its answer positions. None where nothing that
            trains acts: such a row has its turn, but is not run, and counts as unchanged.
        recipe: How.
        metric: What a step costs, for the parameters in their order.
        frozen: For each parameter, which is then a scale's `delta`, the product of the frozen scales on the same
            coordinates. When None, nothing frozen acts there, and a parameter may be anything.
        origin: What each parameter is where nothing is changed, for the pull; 0 when None.
        near: How many of the retained rows, from the first, are close to the fact.
        share_of_loss: The largest share of the fact's loss that a step may be predicted to take away; 1 is Polyak's
            rule. It is for parameters that change what is kept so little that `step_kl` alone allows any length.
        seed: Decides which rows meet in a step.
        progress: Whether to show a progress bar.
        description: Stands before the bar.
        on_step: Called with the step, its loss per answer token and its divergence.

    Returns:
        What was reached.

    Raises:
        ModelError: If the model gives logits that are not finite.
    """
    check_alike(recipe=recipe, seed=seed, rows=[*fact_rows, *retain_rows])
    parameters = list(parameters)
    origin = [torch.zeros_like(p) for p in parameters] if origin is None else origin
    if frozen is not None:
        _begin(parameters, frozen, recipe.undo)
    release_freed()
    workers = workers_of(runner, parameters, recipe.pass_tokens)
    tokens = tokens_of(recipe.pass_tokens, workers)
    rng = drawing(seed)
    fact_order = endless(range(len(fact_rows)), rng)
    near_order = endless(range(near), rng)
    far_order = endless(range(near, len(retain_rows)), rng)
    base = {i: own for i, own in enumerate(retain_base) if own is not None}
    near_batch, far_batch = min(recipe.near_batch, near), min(recipe.far_batch, len(retain_rows) - near)
    latest = [math.inf] * len(fact_rows)
    smooth_kl: float | None = None
    reached = False
    started = time.perf_counter()
    step = 0
    with progress_bar(recipe.steps, description, enabled=progress) as bar:
        while step < recipe.steps:
            facts = list(islice(fact_order, min(recipe.fact_batch, len(fact_rows))))
            retains = [*islice(near_order, near_batch), *islice(far_order, far_batch)]
            for parameter in parameters:
                parameter.grad = None
            nll, kl = _backward(workers, facts, retains, fact_rows, retain_rows, base, recipe, tokens)
            _add_up_gradients(parameters)
            for index, values in zip(facts, nll, strict=True):
                latest[index] = float(values.mean())
            smooth_kl = kl if smooth_kl is None else 0.7 * smooth_kl + 0.3 * kl
            loss = float(torch.cat(nll).mean())
            check_finite(loss + kl, runner.model.dtype)
            reached = bool(max(latest) <= recipe.target_loss and smooth_kl <= recipe.target_kl)
            if on_step is not None:
                on_step(step, loss, kl)
            bar.set_postfix(loss=f"{loss:.3f}", kl=f"{smooth_kl:.4f}", refresh=False)
            if reached:
                break
            _pull(parameters, frozen, origin, metric, recipe.pull)
            most = None if share_of_loss is None else share_of_loss * float(torch.cat(nll).sum()) / len(facts)
            _step(parameters, metric, _spent(step, recipe), most)
            step += 1
            bar.update(1)
    # Whoever trains these on would step along what is left here, too.
    for parameter in parameters:
        parameter.grad = None
    # No loss tells what the last step led to.
    if not all(bool(parameter.isfinite().all()) for parameter in parameters):
        raise ModelError(f"the last step led to values that are not finite, by gradients in {runner.model.dtype}.")
    last = smooth_kl if near_batch + far_batch else None
    return TrainingRecord.of(latest, steps=step, kl=last, reached=reached, started=started, dtype=runner.model.dtype)


def _backward(
    workers: Sequence[Worker],
    facts: Sequence[int],
    retains: Sequence[int],
    fact_rows: Sequence[EncodedAnswer],
    retain_rows: Sequence[EncodedAnswer],
    base: Mapping[int, TopDistribution],
    recipe: Recipe,
    tokens: int | None,
) -> tuple[list[Tensor], float]:
    """Adds the gradient of the first two terms, of this process's share; returns the loss of all prompts, per answer
    token, and the mean divergence of all that is retained, nats."""
    runner = workers[0].runner
    # Rows to keep that are not run are not in the runner either.
    places = dict(zip(base, count(len(fact_rows)), strict=False))
    kept = [i for i in retains if i in base]
    rows = [*(fact_rows[i] for i in facts), *(retain_rows[i] for i in kept)]
    indices = [*facts, *(places[i] for i in kept)]
    bases = dict(enumerate((base[i] for i in kept), len(facts)))
    every = [
        torch.zeros(len(answer_ids(row)), dtype=torch.float32, device=runner.device) for row in rows[: len(facts)]
    ]
    total = torch.zeros((), dtype=torch.float32, device=runner.device)
    positions = answer_count(retain_rows[i] for i in retains)

    def run(worker: Worker, part: Sequence[int]) -> list[tuple[dict[int, Tensor], Tensor]]:
        # Prompts of the fact first, so that of what is read at once each kind is in one piece.
        part = sorted(part)
        found = []
        pieces = worker.runner.read([indices[i] for i in part], [span(rows[i]) for i in part])
        for some, logits in pieces:
            own = [part[i] for i in some]
            learned = [i for i in own if i < len(facts)]
            cut = answer_count(rows[i] for i in learned)
            nll, kl = logits.new_zeros(0, dtype=torch.float32), logits.new_zeros((), dtype=torch.float32)
            if learned:
                labels = torch.tensor([*chain(*(answer_ids(rows[i]) for i in learned))], device=logits.device)
                nll = F.cross_entropy(logits[:cut].float(), labels, reduction="none")
            if len(own) > len(learned):
                kl = TopDistribution.cat([bases[i] for i in own[len(learned) :]]).kl(logits[cut:]).sum() / positions
            ((nll - recipe.margin).clamp_min(0).sum() / len(facts) + recipe.retain_weight * kl).backward()
            losses = nll.detach().split([len(answer_ids(rows[i])) for i in learned])
            found.append((dict(zip(learned, losses, strict=True)), kl.detach()))
        pieces.back()
        return found

    def run_all() -> None:
        own = share(range(len(rows)))
        for losses, kl in chain(*in_passes(own, [runner.load(indices[i]) for i in own], run, workers, tokens=tokens)):
            for i, loss in losses.items():
                every[i] += loss.to(runner.device)
            total.add_(kl.to(runner.device))

    by_each(run_all)
    together = torch.cat(every)
    add_up([together, total])
    return list(together.split([len(losses) for losses in every])), float(total)


def _add_up_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Gives every process the gradient of all shares."""
    if processes() == 1:
        return
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    add_up([parameter.grad for parameter in parameters if parameter.grad is not None])


@torch.no_grad()
def _begin(parameters: Sequence[nn.Parameter], frozen: Sequence[Tensor], undo: float) -> None:
    """Takes back a share of the frozen change; a scale near zero, which nothing multiplies back, stays as it is."""
    for parameter, scale in zip(parameters, frozen, strict=True):
        wanted = 1 + (1 - undo) * (scale - 1)
        parameter.copy_(torch.where(scale.abs() > _DEAD, (1 + parameter) * wanted / scale - 1, parameter))


@torch.no_grad()
def _pull(
    parameters: Sequence[nn.Parameter],
    frozen: Sequence[Tensor] | None,
    origin: Sequence[Tensor],
    metric: Metric,
    weight: float,
) -> None:
    """Adds the gradient of the third term."""
    changes = [parameter - unchanged for parameter, unchanged in zip(parameters, origin, strict=True)]
    if frozen is not None:
        changes = [scale * (1 + change) - 1 for change, scale in zip(changes, frozen, strict=True)]
    slopes = metric.apply(changes)
    if frozen is not None:
        slopes = [scale * slope for scale, slope in zip(frozen, slopes, strict=True)]
    for parameter, slope in zip(parameters, slopes, strict=True):
        own = weight * slope
        parameter.grad = own if parameter.grad is None else parameter.grad + own


@torch.no_grad()
def _step(parameters: Sequence[nn.Parameter], metric: Metric, divergence: float, most: float | None) -> None:
    # The metric is of total scales. What is frozen below is within some hundredths of 1, and is taken for 1 here.
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    directions = metric.natural(gradients)
    # For d = -η F⁻¹g the predicted divergence is η²/2 · gᵀF⁻¹g.
    squared = sum(float((g * d).sum()) for g, d in zip(gradients, directions, strict=True))
    if squared <= 0:
        return
    length = math.sqrt(2 * divergence / squared)
    if most is not None:
        # What it takes away from the loss is ηgᵀF⁻¹g.
        length = min(length, most / squared)
    for parameter, direction in zip(parameters, directions, strict=True):
        parameter.sub_(length * direction)


def check_finite(loss: float, dtype: torch.dtype) -> None:
    """Refuses a number from the model that is not finite.

    Args:
        loss: A loss, nats, or a logit.
        dtype: What the model computes in.

    Raises:
        ModelError: If it is not finite.
    """
    if not math.isfinite(loss):
        raise ModelError(f"the model gives logits that are not finite in {dtype}.")


def _spent(step: int, recipe: Recipe) -> float:
    return recipe.step_kl * recipe.settle ** max(0, step + 1 - recipe.hold)


def endless(items: Sequence[int], rng: random.Random) -> Iterator[int]:
    """Items in passes over all of them, each pass shuffled anew."""
    while items:
        order = list(items)
        rng.shuffle(order)
        yield from order
