"""Many facts in one model: each edited on top of those before it, and all of them measured together.

Each edit is a folder as `edit_keyed` or `edit` writes it, whole or absent, so that a run that was interrupted goes on
where it was.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .adapters.lineage import Lineage, identities
from .architectures import check_causal
from .counts import check_seed, check_text_tokens
from .dtypes import dtype_name
from .edit_folder import EDIT, TOGETHER, WRITTEN, check_command, claimed_for_edit, replacing
from .editing import EDIT_SCORERS, edit, recipes_of
from .errors import ArchitectureError, ModelError, NotFiniteError, OutputError, SurgicalError, brief
from .evaluation import Answers, answer_fact, base_settings, versions
from .facts import Fact
from .folding import check_rewritable
from .joint.counting import Counted, counted, hits, pooled, rates
from .joint.fact_set import check_facts, folder_names
from .joint.resuming import Planned, Settings, made_on, planned
from .keyed_edit import edit_keyed
from .keying.keyed import KeyedRecipe
from .measuring.attached import attach
from .measuring.retention import measure_retention
from .profiling import phase
from .report import Report
from .running.cache import kept_beside
from .running.generation import MAX_NEW_TOKENS
from .running.precision import without_autocast
from .running.sharing import is_several
from .stacking import stack
from .staging.recipe import Recipe, check_recipe
from .staging.recipe_files import recorded
from .together import AFTER, ALL, BASE, FactTogether, Together
from .tuner.unchanged import trainable_kept, unchanged_on_failure
from .tuner.unloading import unload
from .wrapped import check_module
from .writing.claims import claimed
from .writing.files import as_output_error, partial_directory

# Of these the next fact says the same.
_OF_THE_MODEL = (ArchitectureError, NotFiniteError)


@dataclass(frozen=True)
class _Done:
    """A fact whose edit is there."""

    name: str
    fact: Fact
    adapter: Path
    digest: str | None
    report: Report


def edit_all(
    model: Any,
    tokenizer: Any,
    facts: Sequence[Fact],
    *,
    out: str | os.PathLike[str],
    keyed: bool = True,
    recipe: KeyedRecipe | Recipe | Mapping[str, Recipe] | None = None,
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = True,
    retention_tokens: int = 2048,
    command: str | None = None,
    tell: Callable[[str], None] | None = None,
) -> Together:
    """Rewrites several facts, each on top of those before it, and measures each with all edits acting.

    A fact's folder in `out` is called as its file, or else as its subject. A finished edit there that would be made
    the same again is taken as it is, so that the same call goes on where another one was interrupted, and facts may
    be added at the end. A fact that cannot be edited is left out, and the next ones are edited without it.

    Args:
        model: A causal language model without adapters; it is left bare, every weight as it was, in eval mode.
        tokenizer: Its tokenizer.
        facts: The facts, in the order in which they are edited.
        out: A folder for the folders of all edits, as [`edit_keyed`] or [`edit`] writes them, one adapter of all of
            them in its folder `edit`, and `together.json`. Beside it is what [`edit`] keeps there.
        keyed: Edit by [`edit_keyed`]; else by [`edit`].
        recipe: How to train, as for [`edit_keyed`], or as for [`edit`].
        seed: As for [`edit`].
        overwrite: Allow `out` to hold other edits of these names, which are replaced, and removed where their fact
            cannot be edited. What would be made the same again is taken nevertheless.
        progress: Whether to show progress bars.
        retention_tokens: Tokens of unrelated text to measure on; 0 for none.
        command: The command that does this again, for the reports.
        tell: Called with a line about each fact once it is edited, taken or left out.

    Returns:
        What was measured with all edits acting, also written to `out`, and onto the model card of the adapter of all.

    Raises:
        FactError: If there is no fact, one is no whole fact, or two are the same, or ask the same of one subject; also
            if none can be edited and this is why.
        OutputError: If `out` cannot be written, is that of one edit, or holds other edits or something else while
            `overwrite` is false; also once a fact is edited that could not be before, if later ones were made without
            it: it is not written.
        ModelError: If the model has adapters, or weights that are quantized, offloaded or spread over processes, its
            logits are not finite, several processes share their work, `seed` is no whole number, or `recipe` is of
            another kind.
        ArchitectureError: If the model is no causal language model, or its architecture is not known.
        AdapterError: If no fact can be edited and this is why.
        SelectionError: If no fact can be edited and this is why.

    Warns:
        UserWarning: As [`edit`] or [`edit_keyed`] of each fact.
    """
    check_module(model)
    listed = check_facts(facts)
    check_seed(seed)
    check_text_tokens(retention_tokens=retention_tokens)
    check_command(command)
    settings, recipes = settings_of(keyed, recipe, seed, retention_tokens)
    if not isinstance(out, str | os.PathLike):
        raise OutputError(f"the output must be the path of a folder, not {brief(out)}.")
    if is_several():
        raise ModelError("many facts are edited in one process; leave shared_work, or edit one by one.")
    check_causal(model)
    check_rewritable(model, "an edit on top of others", "edit it on top of others")
    where = Path(os.path.expanduser(out))
    names = folder_names(listed)
    failed: dict[str, Exception] = {}
    with claimed(where, overwrite=True) as folder, kept_beside(folder), trainable_kept([*model.parameters()]):
        plans = planned(folder, listed, names, settings, overwrite=overwrite, model=model, tokenizer=tokenizer)
        options: dict[str, Any] = {"seed": seed, "retention_tokens": retention_tokens, "progress": progress}
        options |= {"recipe": recipe, "command": command}
        done: list[_Done] = []
        for number, plan in enumerate(plans, 1):
            above = None if overwrite else next((later for later in plans[number:] if later.finished), None)
            try:
                one, taken = _edited(model, tokenizer, plan, done, settings, above, options)
            except (OutputError, *_OF_THE_MODEL):
                raise
            except SurgicalError as error:
                failed[plan.name] = error
                line = f"cannot be edited and is left out: {error}"
            else:
                done.append(one)
                line = f"{'is there already. ' if taken else ''}{one.report.verdict()}"
            if tell is not None:
                tell(f"{number} of {len(plans)}, {plan.name}: {line}")
        if not done:
            name, first = next(iter(failed.items()))
            raise type(first)(f"no fact could be edited; {name}: {first}") from first
        for plan in plans:
            if overwrite and plan.name in failed:
                _remove(plan.folder)
        with unchanged_on_failure(model), replacing(folder, True, (EDIT, TOGETHER)) as beside:
            stack([one.adapter for one in done], beside / EDIT)
            together = _measured(
                model,
                tokenizer,
                beside / EDIT,
                done,
                counted(model, tokenizer, [one.fact for one in done], recipes),
                settings,
                {name: str(error) for name, error in failed.items()},
                command,
                progress,
            )
            unload(model)
            stack([one.adapter for one in done], beside / EDIT, card=together.to_markdown(), overwrite=True)
            together.save(beside / TOGETHER)
        return together


def settings_of(
    keyed: bool,
    recipe: KeyedRecipe | Recipe | Mapping[str, Recipe] | None,
    seed: int,
    retention_tokens: int,
) -> tuple[Settings, list[Recipe]]:
    """How all edits are made, to tell whether one would be made the same again, and the recipes that this is.

    Raises:
        ModelError: If a recipe of another kind is given.
    """
    if keyed:
        check_recipe(recipe, KeyedRecipe)
        own = recipe if isinstance(recipe, KeyedRecipe) else KeyedRecipe()
        return Settings(True, recorded(own), (), seed, retention_tokens), [own]
    if isinstance(recipe, KeyedRecipe):
        check_recipe(recipe, Recipe)
    stages = recipes_of(recipe)
    every = {stage: recorded(one) for stage, one in stages.items()}
    return Settings(False, every, EDIT_SCORERS, seed, retention_tokens), [*stages.values()]


def _edited(
    model: Any,
    tokenizer: Any,
    plan: Planned,
    done: Sequence[_Done],
    settings: Settings,
    above: Planned | None,
    options: Mapping[str, Any],
) -> tuple[_Done, bool]:
    """A fact's edit, and whether it was there already.

    Raises:
        OutputError: If it can be edited, and `above` is a finished edit of a later fact, which was made without it.
    """
    report, on = plan.finished, [one.adapter for one in done]
    taken = report is not None and made_on(report) == [one.digest for one in done]
    if report is None or not taken:
        with partial_directory(plan.folder, plan.folder.parent) as scratch:
            function = edit_keyed if settings.keyed else edit
            made = scratch / plan.name
            report = function(model, tokenizer, plan.fact, out=made, on=on, **options)
            # Without any below it, it stays on the model.
            unload(model)
            if above is not None:
                raise OutputError(
                    f"{above.folder} holds an edit that was made without {plan.name}, which is not written; a fact"
                    " that was added or mended stands last."
                )
            _put(made, plan.folder)
    adapter = plan.folder / EDIT
    return _Done(plan.name, plan.fact, adapter, Lineage.of(adapter).digest, report), taken


def _put(made: Path, folder: Path) -> None:
    """Puts a whole edit in its place, where another one may be, and files of somebody's."""
    if not folder.exists():
        with as_output_error(folder):
            os.rename(made, folder)
        return
    with claimed_for_edit(folder, True), replacing(folder, True) as into:
        for name in WRITTEN:
            if (made / name).exists():
                os.rename(made / name, into / name)


