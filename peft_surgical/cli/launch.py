"""A command that `torchrun` or `accelerate launch` has started in several processes: they share its work.

Each has its own copy of the model and runs rows of its own; with `accelerate launch --use_fsdp` the model is spread
over them, and they run all rows together.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import click
import torch
from accelerate import PartialState
from torch.distributed import DistError

from ..errors import ModelError, brief, first_line, said, tell
from ..running.sharing import shared_work
from .loading import SPREAD
from .options import Source
from .processes import SILENT


@contextmanager
def launched(source: Source) -> Iterator[Source]:
    """Joins the processes that a launcher started, if there are more than one, for the length of a block.

    Args:
        source: What to load; where no device is named, each process takes an accelerator of its own.

    Yields:
        The same, with the device for this process.

    Raises:
        ModelError: If the model is to be spread over all devices, which each process would do, or the processes cannot
            be joined, or another of them ends before its time.
    """
    if not _several():
        yield source
        return
    if source.device in SPREAD:
        raise ModelError(
            f"--device {source.device} spreads one model over all devices, so start one process, not several."
        )
    try:
        with _joined(source) as own:
            yield own
    except BaseException as error:
        # From here on one may fail alone.
        tell(error, by_first=False)
        raise


@contextmanager
def _joined(source: Source) -> Iterator[Source]:
    device = source.device
    try:
        state = PartialState(cpu=device == "cpu" or not torch.accelerator.is_available())
    except (ValueError, RuntimeError) as error:
        # What was begun would be taken for joined by the next who asks.
        PartialState._reset_state()
        raise ModelError(
            f"WORLD_SIZE names {os.environ['WORLD_SIZE']} processes, and they cannot be joined ({first_line(error)});"
            " start them with torchrun or accelerate launch, or unset WORLD_SIZE."
        ) from error
    context = click.get_current_context(silent=True)
    if context is not None:
        context.meta[SILENT] = not state.is_main_process
    try:
        with shared_work(rows=not _fsdp()):
            # What is spread over devices is read into the processor's memory first.
            yield replace(source, device=None if _fsdp() else device or str(state.device))
    except RuntimeError as error:
        if not _says_that_another_ended(error):
            raise
        raise ModelError(
            "another of the processes has ended (interrupted, killed or failed), and this one needs it; what it"
            " said, if anything, tells why."
        ) from error
    finally:
        state.destroy_process_group()


def sharded() -> bool:
    """Whether the launcher was told to spread the model over the processes."""
    return _several() and _fsdp()


def check_alone(command: str) -> None:
    """Refuses several processes for a command that does not share its work: each would do all of it, and all of them
    write to the same place.

    Raises:
        click.UsageError: If there are several.
    """
    if _several():
        raise click.UsageError(
            f"`{command}` runs in one process, and WORLD_SIZE names {os.environ['WORLD_SIZE']}; start it without"
            " torchrun or accelerate launch, or unset WORLD_SIZE."
        )


def _says_that_another_ended(error: RuntimeError) -> bool:
    # Of gloo torch raises a plain RuntimeError.
    return isinstance(error, DistError) or "/gloo/transport/" in said(error)


def _several() -> bool:
    given = os.environ.get("WORLD_SIZE", "").strip() or "1"
    if not given.isdecimal():
        raise ModelError(f"WORLD_SIZE in the environment is {brief(given)}, no number of processes; unset it.")
    return int(given) > 1


def _fsdp() -> bool:
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in ("1", "true", "yes")
