"""What a report says of the weights that were measured, in a sentence or two: which edits the base carries, and which
checkpoint stood beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..adapters.merged_edits import are_edits, edit_names
from ..counts import counted
from ..errors import ReportError, brief
from ..report import Report


def weights_told(report: Report) -> list[str]:
    """Sentences; none of a base that carries no edit, measured alone or with adapters.

    Raises:
        ReportError: If the report comes from a file in which something else stands there.
    """
    told = base_told(report.settings)
    beside = report.settings.get("edited")
    if beside is None:
        return told
    if not isinstance(beside, Mapping) or not isinstance(beside.get("changed"), list):
        raise ReportError(f"this is not a report: {brief(beside)} stands where an edited checkpoint should.")
    changed = len(beside["changed"])
    sentence = f"Edited is the checkpoint {beside.get('name')}, stored in {beside.get('dtype')}:"
    sentence += (
        f" {changed:,} of {beside.get('tensors')} tensors differ{'s' * (changed == 1)} from the base's; both are"
    )
    sentence += f" measured in {report.dtype}."
    if edits := _edits(beside.get("edits", []), "edits"):
        sentence += f" It says that it carries {_counted(edits)}."
    return [*told, sentence]


def base_told(settings: Mapping[str, Any]) -> list[str]:
    """The sentence on the edits that a base carries, as the settings of what was measured have them; none of a base
    that carries none.

    Raises:
        ReportError: If something else stands there.
    """
    edits = _edits(settings.get("base_edits", []), "base_edits")
    return [f"The base carries {_counted(edits)}."] if edits else []


def revision_told(report: Report) -> str:
    """What stands behind a model's name: the revision of it that was measured, if that is known."""
    revision = report.settings.get("revision")
    return f" (revision {revision})" if isinstance(revision, str) else ""


def _edits(value: Any, name: str) -> list[dict[str, Any]]:
    if not are_edits(value):
        raise ReportError(f"this is not a report: {brief(value)} stands where {name} should.")
    edits: list[dict[str, Any]] = value
    return edits


def _counted(edits: list[dict[str, Any]]) -> str:
    names = ", then ".join(edit_names(edits))
    return f"{counted(len(edits), 'edit')}, merged into its weights: {names}"
