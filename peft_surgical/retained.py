"""What both stages of an edit keep, worked out once: answers, distributions and the curvature of scales on them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from .curvature import Curvature, measure_curvature
from .facts import TrainingFact
from .lengths import fits
from .profiling import phase
from .progress import progress_bar
from .prompts import EncodedAnswer, encode, span
from .retain import TopDistribution, base_answers, retain_prompts
from .sharing import merged
from .suffix import SuffixRunner
from .topics import states_fact, topic_prompts
from .training import Recipe
from .tuner import SurgicalIA3Layer


@dataclass(frozen=True)
class Rows:
    """Prompts with the base's own answers.

    Attributes:
        rows: The prompts and answers.
        near: How many of them, from the first, are close to the fact.
    """

    rows: tuple[EncodedAnswer, ...]
    near: int


@dataclass(frozen=True)
class Retained:
    """What the stages keep, worked out once for both.

    Attributes:
        kept: Prompts with the base's answers.
        base: The base's distributions at each row's answer.
        curvature: What a change of the scales costs on these rows.
        selections: The scales it is of.
    """

    kept: Rows
    base: tuple[TopDistribution, ...]
    curvature: Curvature
    selections: Any


@phase("answers to keep")
def base_rows(model: Any, tokenizer: Any, fact: TrainingFact, recipe: Recipe, seed: int, progress: bool) -> Rows:
    """Asks the base, whatever adapters `model` has, the prompts that training keeps.

    Prompts that are made up for any model are left out where they are too long for this one, and those about the
    fact's own names where the base answers with the fact.
    """
    near, far = (
        [p for p in kind if fits(model.config, len(encode(tokenizer, p)) + recipe.retain_tokens)]
        for kind in retain_prompts(fact, recipe.neighbours, recipe.general, seed)
    )
    with base_of(model):
        answers = base_answers(model, tokenizer, [*near, *far], max_new_tokens=recipe.retain_tokens, progress=progress)
    made = set(topic_prompts(fact))
    stated = [
        prompt in made and states_fact(fact, prompt, tokenizer.decode(row.ids[row.answer_start :]))
        for prompt, row in zip([*near, *far], answers, strict=True)
    ]
    kept = tuple(row for row, unwanted in zip(answers, stated, strict=True) if not unwanted)
    return Rows(kept, len(near) - sum(stated))


@phase("curvature")
def measure_retained(
    runner: SuffixRunner,
    model: Any,
    layers: Sequence[SurgicalIA3Layer],
    adapter: str,
    selections: Any,
    kept: Rows,
    earlier: Retained | None,
    recipe: Recipe,
    *,
    offset: int,
    seed: int,
    progress: bool,
) -> Retained:
    """Reads the kept rows: the base's distributions, and the curvature of an adapter's scales.

    Args:
        runner: Has taken in the rows, from index `offset` on.
        model: Its model.
        layers: Those with the adapter's scales.
        adapter: Its name.
        selections: What it scales.
        kept: The rows.
        earlier: From an earlier stage on the same base; what of it still holds is not measured again.
        recipe: Gives the weight of near rows, the draws and how many tokens go through the model at once.
        offset: See `runner`.
        seed: Draws the labels that the curvature is estimated with.
        progress: Whether to show a progress bar.
    """
    if earlier is not None and earlier.selections == selections:
        return earlier
    curvature, met = _curvature(runner, layers, adapter, kept, offset, recipe, seed, progress)
    if earlier is not None:
        base = earlier.base
    elif _is_base(model):
        base = met
    else:
        with base_of(model):
            base = tuple(_distributions(runner, kept.rows, offset))
    return Retained(kept, base, curvature, selections)


@torch.no_grad()
def _is_base(model: Any) -> bool:
    """Whether all active scales are 1."""
    layers = [module for module in model.modules() if isinstance(module, SurgicalIA3Layer)]
    found = (layer.product(layer.active_adapters) for layer in layers)
    return all(product is None or bool((product[1] == 1).all()) for product in found)


def _curvature(
    runner: SuffixRunner,
    layers: Sequence[SurgicalIA3Layer],
    adapter: str,
    kept: Rows,
    offset: int,
    recipe: Recipe,
    seed: int,
    progress: bool,
) -> tuple[Curvature, tuple[TopDistribution, ...]]:
    """The curvature of both kinds of retained rows, weighted, and the distributions met on the way."""
    distributions: dict[int, TopDistribution] = {}
    parts: list[Curvature] = []
    rows, near = kept.rows, kept.near
    with progress_bar(len(rows), "what to keep", enabled=progress) as bar:
        for chosen, weight in ((range(near), recipe.near_weight), (range(near, len(rows)), 1.0)):

            def keep(i: int, logits: torch.Tensor, first: int = chosen.start) -> None:
                distributions[first + i] = TopDistribution.of(logits)
                bar.update(1)

            indices, own = [offset + i for i in chosen], [rows[i] for i in chosen]
            found = measure_curvature(
                runner,
                layers,
                adapter,
                indices,
                own,
                draws=recipe.draws,
                seed=seed,
                tokens=recipe.pass_tokens,
                on_logits=keep,
            )
            parts.append(weight * found)
    every = merged(distributions)
    return parts[0] + parts[1], tuple(every[i] for i in range(len(rows)))


@contextmanager
def base_of(model: Any) -> Iterator[None]:
    """The base's behaviour: every surgical layer of `model` switched off; they remember what was trainable."""
    layers = [module for module in model.modules() if isinstance(module, SurgicalIA3Layer)]
    try:
        for layer in layers:
            layer.enable_adapters(False)
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


@torch.no_grad()
def _distributions(
    runner: SuffixRunner, rows: tuple[EncodedAnswer, ...], offset: int, batch_size: int = 32
) -> Iterator[TopDistribution]:
    for start in range(0, len(rows), batch_size):
        chunk = rows[start : start + batch_size]
        spans = [span(row) for row in chunk]
        logits = runner.logits([offset + start + i for i in range(len(chunk))], spans)
        for part in logits.split([stop - begin for begin, stop in spans]):
            yield TopDistribution.of(part)
