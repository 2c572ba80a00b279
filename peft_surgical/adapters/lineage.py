"""What a saved adapter was trained on top of, and which adapters one was made of.

Both stand in the metadata of its weights, which other readers pass over. So that half an edit, or one that acts twice,
is told of where adapters are put together.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from .adapter_files import WEIGHTS
from .scale_files import DIGEST, OWN

AFTER, PARTS = f"{OWN}after", f"{OWN}parts"


@dataclass(frozen=True)
class Lineage:
    """What an adapter's weights say of where they come from.

    Attributes:
        digest: That of their names, shapes and values; None where it was not written here.
        after: The names of the adapters that acted while it was trained, in their order.
        parts: The digests of the adapters that it is the product of, and of theirs.
    """

    digest: str | None = None
    after: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()

    @classmethod
    def of(cls, folder: str | os.PathLike[str]) -> Lineage:
        """What an adapter's folder says; nothing where it cannot be read, of which who reads the weights tells."""
        try:
            with safe_open(Path(folder) / WEIGHTS, "pt") as file:
                notes = file.metadata() or {}
        except (OSError, SafetensorError):
            return cls()
        return cls(notes.get(DIGEST), _names(notes.get(AFTER)), _names(notes.get(PARTS)))


def after(names: Sequence[str]) -> dict[str, str]:
    """The metadata of an adapter that was trained on top of these."""
    return {AFTER: json.dumps(list(names))} if names else {}


def parts(adapters: Iterable[Any]) -> dict[str, str]:
    """The metadata of the product of adapters, as far as they are folders."""
    found = [Lineage.of(adapter) for adapter in adapters if isinstance(adapter, str | os.PathLike)]
    # A part of a part acts in it, too.
    known = [digest for part in found for digest in (part.digest, *part.parts) if digest is not None]
    return {PARTS: json.dumps(known)} if known else {}


def warn_of_lineage(adapters: Sequence[Any]) -> None:
    """Warns of what is only half of an edit, or acts twice, when adapters act together.

    Args:
        adapters: Folders, in their order; what is no folder is passed over.

    Warns:
        UserWarning: For one that was trained on top of more adapters than stand before it, for one that another was
            made of, and for one that is given twice.
    """
    folders = [(place, adapter) for place, adapter in enumerate(adapters) if isinstance(adapter, str | os.PathLike)]
    said = [(place, os.fspath(folder), Lineage.of(folder)) for place, folder in folders]
    for number, (_, folder, lineage) in enumerate(said):
        if lineage.digest is not None and lineage.digest in [held.digest for _, _, held in said[:number]]:
            warnings.warn(f"the adapter {folder} is given twice, and then acts twice.", stacklevel=3)
    for place, folder, lineage in said:
        if len(lineage.after) > place:
            below = " and ".join(lineage.after)
            warnings.warn(
                f"the adapter {folder} was trained on top of {below}; give that before it, unless the model has it"
                " already.",
                stacklevel=3,
            )
        for _, other, held in said:
            if lineage.digest is not None and lineage.digest in held.parts and other != folder:
                warnings.warn(f"the adapter {other} holds {folder} already, which then acts twice.", stacklevel=3)


def _names(text: str | None) -> tuple[str, ...]:
    try:
        names = json.loads(text or "[]")
    except ValueError:
        return ()
    return tuple(map(str, names)) if isinstance(names, list) else ()
