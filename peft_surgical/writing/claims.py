"""One run at a time in an output folder.

The folder itself is locked (`locks`). Where folders cannot be, a run notices another only by its files.

>>> with claimed("out"):
...     ...                             # another `claimed("out")` raises an OutputError meanwhile
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import OutputError, brief
from .files import as_output_error, check_output, remove_abandoned, whole_path
from .locks import lock


@contextmanager
def claimed(path: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """Makes an output folder if need be, and keeps other runs out of it while the block runs.

    A folder that was made here and is still empty at the end is removed again. With `overwrite`, what a killed run
    left half written is removed first.

    Args:
        path: The folder.
        overwrite: Allow it to hold something.

    Yields:
        The folder.

    Raises:
        OutputError: If it cannot be made, begins at the current folder while that is gone, holds something while
            `overwrite` is false, or another run has claimed it.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise OutputError(f"the output must be the path of a folder, not {brief(path)}.")
    path = whole_path(path)
    check_output(path, overwrite=overwrite)
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    # Not in the block that tidies up: while another run holds the folder, it is not ours to remove.
    handle = _lock(path)
    try:
        # Another run may have filled it since.
        check_output(path, overwrite=overwrite)
        if overwrite:
            remove_abandoned(path)
        yield path
    finally:
        for folder in missing:
            with suppress(OSError):
                folder.rmdir()
        if handle is not None:
            os.close(handle)


def _lock(path: Path) -> int | None:
    """A handle of the locked folder, which closing gives back; None where folders cannot be locked."""
    while True:
        with as_output_error(path):
            # A link may lead to what is not there yet.
            Path(os.path.realpath(path)).mkdir(parents=True, exist_ok=True)
            try:
                handle = lock(path)
            except BlockingIOError as error:
                raise OutputError(f"another run is writing to {path}; wait for it or name another folder.") from error
        if handle is None:
            return None
        # A run that ended meanwhile may have removed the folder that was opened.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), os.stat(path)):
                return handle
        os.close(handle)
