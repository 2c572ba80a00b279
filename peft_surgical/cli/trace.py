"""`peft-surgical trace`: at which tokens of a prompt, and in which layers, a fact is, without editing it."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Group

import peft_surgical as ps

from ..counts import counted
from ..edit_folder import MAP, MAP_PICTURE, TRACE, replacing
from ..errors import FactError
from ..facts import Fact
from ..localizing.streams import DIRECTIONS, Direction
from ..texts.text import printable
from ..writing.claims import claimed
from . import checks, options
from .loading import load
from .tables import Catalogue
from .terminal import is_drawn, on_interrupt, print_json, print_result


@click.command(short_help="Find the tokens and layers that hold a fact.")
@options.fact
@options.model
@options.out
@click.option(
    "--direction",
    type=click.Choice(DIRECTIONS),
    default="noising",
    show_default=True,
    help="Patch the clean run from the corrupted one, or the corrupted run from the clean one, as ROME does.",
)
@click.option(
    "--window",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Take so many layers of attn_out and mlp_out together; ROME took 10 of 48.",
)
@click.option(
    "--one-by-one",
    is_flag=True,
    help="Take the tokens of a class one at a time, as ROME does, and not all at once.",
)
@click.option("--prompts", type=click.IntRange(min=1), help="Use only the first so many prompts of the fact.")
@options.seed
@options.overwrite
@options.as_json
@options.quiet
@options.debug
@click.pass_context
def trace(
    context: click.Context,
    fact_file: Path,
    source: options.Source,
    out: Path,
    direction: Direction,
    window: int,
    one_by_one: bool,
    prompts: int | None,
    seed: int,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Trace a fact by layer and token (causal tracing); write trace.json and trace.png.

    \b
    Examples:
      peft-surgical trace france.yaml --model demo --out trace
      peft-surgical trace fact.yaml --direction denoising --window 10 --one-by-one --out rome
    """
    fact = Fact.from_file(fact_file)
    checks.output(out, overwrite, TRACE)
    with claimed(out, overwrite=overwrite):
        model, tokenizer = load(source, quiet=quiet)
        on_interrupt(context, out)
        found = ps.causal_trace(
            model,
            tokenizer,
            fact,
            direction=direction,
            window=window,
            together=not one_by_one,
            seed=seed,
            prompts=prompts,
            progress=not quiet,
        )
        if not found.prompts:
            raise FactError(
                f"nothing is left to trace: of {counted(len(found.left_out), 'prompt')} that name {fact.subject}, none"
                f" has a logit difference that the corruption lowers by {found.least:g} or more; the model may not"
                " know the fact."
            )
        with replacing(out, overwrite, TRACE) as folder:
            found.save(folder / MAP)
            drawn = is_drawn(lambda: found.plot(folder / MAP_PICTURE), MAP_PICTURE, quiet=quiet)
    if as_json:
        print_json(found.to_dict())
    files = f"{MAP} and {MAP_PICTURE}" if drawn else MAP
    print_result(
        Group(printable(found.told()), Catalogue(*found.rows()), f"{files} in {out}"),
        quiet=quiet,
        as_json=as_json,
    )
