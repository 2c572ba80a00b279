"""What is read for an output must not be what the output replaces."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import OutputError
from .files import whole_path


def check_inputs_stay(out: str | os.PathLike[str], inputs: Iterable[Any]) -> None:
    """Refuses an output folder that is, or holds, something that is read for it.

    Args:
        out: The folder, which will be replaced as a whole.
        inputs: What is read. Only what is a path on this machine counts: not a hub id, nor an adapter in memory.

    Raises:
        OutputError: For the first such input, or if `out` begins at the current folder, which is gone.
    """
    place = _real(whole_path(out))
    for given in inputs:
        if not isinstance(given, (str, os.PathLike)) or not os.path.lexists(os.path.expanduser(given)):
            continue
        if _real(os.path.expanduser(given)).is_relative_to(place):
            raise OutputError(f"the output {out} would replace {given}, which is read for it; name another folder.")


def _real(path: str | os.PathLike[str]) -> Path:
    return Path(os.path.realpath(path))
