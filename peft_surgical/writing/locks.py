"""Locks on folders, by the operating system: no lock file stands in one, and a killed process holds none."""

from __future__ import annotations

import os

try:
    import fcntl
except ImportError:  # not a Unix
    fcntl = None  # type: ignore[assignment]


def lock(folder: str | os.PathLike[str]) -> int | None:
    """Locks a folder, without waiting.

    Returns:
        A handle, which closing gives back; None where folders cannot be locked, as on some network file systems.

    Raises:
        BlockingIOError: If another process, or another handle of this one, holds it.
        OSError: If it cannot be opened.
    """
    if fcntl is None:
        return None
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException as error:
        os.close(handle)
        if isinstance(error, BlockingIOError) or not isinstance(error, OSError):
            raise
        return None
    return handle
