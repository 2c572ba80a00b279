"""Which facts of several are edited already: in a folder with a finished edit that would be made the same again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..adapters.bases import cached_commit, revision_of
from ..adapters.lineage import Lineage
from ..choice import EDIT_PROJECTIONS
from ..edit_folder import EDIT, PAGE, REPORT, TOGETHER, check_edit_folder
from ..errors import OutputError, ReportError
from ..facts import Fact
from ..keying.keyed import keyed_layers
from ..report import Report
from ..sites import ModelShape
from ..writing.files import check_output


@dataclass(frozen=True)
class Settings:
    """How all edits are made.

    Attributes:
        keyed: Whether they are keyed edits; else by scales.
        recipe: As a report records it.
        scorers: What edits by scales are localized with.
        seed: The seed.
        retention_tokens: Tokens of unrelated text to measure on.
    """

    keyed: bool
    recipe: Mapping[str, Any]
    scorers: Sequence[str]
    seed: int
    retention_tokens: int


@dataclass(frozen=True)
class Planned:
    """A fact, and whether its edit is there.

    Attributes:
        name: What its folder is called.
        fact: The fact.
        folder: The folder.
        finished: The report of the edit that is taken as it is; None where one is to be made.
        settled: Whether it is known what that was made on top of, as all edits before it are there, too.
    """

    name: str
    fact: Fact
    folder: Path
    finished: Report | None
    settled: bool = True


def check_folder(out: Path, names: Sequence[str], overwrite: bool, how: str = "allow overwriting it") -> None:
    """Refuses an output folder that would lose something.

    Args:
        out: The folder.
        names: Those of the facts' folders.
        overwrite: Allow it to hold something else, which stays.
        how: What a person is told to do to allow it.

    Raises:
        OutputError: If it cannot be written, is that of one edit, or holds what is none of these edits while
            `overwrite` is false.
    """
    check_output(out, overwrite=True)
    if (out / REPORT).exists():
        raise OutputError(f"{out} is the folder of one edit, with its report; name another output folder.")
    check_edit_folder(out, (EDIT, TOGETHER))
    if overwrite or not out.is_dir():
        return
    own = {*names, EDIT, TOGETHER} if (out / TOGETHER).exists() else {*names}
    if others := sorted(p.name for p in out.iterdir() if p.name not in own and not p.name.startswith(".")):
        raise OutputError(
            f"{out} holds {others[0]}, which is none of these edits; name another output folder or {how}."
        )


def planned(
    out: Path,
    facts: Sequence[Fact],
    names: Sequence[str],
    settings: Settings,
    *,
    overwrite: bool,
    model: Any = None,
    how: str = "allow overwriting it",
) -> list[Planned]:
    """Which edits are there, as far as it can be told before any is made.

    Args:
        out: The output folder.
        facts: The facts.
        names: Those of their folders.
        settings: How they are edited.
        overwrite: Allow that other edits are replaced.
        model: The base; not compared when None.
        how: What a person is told to do to allow it.

    Raises:
        OutputError: As [`check_folder`] and [`finished`].
    """
    check_folder(out, names, overwrite, how)
    found: list[Planned] = []
    # On top of what a later one was made is known for as long as all before it are there.
    on: list[str | None] | None = []
    for fact, name in zip(facts, names, strict=True):
        folder = out / name
        report = finished(folder, fact, settings, on, overwrite=overwrite, model=model, how=how)
        found.append(Planned(name, fact, folder, report, on is not None))
        on = [*on, Lineage.of(folder / EDIT).digest] if report is not None and on is not None else None
    return found


def finished(
    folder: Path,
    fact: Fact,
    settings: Settings,
    on: Sequence[str | None] | None,
    *,
    overwrite: bool,
    model: Any = None,
    how: str = "allow overwriting it",
) -> Report | None:
    """The report of a finished edit that would be made the same again; None where there is none, or another one that
    may be replaced.

    Args:
        folder: The folder of a fact.
        fact: The fact.
        settings: How it is edited.
        on: The digests of the edits before it; not compared when None.
        overwrite: Allow that another edit is replaced.
        model: The base; not compared when None.
        how: What a person is told to do to allow it.

    Raises:
        OutputError: If something else is there while `overwrite` is false, or may not be replaced at all.
    """
    check_output(folder, overwrite=True)
    if not folder.is_dir() or not any(folder.iterdir()):
        return None
    check_edit_folder(folder)
    try:
        report = Report.load(folder / REPORT)
    except ReportError:
        report = None
    whole = report is not None and (folder / PAGE).is_file() and Lineage.of(folder / EDIT).digest is not None
    if report is None or not whole:
        fault = "holds no finished edit"
    elif other := _other(report, fact, settings, on, model):
        fault = f"holds an edit with {other}"
    else:
        return report
    if overwrite:
        return None
    raise OutputError(f"{folder} {fault}, so it is not taken for this one; name another output folder or {how}.")


def _other(report: Report, fact: Fact, settings: Settings, on: Sequence[str | None] | None, model: Any) -> str | None:
    """What an edit has otherwise than the one that would be made, in words, if anything."""
    found, said = report.settings, report.selection
    keyed = said.get("granularity") == "keyed"
    recipe = json.loads(json.dumps(settings.recipe))
    if report.fact != fact:
        return "another content of the fact"
    if keyed != settings.keyed:
        return f"another kind of edit ({'keyed' if keyed else 'by scales'})"
    if found.get("recipe") != recipe:
        return "another recipe"
    if report.seed != settings.seed:
        return f"another seed ({report.seed})"
    if found.get("retention_tokens") != settings.retention_tokens:
        return "another amount of unrelated text to measure on"
    if not keyed and (found.get("scorers"), found.get("projections"), said.get("granularity")) != (
        [*settings.scorers],
        [*EDIT_PROJECTIONS],
        "component",
    ):
        return "other scorers, projections or granularity"
    if model is not None and (other := _other_base(report, keyed, model)):
        return other
    if on is not None and [one.get("sha256") for one in found.get("on", ())] != [*on]:
        return "other edits before it (a fact that was added or mended stands last)"
    return None


def _other_base(report: Report, keyed: bool, model: Any) -> str | None:
    name = str(getattr(model.config, "_name_or_path", ""))
    revision = revision_of(model) or cached_commit(name)
    dtype = str(model.dtype).removeprefix("torch.")
    if (report.model, report.settings.get("revision")) != (name, revision or None):
        return "another base model"
    if report.dtype != dtype:
        return f"another dtype ({report.dtype})"
    layers = keyed_layers(model) if keyed else range(ModelShape.from_config(model.config).n_layers)
    if {*report.selection.get("components", ())} != {f"L{layer}.mlp" for layer in layers}:
        return "other components"
    return None
