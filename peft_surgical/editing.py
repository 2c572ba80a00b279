"""All of it: localize, unlearn, learn, stack, evaluate, and the files that prove it.

Each file is complete or absent: if a run is interrupted, what is in the folder can be used.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from .adapters.lineage import Lineage
from .architectures import check_causal
from .carried import faithfulness as measure
from .choice import EDIT_PROJECTIONS, NEURON_PROJECTIONS, check_choice, check_places, choose, ranked
from .counts import check_seed, check_text_tokens
from .earlier import Earlier
from .edit_folder import (
    EDIT,
    PICTURE,
    TABLE,
    WRITTEN,
    check_command,
    claimed_for_edit,
    replacing,
    save_report,
    tell_on_card,
)
from .errors import MissingPackageError, ModelError
from .evaluation import evaluate
from .facts import Fact, check_fact
from .localization import localize
from .localizing.plots import plot_localization
from .localizing.results import Localization
from .measuring.states import adapter_state
from .report import Report
from .running.alike import check_alike
from .running.cache import kept_beside
from .running.generation import MAX_NEW_TOKENS
from .running.sharing import by_main
from .selection import Selection, listed, sure_components
from .sites import ModelShape
from .stacking import stack_above
from .stages import RECIPES, learn, unlearn
from .staging.placeable import check_free, check_whole
from .staging.recipe import Recipe, check_recipe
from .staging.recipe_files import recorded
from .staging.stage import LEARN, UNLEARN, Stage
from .staging.whole_answers import in_sentences
from .texts.lengths import check_fact_fits
from .tuner import SurgicalIA3Config
from .tuner.resolve import Granularity
from .tuner.unchanged import unchanged_on_failure
from .wrapped import check_module

EDIT_SCORERS = ("attribution", "lookup")
"""The first ranks, as exact patching would (docs/measurements/speed.md). The other one, which sees where the fact is
looked up, takes no pass of its own."""


def edit(
    model: Any,
    tokenizer: Any,
    fact: Fact,
    *,
    out: str | os.PathLike[str],
    scorers: Sequence[str] | None = None,
    localization: Localization | None = None,
    top: int | None = None,
    heads: int | None = None,
    mlps: int | None = None,
    budget: int | None = None,
    selection: Selection | None = None,
    granularity: Granularity = "component",
    neurons: int | None = None,
    projections: Sequence[str] | None = None,
    recipe: Recipe | Mapping[str, Recipe] | None = None,
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = True,
    faithfulness: bool = False,
    retention_tokens: int = 2048,
    command: str | None = None,
    on: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
) -> Report:
    """Rewrites one fact and measures what that did: localizes, unlearns, learns, stacks and evaluates.

    The two stages are those of "Surgical Knowledge Rewrite in Compact LLMs" (arXiv 2508.07075), trained otherwise: see
    [`unlearn`] and [`learn`].

    Args:
        model: A causal language model without adapters; it carries the two adapters afterwards, which [`unload`] takes
            off for the next edit. With `on` it is left bare, every weight as it was. It is left in eval mode.
        tokenizer: Its tokenizer.
        fact: The fact.
        out: A folder for the localization, the adapters and the report. Beside it `.peft_surgical` keeps what the base
            answers, for the next edit.
        scorers: Scorers to localize with, of which the first ranks; `attribution` and `lookup` when None.
        localization: What localizing gave earlier, which is then not done again; the first of its scorers ranks where
            `scorers` is None. The report counts the time that its scorers noted. What it says a selection carries is
            kept only if that is the one that is scaled, without `on`.
        top: How many components to scale, best first, heads and MLPs alike. The MLPs of all layers when neither it nor
            another limit is given.
        heads: Attention heads at most; alone, no MLPs. See `Localization.top`.
        mlps: MLPs at most; alone, no heads.
        budget: Scales at most, counted where `projections` and `neurons` put them. Not for the granularity `module`.
        selection: Components to scale, instead of the best-scored ones; then there are no such limits.
        granularity: `component`, `module` or `neuron`, see [`SurgicalIA3Config`].
        neurons: For `neuron`: how many of each MLP's neurons to scale, best first.
        projections: Where heads and MLPs are scaled, see [`SurgicalIA3Config`]; when None, `z` and `in`, or `z`,
            `post` and `pre` where some neurons are chosen. Not used by the granularity `module`.
        recipe: One for both stages, or a mapping from `unlearn` and `learn` to the recipe of each. A stage for which
            none is given has its own of [`RECIPES`]. Both keep what the recipe of `unlearn` chooses, see `retained` of
            [`learn`].
        seed: For corruption, training order and any scorer that draws.
        overwrite: Allow `out` to hold an earlier edit, which is replaced once both stages are trained.
        progress: Whether to show progress bars.
        faithfulness: Also measure what the selection carries together, as [`faithfulness`] does, for the report.
        retention_tokens: Tokens of unrelated text to measure on; 0 for none.
        command: The command that does this again, for the report.
        on: Folders of the adapters of earlier edits of this base, in their order, to make this one on top of. They are
            folded into the weights meanwhile, so that they act in localization, training and the report's `base`. The
            new adapters are for the base as it was, beside these: [`stack`] or [`merge`] all of them, or let all act.

    Returns:
        The report, also written to `out`, and in short onto the model card of the adapter in its folder `edit`.

    Raises:
        OutputError: If `out` is not empty and `overwrite` is false, or has a folder of the name of an adapter of an
            edit that holds something else, or is a folder of `on`, or that of several edits.
        AdapterError: If the model has an adapter named `unlearn` or `learn`, or lies within a PEFT model, whose
            adapters it carries: give it unloaded. If a folder of `on` cannot be read or folded in, is given twice, was
            made for another base, was trained on top of an adapter that does not stand before it, or is in the weights
            already; of that a merged checkpoint's `peft_surgical.json` is believed.
        FactError: If no token distinguishes the two answers, or a prompt and its answer are too long for the model.
        ScorerError: If a scorer is not installed or has no such option, or all of them failed.
        SelectionError: If `selection` or `localization` is not of this model, `localization` is not of this fact or
            has no scores by the first of `scorers`, or limits are given beside a selection; if nothing is within the
            limits, the first scorer failed, which is to rank, or `neurons`, `granularity` and `budget` disagree.
        ModelError: If `seed` is no whole number, the model has other adapters, is quantized or gives logits that are
            not finite, weights that would be scaled are offloaded, or any where no `localization` is given, or
            `recipe` names another stage; with `on` if it has any adapters, or weights that are quantized, offloaded or
            spread over processes.
        ArchitectureError: If the model is no causal language model, or its architecture is not known.

    Warns:
        UserWarning: If the weights' dtype rounds away a part of what `on` changes.
    """
    check_fact(fact, whole=True)
    check_seed(seed)
    check_text_tokens(retention_tokens=retention_tokens)
    check_command(command)
    check_module(model)
    check_causal(model)
    check_whole(model)
    check_free(model, RECIPES)
    earlier = Earlier.read(on)
    earlier.check_stay(out, WRITTEN)
    earlier.check_model(model)
    limits = {"top": top, "heads": heads, "mlps": mlps, "budget": budget}
    if projections is not None:
        projections = listed(projections)
    check_choice(selection, granularity, neurons, projections, **limits)
    if selection is not None:
        selection.check(ModelShape.from_config(model.config))
    if localization is not None:
        localization = ranked(localization, model, fact, scorers)
    if projections is None:
        some = neurons is not None or (selection is not None and selection.neurons is not None)
        projections = NEURON_PROJECTIONS if some else EDIT_PROJECTIONS
    if sure := sure_components(selection, **limits):
        check_places(model, selection or Selection(sure), granularity, neurons, projections)
    recipes = recipes_of(recipe)
    kept, told = recipes[UNLEARN].retain_tokens, in_sentences(fact, tokenizer)
    check_fact_fits(model.config, tokenizer, told, answer=MAX_NEW_TOKENS, retained=kept)
    check_alike(model=model, fact=fact, out=str(out), seed=seed, on=earlier.below)
    with unchanged_on_failure(model), earlier.folded_into(model), ExitStack() as claim:
        out = by_main(lambda: claim.enter_context(claimed_for_edit(out, overwrite)))
        claim.enter_context(kept_beside(out))
        # An earlier edit stays until there is another one.
        replaced = claim.enter_context(ExitStack())
        folder = by_main(lambda: replaced.enter_context(replacing(out, overwrite)))
        # Whenever it was done, it is a part of what the edit took.
        spent = {} if localization is None else {"localize": localization.seconds}
        started = time.perf_counter()

        def lap(name: str) -> None:
            nonlocal started
            now = time.perf_counter()
            spent[name] = round(spent.get(name, 0.0) + now - started, 2)
            started = now

        names = EDIT_SCORERS if scorers is None else scorers
        found = localization or localize(model, tokenizer, fact, names, seed=seed, progress=progress)
        # Processes on unlike devices may round to another ranking.
        localization = by_main(lambda: found)
        selection = choose(
            localization, selection, granularity=granularity, neurons=neurons, projections=projections, **limits
        )
        config = SurgicalIA3Config.from_localization(
            selection, granularity=granularity, projections=projections, task_type="CAUSAL_LM"
        )
        config.resolve(model.config)
        lap("localize")
        carried = {}
        if faithfulness:
            chosen = selection
            measured = by_main(lambda: measure(model, tokenizer, fact, chosen, seed=seed, progress=progress))
            localization = replace(localization, faithfulness=measured)
            # The report has the selection already.
            carried = {"faithfulness": {k: v for k, v in measured.to_dict().items() if k != "selection"}}
            lap("faithfulness")
        elif (known := localization.faithfulness) is not None and (earlier.below or known.selection != selection):
            # It is of another selection, or of the weights without what this edit is made on top of.
            localization = replace(localization, faithfulness=None)
        picture = by_main(lambda: _start_output(folder, localization, selection))

        first = unlearn(model, tokenizer, fact, config, recipe=recipes[UNLEARN], seed=seed, progress=progress)
        first = replace(first, on=earlier.below)
        by_main(lambda: first.save(folder / UNLEARN))
        lap("unlearn")
        second = learn(
            first.model,
            tokenizer,
            fact,
            recipe=recipes[LEARN],
            retained=first.retained,
            seed=seed,
            progress=progress,
        )
        second = replace(second, on=earlier.below)
        by_main(lambda: _save_edit(second, folder))
        by_main(replaced.close)
        lap("learn")
        training = {UNLEARN: first.to_dict(), LEARN: second.to_dict()}
        edited = second.model
        # With what they kept, for which evaluating needs the room.
        del first, second

        states = {
            "base": adapter_state(edited, []),
            "unlearned": adapter_state(edited, [UNLEARN]),
            "edited": adapter_state(edited, [UNLEARN, LEARN]),
        }
        scales = sum(coordinates.n for coordinates in config.coordinates.values())
        report = evaluate(
            edited,
            tokenizer,
            fact,
            states=states,
            seed=seed,
            retention_tokens=retention_tokens,
            selection={**selection.to_dict(), "granularity": granularity, "scales": scales, **carried},
            settings={
                **earlier.settings(command),
                "scorers": [*localization.scorers],
                # Whole modules are scaled where PEFT's (IA)^3 scales them.
                **({} if granularity == "module" else {"projections": [*projections]}),
                "recipe": {stage: recorded(own) for stage, own in recipes.items()},
            },
            seconds=spent,
            progress=progress,
        )
        report = replace(report, training=training)
        by_main(lambda: save_report(report, out, picture))
        by_main(lambda: tell_on_card(report, out))
        return report


def recipes_of(given: Recipe | Mapping[str, Recipe] | None) -> dict[str, Recipe]:
    """Each stage's recipe; its own where none is given.

    Raises:
        ModelError: If something else is given, or a recipe of a stage that there is not.
    """
    if given is not None and not isinstance(given, Mapping):
        check_recipe(given, Recipe)
        return dict.fromkeys(RECIPES, given)
    given = given or {}
    if unknown := sorted(set(given) - set(RECIPES)):
        raise ModelError(
            f"there is no stage {unknown[0]!r} to give a recipe for; the stages are {' and '.join(RECIPES)}."
        )
    recipes = {**RECIPES, **given}
    for recipe in recipes.values():
        check_recipe(recipe, Recipe)
    return recipes


def _start_output(out: Path, localization: Localization, selection: Selection) -> bytes | None:
    """Writes the localization; returns its picture, without which an edit does where matplotlib is not installed."""
    localization.save(out / TABLE, selection)
    try:
        plot_localization(localization, selection, out / PICTURE)
    except MissingPackageError:
        return None
    return (out / PICTURE).read_bytes()


def _save_edit(learned: Stage, out: Path) -> None:
    learned.save(out / LEARN)
    below = [Lineage(digest) for _, digest in learned.on]
    stack_above([out / UNLEARN, out / LEARN], out / EDIT, below)
