"""What a merged checkpoint says of the edits in its weights: a small file beside them, and a section of its card.

Neither holds a path of the machine that it was made on: an adapter goes by the name of its folder and of the one that
is in, a base that is a folder by its name alone.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ..dtypes import dtype_name
from ..tuner.fold import Rounding
from ..writing.files import read_json, why_unread, write_bytes, write_json
from .bases import cached_commit, folder_of, hub_id_of, revision_of, source_of
from .cards import card_with_edits, clean
from .edits import Edit
from .lineage import Lineage, called
from .low_rank import LowRank
from .mergeable import Mergeable

FILE, CARD = "peft_surgical.json", "README.md"
_FORMAT = 1
# What a record has of a lineage, beside the digest.
_LINEAGE = ("after", "below", "parts", "made", "altered")


def read_edits(folder: str | os.PathLike[str] | None) -> list[dict[str, Any]]:
    """The edits that a checkpoint's folder says are in its weights, oldest first; none where it says nothing.

    Args:
        folder: The checkpoint's, if one is known.

    Warns:
        UserWarning: If what it says cannot be read.
    """
    if folder is None or not os.path.isfile(path := os.path.join(folder, FILE)):
        return []
    try:
        found = read_json(path)
        if not isinstance(found, dict) or found.get("format") != _FORMAT or not are_edits(found.get("edits")):
            raise ValueError(f"it is no list of edits of the format {_FORMAT}")
    except (OSError, ValueError) as error:
        warnings.warn(
            f"{path} cannot be read ({why_unread(error)}), so what it says of edits in the weights is left out.",
            stacklevel=3,
        )
        return []
    edits: list[dict[str, Any]] = found["edits"]
    return edits


def edits_in(model: Any) -> list[dict[str, Any]]:
    """The edits that the folder which a bare model was read from says are in its weights, see [`read_edits`]."""
    return read_edits(folder_of(model, exact=True))


def lineages_of(edits: Sequence[Mapping[str, Any]]) -> list[Lineage]:
    """What some recorded edits say of where they come from, each of their adapters as one."""
    return [_lineage(adapter) for edit in edits for adapter in edit["adapters"]]


def _lineage(told: Mapping[str, Any]) -> Lineage:
    """What [`_told`] tells of it, as far as it is what a record has."""
    digest = told.get("sha256")
    found = {key: told.get(key) for key in _LINEAGE}
    listed = {key: tuple(map(str, values)) for key, values in found.items() if isinstance(values, list)}
    return Lineage(digest if isinstance(digest, str) else None, **listed)


def are_edits(value: Any) -> bool:
    """Whether this is a list of what [`edit_record`] gives, as far as it is read here."""
    return isinstance(value, list) and all(
        isinstance(edit, dict)
        and isinstance(edit.get("base"), dict)
        and isinstance(edit.get("adapters"), list)
        and all(isinstance(adapter, dict) and isinstance(adapter.get("name"), str) for adapter in edit["adapters"])
        for edit in value
    )


def edit_names(edits: Sequence[Mapping[str, Any]]) -> list[str]:
    """What each edit is called: the names of its adapters."""
    return [" and ".join(clean(adapter["name"]) for adapter in edit["adapters"]) for edit in edits]


def edit_record(adapters: Sequence[Mergeable], model: Any, dtype: torch.dtype, rounding: Rounding) -> dict[str, Any]:
    """What is told of one merge.

    Args:
        adapters: What is folded in, in order.
        model: The base.
        dtype: Of the checkpoint.
        rounding: What became of the weights that should change.

    Returns:
        The adapters with the digests of their tensors and what they say of where they come from, the base, the dtype,
        of the weights that should change how many there are and the share that rounding left as they were, and the
        version of this package.
    """
    lost = rounding.unchanged / rounding.touched if rounding.touched else 0.0
    return {
        "adapters": [_told(adapter) for adapter in adapters],
        "base": _base(model),
        "dtype": dtype_name(dtype),
        "weights": rounding.touched,
        "rounded_away": round(lost, 6),
        "peft_surgical": _version(),
    }


def _told(adapter: Mergeable) -> dict[str, Any]:
    if isinstance(adapter, Edit | LowRank):
        # One that was computed of others is called by a formula with their paths.
        name = called(adapter.name) if os.path.isdir(adapter.name) else "an edit in memory"
        lineage = adapter.origin()
    else:
        name, lineage = called(adapter), Lineage.of(adapter)
    found = {key: getattr(lineage, key) for key in _LINEAGE}
    return {"name": name, "sha256": lineage.digest, **{key: [*values] for key, values in found.items() if values}}


def _base(model: Any) -> dict[str, str | None]:
    """What is told of the base: the name is its hub id, or that of its folder or file alone."""
    name = str(getattr(model, "name_or_path", None) or "")
    known = hub_id_of(model, name) if name else None
    alone = os.path.basename(os.path.abspath(source_of(model) or name)) if name else None
    return {"name": known or alone, "hub_id": known, "revision": revision_of(model) or cached_commit(name)}


def _version() -> str | None:
    try:
        return metadata.version("peft-surgical")
    except metadata.PackageNotFoundError:
        return None


def write_edits(folder: Path, source: Path | None, edits: Sequence[Mapping[str, Any]]) -> None:
    """Writes what a checkpoint says of its edits: the file, and a section of its card below what the base's says.

    Args:
        folder: The checkpoint's.
        source: The base's, if there is one here; its card is kept.
        edits: All that are in the weights, oldest first.
    """
    write_json(folder / FILE, {"format": _FORMAT, "edits": list(edits)})
    card = source / CARD if source is not None else None
    kept = card.read_bytes() if card is not None and card.is_file() else b""
    write_bytes(folder / CARD, card_with_edits(kept, edits, FILE))
