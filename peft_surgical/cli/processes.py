"""Which of the processes that a launcher started says what all of them would."""

from __future__ import annotations

import os

import click

from ..errors import told_by_first

SILENT = "peft_surgical.silent"


def is_other(rank: str = "RANK") -> bool:
    """Whether a launcher started this process beside a first one.

    Args:
        rank: The variable that says which it is: `LOCAL_RANK` for the first on this machine.
    """
    given = os.environ.get("WORLD_SIZE", "").strip()
    return given.isdecimal() and int(given) > 1 and os.environ.get(rank, os.environ.get("RANK", "0")) != "0"


def silent() -> bool:
    """Whether another process, which does the same, prints what there is to print."""
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.meta.get(SILENT))


def is_left_to_another(error: BaseException) -> bool:
    """Whether another process says why a command failed."""
    told = told_by_first(error)
    # Before they are joined, all on one machine read the same arguments and files.
    return is_other("LOCAL_RANK") if told is None else told
