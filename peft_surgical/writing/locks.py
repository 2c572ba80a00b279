"""Locks on folders and files, by the operating system: there is no lock file, and a killed process holds none."""

from __future__ import annotations

import os

try:
    import fcntl
except ImportError:  # not a Unix
    fcntl = None  # type: ignore[assignment]


def lock(path: str | os.PathLike[str]) -> int | None:
    """Locks a folder or a file, without waiting.

    Returns:
        A handle, which closing gives back; None where there are no such locks, as on some network file systems.

    Raises:
        BlockingIOError: If another process, or another handle of this one, holds it.
        OSError: If it cannot be opened.
    """
    if fcntl is None:
        return None
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException as error:
        os.close(handle)
        if isinstance(error, BlockingIOError) or not isinstance(error, OSError):
            raise
        return None
    return handle
