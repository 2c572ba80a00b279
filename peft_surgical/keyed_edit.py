"""All of a keyed edit: learn, save, evaluate, and the files that prove it.

Nothing is localized and nothing unlearned first: neurons fire where the subject is named, in layers that are known
before. Each file is complete or absent, as for [`edit`].
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from .architectures import output_projections
from .counts import check_seed, check_text_tokens
from .earlier import Earlier
from .edit_folder import EDIT, WRITTEN, check_command, claimed_for_edit, replacing, save_report, tell_on_card
from .evaluation import evaluate
from .facts import Fact, check_fact
from .keying.keyed import KeyedRecipe, keyed_layers, learn_keyed
from .measuring.states import adapter_state
from .report import Report
from .running.alike import check_alike
from .running.cache import kept_beside
from .running.generation import MAX_NEW_TOKENS
from .running.sharing import by_main
from .staging.placeable import check_bare
from .staging.recipe import check_recipe
from .staging.recipe_files import recorded
from .staging.stage import LEARN, Stage
from .staging.whole_answers import in_sentences
from .texts.lengths import check_fact_fits
from .tuner.unchanged import unchanged_on_failure


def edit_keyed(
    model: Any,
    tokenizer: Any,
    fact: Fact,
    *,
    out: str | os.PathLike[str],
    layers: Sequence[int] | None = None,
    recipe: KeyedRecipe | None = None,
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = True,
    retention_tokens: int = 2048,
    command: str | None = None,
    on: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
) -> Report:
    """Rewrites one fact where its subject is named, and measures what that did; see [`learn_keyed`].

    Args:
        model: A causal language model without adapters; it carries the adapter afterwards, which [`unload`] takes off
            for the next edit. With `on` it is left bare, every weight as it was. It is left in eval mode.
        tokenizer: Its tokenizer.
        fact: The fact.
        out: A folder for the adapter, in its folder `edit`, and the report. Beside it is what [`edit`] keeps there.
        layers: See [`learn_keyed`].
        recipe: See [`learn_keyed`].
        seed: See [`learn_keyed`].
        overwrite: Allow `out` to hold an earlier edit, which is replaced.
        progress: Whether to show progress bars.
        retention_tokens: Tokens of unrelated text to measure on; 0 for none.
        command: The command that does this again, for the report.
        on: See [`edit`]. Neurons that an earlier keyed edit rewrote are left alone.

    Returns:
        The report, also written to `out`, and in short onto the adapter's model card; its stages are `base` and
        `edited`.

    Raises:
        OutputError: As for [`edit`].
        AdapterError: If the model has adapters already, or as for [`edit`] of `on`.
        FactError: If no prompt names the subject, or a prompt and its answer are too long for the model.
        SelectionError: If the model has no such layer, or the subject is not told apart in one.
        ModelError: As for [`learn_keyed`], and as for [`edit`] with `on`.
        ArchitectureError: As for [`learn_keyed`].

    Warns:
        UserWarning: As for [`edit`].
    """
    check_recipe(recipe, KeyedRecipe)
    check_seed(seed)
    check_text_tokens(retention_tokens=retention_tokens)
    check_command(command)
    recipe = recipe or KeyedRecipe()
    check_fact(fact, whole=True)
    check_bare(model, "keyed learning")
    earlier = Earlier.read(on)
    earlier.check_stay(out, WRITTEN)
    earlier.check_model(model)
    told = in_sentences(fact, tokenizer)
    check_fact_fits(model.config, tokenizer, told, answer=MAX_NEW_TOKENS, retained=recipe.retain_tokens)
    layers = list(output_projections(model, keyed_layers(model) if layers is None else layers).values())
    check_alike(model=model, fact=fact, out=str(out), layers=layers, recipe=recipe, seed=seed, on=earlier.below)
    with unchanged_on_failure(model), earlier.folded_into(model), ExitStack() as claim:
        folder = by_main(lambda: claim.enter_context(claimed_for_edit(out, overwrite)))
        claim.enter_context(kept_beside(folder))
        started = time.perf_counter()
        stage = learn_keyed(model, tokenizer, fact, layers=layers, recipe=recipe, seed=seed, progress=progress)
        stage = replace(stage, on=earlier.below)
        by_main(lambda: _save(stage, folder, overwrite))
        seconds = {"learn": round(time.perf_counter() - started, 2)}
        report = evaluate(
            stage.model,
            tokenizer,
            fact,
            states={"base": adapter_state(stage.model, []), "edited": adapter_state(stage.model, [LEARN])},
            seed=seed,
            retention_tokens=retention_tokens,
            selection={"components": [f"L{layer}.mlp" for layer in layers], "granularity": "keyed"},
            settings={**earlier.settings(command), "recipe": recorded(recipe)},
            seconds=seconds,
            progress=progress,
        )
        report = replace(report, training={LEARN: stage.to_dict()})
        by_main(lambda: save_report(report, folder, None))
        by_main(lambda: tell_on_card(report, folder))
        return report


def _save(stage: Stage, out: Path, overwrite: bool) -> None:
    with replacing(out, overwrite) as folder:
        stage.save(folder / EDIT)