def _remove(folder: Path) -> None:
    """Removes an earlier edit of a fact that cannot be edited any more, which is none of these; not files of
    somebody's."""
    if not folder.is_dir():
        return
    with claimed_for_edit(folder, True), replacing(folder, True):
        pass
    with suppress(OSError):
        folder.rmdir()


@phase("together")
def _measured(
    model: Any,
    tokenizer: Any,
    adapter: Path,
    done: Sequence[_Done],
    counts: Sequence[Counted],
    settings: Settings,
    failed: Mapping[str, str],
    command: str | None,
    progress: bool,
) -> Together:
    """Puts the adapter of all edits on the model, and asks it and the bare base all facts."""
    started = time.perf_counter()
    edited, states = attach(model, [adapter])
    named = {BASE: states["base"], ALL: states["edited"]}
    given: dict[str, list[Answers]] = {}
    with without_autocast(edited):
        for name, state in named.items():
            with state():
                given[name] = [
                    answer_fact(edited, tokenizer, one.fact, progress=progress, name=f"{one.name} {name}")
                    for one in done
                ]
        unrelated = measure_retention(edited, tokenizer, named, tokens=settings.retention_tokens, progress=progress)
    told: list[FactTogether] = []
    for place, (one, own, who) in enumerate(zip(done, counts, identities([one.adapter for one in done]), strict=True)):
        answers: dict[str, Mapping[str, Sequence[str]]] = {
            BASE: _texts(given[BASE][place]),
            AFTER: {kind: one.report.answers["edited"][kind] for kind in ("held_out", "controls")},
            ALL: _texts(given[ALL][place]),
        }
        stages = {name: rates([hits(one.fact, own, said, answers[BASE])]) for name, said in answers.items()}
        told.append(FactTogether(one.name, one.fact, who, stages, own.left_out, answers))
    facts = [one.fact for one in done]
    return Together(
        facts=tuple(told),
        pooled={
            state: pooled(facts, counts, [one.answers[state] for one in told], [one.answers[BASE] for one in told])
            for state in (BASE, AFTER, ALL)
        },
        unrelated=unrelated[ALL],
        failed=failed,
        model=str(getattr(model.config, "_name_or_path", "")),
        dtype=dtype_name(model.dtype),
        seed=settings.seed,
        versions=versions(),
        settings={
            **({"command": command} if command else {}),
            "keyed": settings.keyed,
            "recipe": dict(settings.recipe),
            "max_new_tokens": MAX_NEW_TOKENS,
            "retention_tokens": settings.retention_tokens,
            **base_settings(edited, tokenizer),
        },
        seconds={
            # Also of those that an earlier run made: what stands beside it is of all.
            "edits": round(sum(seconds for one in done for seconds in one.report.seconds.values()), 2),
            "together": round(time.perf_counter() - started, 2),
        },
    )


def _texts(given: Answers) -> dict[str, Sequence[str]]:
    return {"held_out": given.held_out, "controls": given.controls}
