"""Giving memory back as soon as it is freed, for commands that train in a process of their own.

glibc maps large blocks one by one, and gives them back when they are freed. But it raises the size from which it does
to that of what was freed, up to 32 MiB, and smaller blocks stay on a heap, where passes of ever other shapes leave
holes: an edit then holds twice the memory that it uses. Where that size is set, it does not move.
"""

from __future__ import annotations

import os

import click

from ..running.freed import glibc
from ..running.replicas import without_replicas

# Of `mallopt`, from glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_SETTINGS = {_MMAP_THRESHOLD: 2**19, _TRIM_THRESHOLD: 2**23, _ARENA_MAX: 1}
_SET_BY_USERS = ("GLIBC_TUNABLES", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_ARENA_MAX")


def spare_memory(context: click.Context) -> None:
    """What `--low-memory` asks of the process: called before there is a model, it holds until the command ends."""
    give_back_freed()
    context.with_resource(without_replicas())


def give_back_freed() -> bool:
    """Has blocks of half a MiB and more given back when they are freed, for the rest of the process.

    Nothing is done where another C library is used, or an environment variable says how this one allocates.

    Returns:
        Whether it is done.
    """
    library = glibc()
    if library is None or any(name in os.environ for name in _SET_BY_USERS):
        return False
    return all(library.mallopt(option, value) == 1 for option, value in _SETTINGS.items())
