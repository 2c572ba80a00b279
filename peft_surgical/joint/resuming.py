"""Which facts of several are edited already: in a folder with a finished edit that would be made the same again."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..adapters.bases import same_model, source_of
from ..adapters.lineage import Lineage
from ..choice import EDIT_PROJECTIONS
from ..dtypes import dtype_name
from ..edit_folder import EDIT, EVALUATION, PAGE, REPORT, TOGETHER, check_edit_folder, is_ours
from ..errors import OutputError, ReportError
from ..evaluation import base_settings
from ..facts import Fact
from ..keying.keyed import keyed_layers
from ..report import Report
from ..running.generation import MAX_NEW_TOKENS
from ..sites import ModelShape
from ..writing.files import check_output, read_json


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
        finished: The report of the edit that is taken as it is, unless those before it turn out to be others; None
            where one is to be made.
    """

    name: str
    fact: Fact
    folder: Path
    finished: Report | None


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
    several = is_ours(out / TOGETHER) or _is_of_all(out, names)
    if (out / REPORT).is_file() and (out / EDIT).exists() and not several:
        raise OutputError(f"{out} is the folder of one edit, with its report; name another output folder.")
    check_edit_folder(out, (EDIT, TOGETHER))
    if overwrite or not out.is_dir():
        return
    own = {*names, EDIT, TOGETHER} if several else {*names}
    if is_ours(out / REPORT):
        # That of one edit stands beside its adapter, so this is of what was evaluated here.
        own |= {*EVALUATION}
    if others := sorted(p.name for p in out.iterdir() if p.name not in own and not p.name.startswith(".")):
        raise OutputError(
            f"{out} holds {others[0]}, which is none of these edits; name another output folder or {how}."
        )


def _is_of_all(out: Path, names: Sequence[str]) -> bool:
    """Whether the adapter in a folder was made of an edit beside it, as one of a run that was killed before it wrote
    what it measured."""
    digests = {Lineage.of(out / name / EDIT).digest for name in names} - {None}
    return not digests.isdisjoint(Lineage.of(out / EDIT).held)


def planned(
    out: Path,
    facts: Sequence[Fact],
    names: Sequence[str],
    settings: Settings,
    *,
    overwrite: bool,
    model: Any = None,
    tokenizer: Any = None,
    how: str = "allow overwriting it",
) -> list[Planned]:
    """Which edits are there, and whether what is to be made leaves them standing, before anything is made.

    Args:
        out: The output folder.
        facts: The facts.
        names: Those of their folders.
        settings: How they are edited.
        overwrite: Allow that other edits are replaced.
        model: The base; not compared when None.
        tokenizer: Its tokenizer, where there is a model.
        how: What a person is told to do to allow it.

    Raises:
        OutputError: As [`check_folder`], or if something else is in a fact's folder while `overwrite` is false, or may
            not be replaced at all.
    """
    check_folder(out, names, overwrite, how)
    base = None if model is None else _Base.of(model, tokenizer, settings.keyed)
    left_out = _left_out(out)
    found: list[Planned] = []
    on: list[str | None] | None = []
    for fact, name in zip(facts, names, strict=True):
        folder = out / name
        report = _finished(folder, fact, settings, on, base, overwrite, how)
        found.append(Planned(name, fact, folder, report))
        if on is None:
            continue
        if report is not None:
            on.append(Lineage.of(folder / EDIT).digest)
        elif overwrite:
            # What comes of it is not known, and may be what later ones were made on top of.
            on = None
        elif left_out is not None and name not in left_out:
            # No later one was made on top of what is new.
            on.append(None)
    return found


def _left_out(out: Path) -> Mapping[str, Any] | None:
    """Which facts an earlier run could not edit, by the names of their folders; None where none came to its end."""
    try:
        failed = read_json(out / TOGETHER).get("failed")
    except (OSError, ValueError):
        return None
    return failed if isinstance(failed, dict) else {}


def made_on(report: Report) -> list[str | None]:
    """The digests of the edits that an edit was made on top of."""
    return [one.get("sha256") for one in report.settings.get("on", ())]


@dataclass(frozen=True)
class _Base:
    """What the report of an edit of a model says of that model."""

    name: str
    source: str
    dtype: str
    components: frozenset[str]
    settings: Mapping[str, Any]

    @classmethod
    def of(cls, model: Any, tokenizer: Any, keyed: bool) -> _Base:
        name = str(getattr(model.config, "_name_or_path", ""))
        layers = keyed_layers(model) if keyed else range(ModelShape.from_config(model.config).n_layers)
        components = frozenset(f"L{layer}.mlp" for layer in layers)
        dtype = dtype_name(model.dtype)
        return cls(name, source_of(model) or name, dtype, components, base_settings(model, tokenizer))

    def is_called(self, name: str) -> bool:
        """Whether a name is this one's, or another path to its folder."""
        if name == self.name:
            return True
        # Folders that are called alike need not be the same one.
        there = same_model(name, self.name) and os.path.exists(name) and os.path.exists(self.source)
        return there and os.path.samefile(name, self.source)

    def other(self, report: Report) -> str | None:
        """What an edit of another one has otherwise, in words, if anything."""
        found = {key: report.settings.get(key) for key in ("revision", "base_edits", "chat_template")}
        own = json.loads(json.dumps({key: self.settings.get(key) for key in found}))
        if not self.is_called(report.model) or found["revision"] != own["revision"]:
            return "another base model"
        if found["base_edits"] != own["base_edits"]:
            return "other edits in the base's weights"
        if found["chat_template"] != own["chat_template"]:
            return "another chat template"
        if report.dtype != self.dtype:
            return f"another dtype ({report.dtype})"
        return None if {*report.selection.get("components", ())} == self.components else "other components"


def _finished(
    folder: Path,
    fact: Fact,
    settings: Settings,
    on: Sequence[str | None] | None,
    base: _Base | None,
    overwrite: bool,
    how: str,
) -> Report | None:
    """The report of a finished edit that would be made the same again; None where there is none, or another one that
    may be replaced.

    Args:
        folder: The folder of a fact.
        fact: The fact.
        settings: How it is edited.
        on: The digests of the edits before it; not compared when None.
        base: What is edited; not compared when None.
        overwrite: Allow that another edit is replaced.
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
    fault = "holds no finished edit"
    if report is not None and (folder / PAGE).is_file() and Lineage.of(folder / EDIT).digest is not None:
        if (other := _other(report, fact, settings, on, base)) is None:
            return report
        fault = f"holds an edit with {other}"
    if overwrite:
        return None
    raise OutputError(f"{folder} {fault}, so it is not taken for this one; name another output folder or {how}.")


def _other(
    report: Report, fact: Fact, settings: Settings, on: Sequence[str | None] | None, base: _Base | None
) -> str | None:
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
    if found.get("max_new_tokens") != MAX_NEW_TOKENS:
        return "another length of answers"
    if not keyed and (found.get("scorers"), found.get("projections"), said.get("granularity")) != (
        [*settings.scorers],
        [*EDIT_PROJECTIONS],
        "component",
    ):
        return "other scorers, projections or granularity"
    if base is not None and (other := base.other(report)):
        return other
    if on is not None and made_on(report) != [*on]:
        return "other edits before it (a fact that was added or mended stands last)"
    return None
