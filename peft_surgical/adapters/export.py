"""To and from PEFT's own (IA)^3.

>>> to_ia3("learn", "learn_plain")      # loads in stock PEFT, same logits bit for bit
>>> from_ia3("some_ia3_adapter", "surgical")
"""

from __future__ import annotations

import os
from dataclasses import replace

from ..errors import AdapterError
from ..ranges import united_index
from ..tuner.coordinates import Coordinates
from .adapter_files import write_plain
from .cards import check_card
from .edits import Edit, ModuleScale, as_edit


def to_ia3(
    edit: Edit | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    card: str | None = None,
    overwrite: bool = False,
) -> None:
    """Writes an edit as a plain (IA)^3 adapter, which computes the same logits bit for bit.

    Args:
        edit: An edit or an adapter folder.
        out: The folder to write.
        card: Text of its README.
        overwrite: Replace the folder if it holds an adapter.

    Raises:
        AdapterError: If the edit cannot be read, the widths of its modules are not known, or `card` is no text.
        OutputError: If `out` cannot be written, or holds something and may not be replaced.

    Warns:
        UserWarning: If the folder holds weights of the base, such as an output head's, which are left out of `out`.
    """
    check_card(card)
    write_plain(as_edit(edit), out, card=card, overwrite=overwrite)


def from_ia3(
    adapter: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    only_changed: bool = False,
    overwrite: bool = False,
) -> Edit:
    """Reads a plain (IA)^3 adapter, however its target modules are given, as an edit.

    Args:
        adapter: The adapter's folder.
        out: Also write it as a surgical adapter folder. That stores `scale - 1`, so a scale of 0.5 or more comes back
            exactly, one between -1 and 0.5 within 6e-8.
        only_changed: Keep only coordinates whose scale is not exactly 1; all of them otherwise, so that training can
            go on where it was.
        overwrite: Replace the folder if it holds an adapter.

    Raises:
        AdapterError: If the folder cannot be read, or `only_changed` leaves nothing.
        OutputError: If `out` cannot be written, or holds something and may not be replaced.

    Warns:
        UserWarning: If the folder holds weights of the base, such as an output head's, which are left out of `out`.
    """
    edit = Edit.load(adapter)
    if only_changed:
        modules = {name: found for name, module in edit.modules.items() if (found := _changed(module)) is not None}
        if not modules:
            raise AdapterError(f"every scale of {adapter} is 1, so there is no edit in it.")
        edit = replace(edit, modules=modules, lineage=edit.lineage.changed())
    if out is not None:
        edit.save(out, overwrite=overwrite)
    return edit


def _changed(module: ModuleScale) -> ModuleScale | None:
    keep = module.scale != 1
    if not keep.any():
        return None
    coordinates = Coordinates(module.coordinates.side, united_index(module.coordinates.index()[keep].tolist()))
    return ModuleScale(coordinates, module.scale[keep], module.width)
