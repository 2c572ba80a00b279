"""What commands print: results on standard output, everything else on standard error."""

from __future__ import annotations

import errno
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from ..edit_folder import PAGE, REPORT
from ..errors import MissingPackageError
from ..texts.text import printable
from .processes import silent
from .translate import ARGUMENTS, GOES_ON, RESUME

JSON = "peft_surgical.json"

REPORT_FILES = (f"{REPORT}, {PAGE}", "every figure and every answer")
"""The files of a report, and what they hold, for the summary."""

# Where no terminal says how wide it is; tables fit without folding.
_PIPE_WIDTH = 110


def print_result(result: RenderableType, *, quiet: bool = False, as_json: bool = False) -> None:
    """Prints a result for people: on standard output, or on standard error where `--json` has taken that.

    Args:
        result: A rich renderable, or text, which is printed as it is but for control codes.
        quiet: Print nothing.
        as_json: Standard output is taken by JSON.
    """
    if quiet or silent():
        return
    stream = sys.stderr if as_json else sys.stdout
    if stream is None:  # closed by who started the command
        return
    if isinstance(result, str):
        result = printable(result)
    width = None if stream.isatty() else _PIPE_WIDTH
    _Console(file=stream, width=width, highlight=False, markup=False, emoji=False).print(result)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leaves it to who runs the command what is said of a closed pipe, and how the process ends."""
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def plain_table(**options: Any) -> Table:
    """A table of results: a line below its head, and no other."""
    return Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, **options)


def print_json(value: Any) -> None:
    """Prints JSON for a machine, ASCII only, so that it survives any terminal or pipe."""
    if not silent():
        context = click.get_current_context(silent=True)
        stream = None if context is None else context.meta.get(JSON)
        click.echo(json.dumps(value, indent=2, allow_nan=False), file=stream)


def note(text: str, *, quiet: bool) -> None:
    """Tells a person what goes on, on standard error, without control codes: it may quote a model."""
    if not quiet and not silent():
        click.echo(printable(text), err=True)


def note_left_out_picture(name: str, *, quiet: bool) -> None:
    """Tells a person why there are figures and no picture of them."""
    note(f"{name} is left out: it needs matplotlib (pip install 'peft-surgical[plot]').", quiet=quiet)


def is_drawn(draw: Callable[[], object], name: str, *, quiet: bool) -> bool:
    """Whether a picture could be drawn; a person is told why not."""
    try:
        draw()
    except MissingPackageError:
        note_left_out_picture(name, quiet=quiet)
        return False
    return True


@contextmanager
def passing_note(text: str, *, quiet: bool) -> Iterator[None]:
    """Tells what goes on while a block runs, on a terminal only: nothing of it is left, however the block ends."""
    stream = sys.stderr
    if quiet or silent() or stream is None or not stream.isatty():
        yield
        return
    line = Text(printable(" ".join(text.split())))
    # A line that went on in the next one could not be taken back, nor could one that fills the last column.
    line.truncate(Console(file=stream).width - 1, overflow="ellipsis")
    print(line.plain, end="", file=stream, flush=True)
    try:
        yield
    finally:
        print(f"\r{' ' * line.cell_len}\r", end="", file=stream, flush=True)


def this_command(context: click.Context) -> str:
    """The command line that was given, quoted for a shell."""
    return shlex.join(["peft-surgical", *context.meta.get(ARGUMENTS, [])])


def on_interrupt(context: click.Context, out: Path, *, goes_on: bool = False) -> None:
    """Tells Ctrl-C which output folder is being filled, so that it can say what is there and how to go on.

    Args:
        context: The command's.
        out: The folder.
        goes_on: Whether the same command takes what is there as it is.
    """
    context.meta[RESUME], context.meta[GOES_ON] = out, goes_on
