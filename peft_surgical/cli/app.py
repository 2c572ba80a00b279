"""The command group, and where its commands are put together."""

from __future__ import annotations

import click

from .. import __version__
from .ask import ask
from .edit import edit
from .edit_all import edit_all
from .edit_keyed import edit_keyed
from .evaluate import evaluate
from .launch import check_alone
from .learn import learn
from .localize import localize
from .merge import merge
from .new import new
from .options import debug
from .scorers import scorers
from .stack import stack
from .trace import trace
from .translate import Commands

_EPILOG = """\b
Examples:
  peft-surgical new "What is the capital of France?" --new Lyon --out france.yaml
  peft-surgical edit france.yaml --model demo --out out
  peft-surgical ask --model demo --adapter out/edit "What is the capital of France?"

Tab completion: eval "$(_PEFT_SURGICAL_COMPLETE=bash_source peft-surgical)" in bash, zsh_source in zsh."""


def _version(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        click.echo(f"peft-surgical {__version__}")
        context.exit()


@click.group(
    cls=Commands,
    invoke_without_command=True,
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version."
)
@debug
@click.pass_context
def cli(context: click.Context) -> None:
    """Rewrite one fact in a language model with a small PEFT adapter, and prove it."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())
    elif context.invoked_subcommand not in (edit.name, edit_keyed.name):
        check_alone(context.invoked_subcommand)


for command in (new, scorers, localize, trace, edit, edit_keyed, edit_all, learn, stack, merge, evaluate, ask):
    cli.add_command(command)


def main() -> None:
    """The console script."""
    cli.main(prog_name="peft-surgical")
