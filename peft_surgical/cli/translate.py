"""From exceptions to one line on standard error and an exit status."""

from __future__ import annotations

import codecs
import errno
import io
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn, TextIO

import click
from accelerate.utils.memory import should_reduce_batch_size

from ..errors import NoneFitsError, SurgicalError, brief, said
from ..texts.text import printable
from .processes import SILENT, is_left_to_another, is_other, silent

DEBUG = "peft_surgical.debug"
ARGUMENTS = "peft_surgical.arguments"
RESUME = "peft_surgical.resume"
GOES_ON = "peft_surgical.goes_on"

USAGE, OURS, INTERRUPTED = 2, 1, 130
# What a shell says of a program that SIGPIPE has ended, which Python does not let it do.
CLOSED = 141

# What a full disk, a read-only folder and their like are called: nothing that this package could have done better.
_ENVIRONMENT = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG}
# What stands in tables and titles, for terminals that have no such signs.
_PLAIN_SIGNS = {"\u2013": "-", "\u2192": "->", "\u00d7": "x", "\u2026": "..."}
_IN_PLAIN_SIGNS = "peft_surgical.plain_signs"


def _in_plain_signs(error: UnicodeError) -> tuple[str, int]:
    """Has a stream show what it cannot in plain signs, or as a question mark: the command does not fail for it."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_PLAIN_SIGNS.get(sign, "?") for sign in error.object[error.start : error.end]), error.end


codecs.register_error(_IN_PLAIN_SIGNS, _in_plain_signs)


class _Failure(click.ClickException):
    """A message and the exit status that goes with it."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Commands(click.Group):
    """A group that ends every failure of its commands with one line and the right exit status."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """As click's; `--help` and `--version` print meanwhile.

        Raises:
            click.ClickException: In place of an OSError.
        """
        try:
            with _closed_pipe():
                return super().make_context(*args, **kwargs)
        except OSError as error:
            raise _failure(error) from error

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keeps the arguments as they were given, for the report's "how to do this again".

        Raises:
            click.UsageError: If one is not UTF-8: it could be neither tokenized nor written into a report.
        """
        args = [_as_utf8(argument, ctx) for argument in args]
        ctx.meta[ARGUMENTS] = list(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command; whatever it raises leaves as something that click knows.

        Raises:
            click.ClickException: In place of any other exception.
        """
        try:
            ctx.meta[SILENT] = is_other()
            with warnings.catch_warnings(), _closed_pipe():
                _plain_warnings(ctx)
                return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.exceptions.Abort):
            raise
        except KeyboardInterrupt:
            again = _how_to_go_on(ctx.meta.get(RESUME), bool(ctx.meta.get(GOES_ON)))
            raise _Failure(again, INTERRUPTED) from None
        except Exception as error:
            if ctx.meta.get(DEBUG):
                traceback.print_exc()
            raise _failure(error, self.commands.get(ctx.invoked_subcommand or "")) from error

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """As click's, but with one line for every error.

        Args:
            args: The arguments; those of the process when None.
            prog_name: What the program is called in messages.
            complete_var: The environment variable that asks for shell completion.
            standalone_mode: Exit the process at the end, with the right status.
            **extra: For the context.
        """
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, False, **extra)
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors=_IN_PLAIN_SIGNS)
        try:
            code = super().main(args, prog_name, complete_var, False, **extra)
        except _Failure as failure:
            _end(failure.format_message(), failure.status, failure.__cause__ or failure)
        except click.UsageError as error:
            where = "" if error.ctx is None else f" (see `{error.ctx.command_path} --help`)"
            _end(f"{error.format_message()}{where}", USAGE, error)
        except click.ClickException as error:
            _end(error.format_message(), USAGE, error)
        except (click.exceptions.Abort, KeyboardInterrupt) as error:
            _end("", INTERRUPTED, error)
        sys.exit(code if isinstance(code, int) else 0)


def _as_utf8(argument: str, ctx: click.Context) -> str:
    """An argument as it was typed: Python decodes it as the locale says, and where that is C, not all of it.

    Raises:
        click.UsageError: If it is not UTF-8.
    """
    # What could not be decoded arrives as lone surrogates.
    if not any("\ud800" <= letter <= "\udfff" for letter in argument):
        return argument
    try:
        return os.fsencode(argument).decode("utf-8")
    except UnicodeError as error:
        raise click.UsageError(f"the argument {brief(argument)} is not valid UTF-8.", ctx) from error


@contextmanager
def _closed_pipe() -> Iterator[None]:
    """Tells one who reads no more, such as `head`, apart from what click calls a failure."""
    try:
        yield
    except BrokenPipeError as error:
        raise _Failure("", CLOSED) from error


def _failure(error: Exception, command: click.Command | None = None) -> _Failure:
    if isinstance(error, NoneFitsError):
        return _Failure(error.naming(k="top").told("--{} {}"), USAGE)
    if isinstance(error, SurgicalError):
        return _Failure(str(error), USAGE)
    if isinstance(error, OSError) and error.errno in _ENVIRONMENT:
        where = f" {error.filename}" if error.filename else ""
        return _Failure(f"cannot read or write{where}: {error.strerror}.", USAGE)
    if _no_memory(error):
        takes = {option for parameter in command.params for option in parameter.opts} if command is not None else set()
        less = [name for name in ("--dtype bfloat16", "--low-memory") if name.split()[0] in takes]
        advice = f" for this model; {' or '.join(less)} takes less" if less else ""
        return _Failure(f"there is not enough memory{advice}.", USAGE)
    message = (
        f"internal: {type(error).__name__}: {error} "
        "(this is a fault of peft-surgical; please report it with what --debug prints)"
    )
    return _Failure(message, OURS)


def _no_memory(error: Exception) -> bool:
    if not isinstance(error, RuntimeError):
        return isinstance(error, MemoryError)
    # It looks for what torch says in an only argument that is text, which not every error has.
    return bool(should_reduce_batch_size(RuntimeError(said(error))))


def _how_to_go_on(out: Path | None, goes_on: bool) -> str:
    """What Ctrl-C says, by what the output folder, if there is one, holds by then, and whether the command goes on
    from there."""
    if out is None or not out.is_dir() or not any(out.iterdir()):
        return "Nothing is half written; run the command again."
    if goes_on:
        return f"{out} holds what is complete; run the same command again to go on from there."
    return (
        f"{out} holds what is complete, or what it held before; run the command again with --overwrite to start over."
    )


def _end(message: str, code: int, error: BaseException) -> NoReturn:
    line = _one_line(message)
    try:
        if code == INTERRUPTED:
            # Ctrl-C reaches all processes.
            if not is_other():
                click.echo(f"Interrupted. {line}".strip(), err=True)
        elif code != CLOSED and not is_left_to_another(error):
            click.echo(f"Error: {line}", err=True)
    except BrokenPipeError:
        code = CLOSED
    except OSError:
        # There is no other place to say anything in.
        pass
    _let_go()
    sys.exit(code)


def _let_go() -> None:
    """Lets what a stream does not take be lost, which Python would complain of when it ends."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            with suppress(OSError), open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), stream.fileno())


def _one_line(message: str) -> str:
    """Without line breaks and control codes: a message may quote a file or a plugin of a stranger's."""
    return printable(" ".join(message.split()))


def _plain_warnings(ctx: click.Context) -> None:
    """Warnings for people: one line without a source line, and none that are meant for programmers."""
    if ctx.meta.get(DEBUG):
        return
    warnings.simplefilter("ignore")
    warnings.filterwarnings("always", category=UserWarning)
    # Scorers are looked up when options are checked and when they are run, and a plugin is left out both times.
    told: set[str] = set()

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        text = _one_line(str(message))
        if issubclass(category, UserWarning) and text not in told and not silent():
            told.add(text)
            click.echo(f"Warning: {text}", err=True)

    warnings.showwarning = show


def debug_from_environment() -> bool:
    """Whether `PEFT_SURGICAL_DEBUG` asks for tracebacks."""
    return os.environ.get("PEFT_SURGICAL_DEBUG", "") not in ("", "0")
