"""What both stages of an edit keep, worked out once: answers, distributions and the curvature of scales on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ..errors import ModelError, brief
from ..facts import TrainingFact
from ..profiling import phase
from ..progress import progress_bar
from ..running.cache import kept_tensors
from ..running.suffix import Entering, SuffixRunner
from ..texts.lengths import fits
from ..texts.prompts import EncodedAnswer, answer_ids, encode
from ..texts.topics import states_fact, topic_prompts
from ..tuner import SurgicalIA3Layer
from ..tuner.unchanged import base_of
from .contrast import with_contrast
from .curvature import Curvature, measure_curvature
from .measured import Measured
from .origins import Origin
from .recipe import Recipe
from .retain import TopDistribution, base_answers, carried_prompts, retain_prompts


@dataclass(frozen=True)
class Rows:
    """Prompts with the base's own answers.

    Attributes:
        rows: The prompts and answers.
        prompts: The prompts of the rows that are close to the fact. These rows come first; the others are from
            `carried`.
        carried: The rows of all prompts that the package carries. What is measured of them does not depend on the
            fact.
        places: The place in `carried` of each row that is not close to the fact.
    """

    rows: tuple[EncodedAnswer, ...]
    prompts: tuple[str, ...]
    carried: tuple[EncodedAnswer, ...]
    places: tuple[int, ...]

    @property
    def near(self) -> int:
        """How many rows, from the first, are close to the fact."""
        return len(self.prompts)


@dataclass(frozen=True, eq=False)
class Retained:
    """What the stages keep, worked out once for both.

    Attributes:
        kept: Prompts with the base's answers.
        base: The base's distributions at each row's answer.
        curvature: What a change of the scales costs on these rows.
        selections: The scales that the curvature is of.
        entering: What of the rows enters the first layer that trains; None where that is the first of all. A stage
            that begins there, too, does not run the layers below on them again.
        origin: What tells of which fact, tokenizer and base all this is; None where nobody knows.
    """

    kept: Rows
    base: tuple[TopDistribution, ...]
    curvature: Curvature
    selections: Any
    entering: Entering | None = None
    origin: Origin | None = None

    def __repr__(self) -> str:
        # Every token of it would fill pages.
        return f"Retained({len(self.kept.rows)} rows, scales on {len(self.selections)} modules)"


def check_retained(retained: object) -> None:
    """Refuses what no stage has retained, such as the stage itself.

    Raises:
        ModelError: If it is neither a `Retained` nor None.
    """
    if not isinstance(retained, Retained | None):
        raise ModelError(f"retained must be what a stage has as its `retained`, not {brief(retained)}.")


@phase("answers to keep")
def base_rows(
    model: Any,
    tokenizer: Any,
    fact: TrainingFact,
    recipe: Recipe,
    seed: int,
    progress: bool,
    besides: Sequence[str] = (),
) -> Rows:
    """Asks the base, whatever adapters `model` has, the prompts that training keeps.

    Prompts that are made up for any model are left out where they are too long for this one, and those about the
    fact's own names where the base answers with the fact.

    Args:
        model: The base, or a model whose adapters can be switched off.
        tokenizer: Its tokenizer.
        fact: The fact.
        recipe: Says how many, and how long the answers are.
        seed: As for [`retain_prompts`].
        progress: Whether to show progress bars.
        besides: More prompts about the fact's own names, such as [`relation_prompts`].
    """

    def fitting(prompts: Sequence[str]) -> list[str]:
        return [p for p in prompts if fits(model.config, len(encode(tokenizer, p)) + recipe.retain_tokens)]

    with base_of(model):
        fact = with_contrast(model, tokenizer, fact)
    found = retain_prompts(fact, recipe.neighbours, recipe.general, seed, besides, recipe.everyday)
    near, far = map(fitting, found)
    every = fitting(carried_prompts(recipe.general, recipe.everyday))
    with base_of(model):
        # Apart, so that what is asked on behalf of any fact is the same question on disk.
        answers, carried = (
            base_answers(model, tokenizer, prompts, max_new_tokens=recipe.retain_tokens, progress=progress)
            for prompts in (near, every)
        )
    made = {*topic_prompts(fact), *besides}
    kept = [
        (prompt, row)
        for prompt, row in zip(near, answers, strict=True)
        if not (prompt in made and states_fact(fact, prompt, tokenizer.decode(answer_ids(row))))
    ]
    place = {prompt: i for i, prompt in enumerate(every)}
    places = tuple(place[prompt] for prompt in far)
    rows = (*(row for _, row in kept), *(carried[i] for i in places))
    return Rows(rows, tuple(prompt for prompt, _ in kept), tuple(carried), places)


@phase("curvature")
def measure_retained(
    runner: SuffixRunner,
    layers: Sequence[SurgicalIA3Layer],
    adapter: str,
    selections: Any,
    kept: Rows,
    earlier: Retained | None,
    recipe: Recipe,
    *,
    origin: Origin,
    offset: int,
    seed: int,
    progress: bool,
) -> Retained:
    """Reads the kept rows: the base's distributions, and the curvature of an adapter's scales.

    Args:
        runner: Has taken in the rows, from index `offset` on; takes in what else the package carries. Of adapters only
            this one acts in its model, with scales of 1.
        layers: Those with the adapter's scales.
        adapter: Its name.
        selections: What it scales.
        kept: The rows.
        earlier: What an earlier stage on the same base measured; what still holds is not measured again.
        recipe: Gives the weight of near rows, the draws and how many tokens go through the model at once.
        origin: What the rows are from.
        offset: See `runner`.
        seed: Draws the signs that the curvature is estimated with.
        progress: Whether to show a progress bar.
    """
    if earlier is not None and earlier.selections == selections:
        return earlier
    found = _measured(runner, layers, adapter, selections, kept, offset, recipe, seed, progress)
    # A stage begins at scales 1, so that its model is the base.
    base = found.base if earlier is None else earlier.base
    entering = runner.entering(range(offset, offset + len(kept.rows)))
    return Retained(kept, base, found.curvature, selections, entering, origin)


def _measured(
    runner: SuffixRunner,
    layers: Sequence[SurgicalIA3Layer],
    adapter: str,
    selections: Any,
    kept: Rows,
    offset: int,
    recipe: Recipe,
    seed: int,
    progress: bool,
) -> Measured:
    """The curvature of both kinds of retained rows, weighted, and the distributions met on the way."""
    options = {"draws": recipe.draws, "seed": seed, "tokens": recipe.pass_tokens}
    sample = partial(measure_curvature, runner, layers, adapter)
    far = range(kept.near, len(kept.rows))
    with progress_bar(kept.near + len(kept.carried), "what to keep", enabled=progress) as bar:

        def measure(indices: Sequence[int], rows: Sequence[EncodedAnswer]) -> Measured:
            return Measured.sampled(sample, indices, rows, on_row=lambda: bar.update(1), **options)

        def measure_carried() -> Measured:
            known = dict(zip(kept.places, (offset + i for i in far), strict=True))
            missing = [i for i in range(len(kept.carried)) if i not in known]
            known |= dict(zip(missing, runner.add([kept.carried[i].read for i in missing]), strict=True))
            return measure([known[i] for i in range(len(kept.carried))], kept.carried)

        near = measure([offset + i for i in range(kept.near)], kept.rows[: kept.near])
        if kept.carried:
            asked = {
                "rows": [[row.answer_start, *row.ids] for row in kept.carried],
                "selections": selections,
                # What does not depend on how many rows run at once.
                "settings": {name: value for name, value in options.items() if name != "tokens"},
                # How much of them runs once changes how sums round.
                "shared": len(runner.prefix),
            }
            model = runner.model
            tensors = kept_tensors(model, "curvature", asked, lambda: measure_carried().to_tensors(), alone=base_of)
            carried = Measured.of_tensors(tensors, runner.device)
        else:
            carried = measure_carried()
        # What is on disk, or another process's, has not passed by.
        bar.total = bar.n
        bar.refresh()
    carried = carried.select(kept.places)
    return Measured(recipe.near_weight * near.curvature + carried.curvature, (*near.base, *carried.base))
