"""The options that several commands share, each with one wording and one default."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click

from ..counts import check_text_tokens
from ..dtypes import DTYPES
from ..errors import ModelError, brief
from .terminal import JSON
from .translate import DEBUG, debug_from_environment

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


def _set_debug(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value or debug_from_environment():
        context.meta[DEBUG] = True


class _Path(click.Path):
    """A path, in which `~` is the home folder: shells leave it in `--out=~/x`, and the hub's client expands it, too.

    An empty one, which Python takes for the current folder, is a variable of a script's that is not set.
    """

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not os.fspath(value):
            self.fail("it is empty.", param, ctx)
        if os.fspath(value) == "-":
            self.fail("- stands for no stream here; give a file, as /dev/stdin is one.", param, ctx)
        if fault := _unspeakable(os.fspath(value)):
            self.fail(fault, param, ctx)
        return super().convert(os.path.expanduser(value), param, ctx)


class _File(_Path):
    """The path of a file, which does not end as a folder's may."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if os.fspath(value).endswith(("/", os.sep)):
            self.fail(f"{os.fspath(value)} names a folder; name a file.", param, ctx)
        return super().convert(value, param, ctx)


class _Dial(click.FloatRange):
    """How far an edit is turned down or up."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        # A range holds what compares as neither less nor more.
        if not math.isfinite(found := super().convert(value, param, ctx)):
            self.fail(f"{found} is not a finite number.", param, ctx)
        return found


PATH = _Path(path_type=Path)
FILE = _File(path_type=Path)
# What numpy's random numbers can begin with, and torch's.
SEED = click.IntRange(0, 2**64 - 1)
DIAL = _Dial(0, 1.5)


def _predicting(context: click.Context, parameter: click.Parameter, value: int) -> int:
    try:
        check_text_tokens(retention_tokens=value)
    except ModelError:
        raise click.BadParameter("before the second token nothing is predicted; give 0, or 2 or more.") from None
    return value


def _named(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    if value == "":
        raise click.BadParameter("it is empty.")
    if value is not None and (fault := _unspeakable(value)):
        raise click.BadParameter(fault)
    return value


def _revision(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    if value is not None and not value.strip():
        raise click.BadParameter("it is empty.")
    return value


def _unspeakable(path: str) -> str | None:
    """Why no file can be called so here, if that is so."""
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        coding = sys.getfilesystemencoding()
        return f"{brief(path)} cannot be the name of a file here, where names are in {coding}; set LC_ALL to C.UTF-8."
    return None


def _alone(context: click.Context, parameter: click.Parameter, value: bool) -> bool:
    """Keeps what a scorer plugin or a checkpoint's own code prints out of the JSON."""
    if value and sys.stdout is not None:
        context.meta[JSON] = sys.stdout
        context.with_resource(redirect_stdout(sys.stderr))
    return value


debug = click.option(
    "--debug",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_set_debug,
    help="Show tracebacks and the libraries' own messages (also: PEFT_SURGICAL_DEBUG=1).",
)
quiet = click.option("--quiet", "-q", is_flag=True, help="Print nothing but errors, warnings and --json.")
seed = click.option("--seed", type=SEED, default=0, show_default=True, help="For all that is random.")
overwrite = click.option(
    "--overwrite", is_flag=True, help="Allow the output folder to hold files; an earlier run's are replaced."
)
as_json = click.option(
    "--json", "as_json", is_flag=True, callback=_alone, help="Print the result as JSON on standard output."
)
out = click.option("--out", "-o", required=True, type=PATH, metavar="DIR", help="The folder to write.")
fact = click.argument("fact_file", metavar="FACT", type=PATH)
heads = click.option("--heads", type=click.IntRange(min=1), help="Attention heads at most; alone, no MLPs.")
mlps = click.option("--mlps", type=click.IntRange(min=1), help="MLPs at most; alone, no heads.")
retention_tokens = click.option(
    "--retention-tokens",
    type=click.IntRange(min=0),
    callback=_predicting,
    default=2048,
    show_default=True,
    help="Tokens of unrelated text to measure on; 0 for none.",
)
dry_run = click.option(
    "--dry-run",
    is_flag=True,
    help="Check the fact, the options and the output, say what would be done, and stop; no model is looked at.",
)
faithfulness = click.option(
    "--faithfulness",
    is_flag=True,
    help="Measure what the chosen components carry together, beside random selections of their size.",
)
profile = click.option("--profile", is_flag=True, help="Say where the time went, loading left out.")
on = click.option(
    "--on",
    "on",
    multiple=True,
    type=PATH,
    metavar="DIR",
    help="Make it on top of this earlier edit's adapter, which acts meanwhile and stays apart; may be repeated, in the"
    " order of training.",
)
adapter = click.option(
    "--adapter",
    "adapters",
    multiple=True,
    type=PATH,
    metavar="DIR",
    help="An adapter folder; may be repeated, in the order of training.",
)

edited = click.option(
    "--edited",
    callback=_named,
    metavar="M",
    help="An edited checkpoint, as --model takes one, to compare with the model as its base; not beside --adapter.",
)

_MODEL = (
    click.option(
        "--model",
        "-m",
        "model_name",
        callback=_named,
        default="demo",
        show_default=True,
        metavar="M",
        help="A hub id, a folder, a .gguf file, or `demo` (SmolLM2-135M-Instruct).",
    ),
    click.option(
        "--revision",
        callback=_revision,
        metavar="REVISION",
        help="A branch, tag or commit of the hub id; its main branch unless given.",
    ),
    click.option(
        "--dtype",
        type=click.Choice(tuple(DTYPES)),
        default="auto",
        show_default=True,
        help="Of the weights; auto is the checkpoint's own, float32 for GGUF.",
    ),
    click.option(
        "--device",
        metavar="DEVICE",
        help="Such as cuda or mps, or auto for all there are together; the processor unless given.",
    ),
    click.option("--trust-remote-code", is_flag=True, help="Run Python code that comes with the checkpoint."),
)


def recipe(names: str) -> Callable[[Decorated], Decorated]:
    """Adds `--recipe`.

    Args:
        names: What the file holds, in words.
    """
    return click.option(
        "--recipe",
        "recipe_file",
        type=FILE,
        metavar="FILE",
        help=f"How to train: a YAML or JSON file with {names}; what it leaves out is as usual.",
    )


def scorer(default: str) -> Callable[[Decorated], Decorated]:
    """Adds `--scorer`.

    Args:
        default: What is localized with unless it is given, in words.
    """
    return click.option(
        "--scorer",
        "scorers",
        multiple=True,
        metavar="NAME",
        help="A scorer to localize with, `name` or `name:option=value,…`; may be repeated, the first one ranks. "
        f"`peft-surgical scorers` lists them.  [default: {default}]",
    )


@dataclass(frozen=True)
class Source:
    """Which model to load, and how.

    Attributes:
        name: What `--model` says.
        dtype: What `--dtype` says.
        device: What `--device` says, if anything.
        trust_remote_code: Whether `--trust-remote-code` is given.
        revision: What `--revision` says, if anything.
    """

    name: str
    dtype: str
    device: str | None
    trust_remote_code: bool
    revision: str | None = None


def model(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options of a command that loads a model, which gets them as one argument, `source`."""

    @wraps(command)
    def with_source(
        *args: Any,
        model_name: str,
        revision: str | None,
        dtype: str,
        device: str | None,
        trust_remote_code: bool,
        **others: Any,
    ) -> Any:
        return command(*args, source=Source(model_name, dtype, device, trust_remote_code, revision), **others)

    for option in reversed(_MODEL):
        with_source = option(with_source)
    return with_source
