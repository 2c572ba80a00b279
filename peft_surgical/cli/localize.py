"""`peft-surgical localize`: where a fact sits, without editing it."""

from __future__ import annotations

from pathlib import Path

import click
from rich import box
from rich.console import Group
from rich.table import Table

from ..claims import claimed
from ..text import printable
from . import checks, options
from .loading import load
from .terminal import note, on_interrupt, print_json, print_result


@click.command(short_help="Find the heads and MLPs that hold a fact.")
@options.fact
@options.model
@options.out
@options.scorer
@click.option(
    "--top", type=click.IntRange(min=1), default=10, show_default=True, help="Components to list and outline."
)
@click.option("--prompts", type=click.IntRange(min=1), help="Use only the first so many prompts of the fact.")
@options.seed
@options.overwrite
@options.as_json
@options.quiet
@options.debug
@click.pass_context
def localize(
    context: click.Context,
    fact_file: Path,
    model_name: str,
    dtype: str,
    device: str | None,
    trust_remote_code: bool,
    out: Path,
    scorers: tuple[str, ...],
    top: int,
    prompts: int | None,
    seed: int,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Score every head and MLP of a model for a fact; write localization.json and localization.png.

    \b
    Examples:
      peft-surgical localize examples/facts/france_capital.yaml --model demo --out where
      peft-surgical localize fact.yaml --scorer attribution:steps=5 --scorer random --out where
    """
    from ..facts import Fact

    fact = Fact.from_file(fact_file)
    checks.output(out, overwrite)
    checks.scorers(scorers)
    with claimed(out, overwrite=overwrite):
        model, tokenizer = load(
            model_name, dtype=dtype, device=device, trust_remote_code=trust_remote_code, quiet=quiet
        )
        checks.model_has(model, None, top)
        import peft_surgical as ps

        on_interrupt(context, out)
        found = ps.localize(
            model, tokenizer, fact, list(scorers) or None, seed=seed, prompts=prompts, progress=not quiet
        )
        chosen = found.top(top)
        found.save(out / "localization.json")
        drawn = _draw(found, chosen, out / "localization.png", quiet)
    if as_json:
        print_json(found.to_dict())
    header, rows = found.rows(top)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for number, name in enumerate(header):
        table.add_column(name, justify="left" if number == 1 else "right")
    for row in rows:
        table.add_row(*row)
    files = "localization.json and localization.png" if drawn else "localization.json"
    print_result(
        Group(
            printable(f"The best {len(rows)} components for {fact.subject}, by {header[2]}:"),
            table,
            f"{files} in {out}",
        ),
        quiet=quiet,
        as_json=as_json,
    )


def _draw(found: object, chosen: object, path: Path, quiet: bool) -> bool:
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        note("localization.png is left out: it needs matplotlib (pip install 'peft-surgical[plot]').", quiet=quiet)
        return False
    from ..plots import plot_localization

    plot_localization(found, chosen, path)  # type: ignore[arg-type]
    return True
