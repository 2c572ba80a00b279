"""`peft-surgical localize`: where a fact sits, without editing it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click
from rich.console import Group, RenderableType

import peft_surgical as ps

from ..carried import DRAWS
from ..choice import EDIT_PROJECTIONS
from ..counts import counted
from ..edit_folder import LOCALIZATION, PICTURE, TABLE, replacing
from ..errors import ScorerError, SurgicalError
from ..facts import Fact
from ..localizing.faithfulness import Faithfulness
from ..localizing.plots import plot_localization
from ..texts.text import printable
from ..writing.claims import claimed
from . import checks, options
from .loading import load
from .tables import Catalogue, ScoreTable
from .terminal import is_drawn, on_interrupt, print_json, print_result


@click.command(short_help="Find the heads and MLPs that hold a fact.")
@options.fact
@options.model
@options.out
@options.scorer("verified and attribution")
@click.option(
    "--top",
    type=click.IntRange(min=1),
    help="Components to list, outline and keep.  [default: 10, or as others limit it]",
)
@options.heads
@options.mlps
@click.option("--budget", type=click.IntRange(min=1), help="Scales at most, counted where `edit` puts them.")
@options.faithfulness
@click.option("--draws", type=click.IntRange(min=0), help="Random selections for --faithfulness.  [default: 20]")
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
    source: options.Source,
    out: Path,
    scorers: tuple[str, ...],
    top: int | None,
    heads: int | None,
    mlps: int | None,
    budget: int | None,
    faithfulness: bool,
    draws: int | None,
    prompts: int | None,
    seed: int,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Score every head and MLP of a model for a fact; write localization.json and localization.png.

    \b
    Examples:
      peft-surgical localize france.yaml --model demo --out where
      peft-surgical localize fact.yaml --scorer attribution:steps=5 --scorer random --out where
      peft-surgical localize fact.yaml --heads 2 --mlps 3 --out where
      peft-surgical localize fact.yaml --top 10 --faithfulness --out where
    """
    if draws is not None and not faithfulness:
        raise click.UsageError("--draws says beside how many random selections --faithfulness measures; give both.")
    limits = {"top": top, "heads": heads, "mlps": mlps, "budget": budget}
    fact = Fact.from_file(fact_file)
    checks.output(out, overwrite, LOCALIZATION)
    checks.scorers(scorers)
    with claimed(out, overwrite=overwrite):
        model, tokenizer = load(source, quiet=quiet)
        checks.model_has(model, None, limits, EDIT_PROJECTIONS)
        on_interrupt(context, out)
        found = ps.localize(
            model, tokenizer, fact, list(scorers) or None, seed=seed, prompts=prompts, progress=not quiet
        )
        if found.scorers[0] in found.errors:
            # What the others found took its time.
            with replacing(out, overwrite, LOCALIZATION) as folder:
                found.save(folder / TABLE)
            raise ScorerError(
                f"the scorer {found.scorers[0]!r} failed, so nothing ranks the components; the scores by "
                f"{', '.join(found.tables)} are in {out / TABLE}."
            )
        chosen = found.top(top, heads=heads, mlps=mlps, budget=budget, projections=EDIT_PROJECTIONS)
        with replacing(out, overwrite, LOCALIZATION) as folder:
            found.save(folder / TABLE, chosen)
            drawn = is_drawn(lambda: plot_localization(found, chosen, folder / PICTURE), PICTURE, quiet=quiet)
        if faithfulness:
            # The scores stay, whatever becomes of this.
            count = DRAWS if draws is None else draws
            try:
                carried = ps.faithfulness(
                    model, tokenizer, fact, chosen, draws=count, seed=seed, prompts=prompts, progress=not quiet
                )
            except SurgicalError as error:
                raise type(error)(f"what was found is in {out}, but not what it carries together: {error}") from error
            found = replace(found, faithfulness=carried)
            with replacing(out, True, [TABLE]) as folder:
                found.save(folder / TABLE, chosen)
    if as_json:
        print_json({"selection": chosen.to_dict(), **found.to_dict()})
    header, rows = found.rows()
    rows = [row for row in rows if row[1] in chosen.components]
    files = f"{TABLE} and {PICTURE}" if drawn else TABLE
    print_result(
        Group(
            printable(f"The best {counted(len(rows), 'component')} for {fact.subject}, by {header[2]}:"),
            ScoreTable(header, rows, f"{TABLE} has all scores"),
            *_carried(found.faithfulness),
            f"{files} in {out}",
        ),
        quiet=quiet,
        as_json=as_json,
    )
    if found.errors:
        names = ", ".join(map(repr, found.errors))
        raise ScorerError(f"what was found is in {out}, but without the scores of {names}, which failed.")


def _carried(found: Faithfulness | None) -> list[RenderableType]:
    return [] if found is None else ["", found.told(), Catalogue(*found.rows())]
