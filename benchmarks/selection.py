"""Does it matter what is scaled? One fact, the same training, and selections by every scorer, by chance and by layer.

    python -m benchmarks.selection --model demo --fact examples/facts/france_capital.yaml --out out/selection.jsonl

**Budget.** Half of the MLPs (rounded up): the same number of components of the same kind, and so the same number of
scales. `early_mlps` and `late_mlps` have those of the first and last layers; a scorer's row has the MLPs that it ranks
first, and `random:draw=N` those that chance does. With `--heads`, each scorer and draw has a second row,
`NAME+heads`: heads and MLPs alike, best first, as long as they fit into as many scales. Four rows have another budget,
which the table says: `all_mlps`, which `edit` scales by default; `all` (heads, too); `top10` (the ten best heads and
MLPs of `localize`'s default); and `paper` (two heads and three MLPs by `consensus`, as whole modules, which were ten
in arXiv 2508.07075 because that model's projections are fused).

**Projections.** Components are scaled where `edit` scales them by default, or at each `--projection`.

**Training.** Only `learn`, from the bare model. After `unlearn` that stage begins by taking back all that the first
one changed (`Recipe.undo` is 1), so it sets out from the base either way; leaving `unlearn` out halves the time.

What is kept, the base's answers and its distributions are worked out once for all rows; only the curvature of the
scales is a row's own. Intervals are those of `evaluate`. The row `random` is the mean over the draws; its `n` is their
number, and its `low` and `high` are the smallest and the largest of them.

Every row is a line of `--out`; the same command goes on where it was interrupted. Prints a Markdown table a fact and,
as its last line, JSON: selection to metric to `{value, n, low, high}`, with `scales` and `components`; with several
facts, that under each file's name.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

import peft_surgical as ps
from peft_surgical.choice import EDIT_PROJECTIONS
from peft_surgical.cli.options import SEED
from peft_surgical.evaluation import Answers
from peft_surgical.measuring.metrics import prompt_metrics
from peft_surgical.models import DTYPES
from peft_surgical.sites import PROJECTIONS
from peft_surgical.stages import RECIPES
from peft_surgical.staging.stage import LEARN

from .baselines.staged import as_json
from .comparison import HEADS, Comparison, asked_digest, cell, row_names
from .fact_files import read_facts
from .journal import Journal, base_told, run_told

FACT = Path(__file__).resolve().parents[1] / "examples" / "facts" / "france_capital.yaml"
SHOWN = ("new_answer_rate", "old_answer_rate", "control_kept", "control_leak", "kl_per_token")
CHANCE = ("random", f"random{HEADS}")


def run(comparison: Comparison, file: str, wanted: Sequence[str], journal: Journal) -> dict[str, dict[str, Any]]:
    """Measures the rows of a fact that the journal does not have yet, and returns them all, the base first.

    Args:
        comparison: The fact.
        file: The name of its file.
        wanted: Names of rows.
        journal: Gets every row.
    """
    done = {record["row"]: record for record in journal.of_kind("row") if record["fact"] == file}
    if "base" in done:
        said = done["base"]["said"]
        comparison.base = Answers(tuple(said["held_out"]), tuple(said["controls"]), ())
    else:
        base = comparison.base
        figures = prompt_metrics(comparison.fact, base.held_out, base.controls, base.controls)
        done["base"] = {
            "figures": {name: figure.to_dict() for name, figure in figures.items()},
            "components": [],
            "scales": 0,
            "said": {"held_out": base.held_out, "controls": base.controls},
        }
        journal.append({"kind": "row", "fact": file, "row": "base", **done["base"]})
    for number, name in enumerate(wanted, 1):
        if name in done:
            continue
        try:
            done[name] = comparison.row(name)
        except ps.SurgicalError as error:
            click.echo(f"{file}: {name} is left out: {error}", err=True)
            continue
        journal.append({"kind": "row", "fact": file, "row": name, **done[name]})
        spent = sum(done[name]["seconds"].values())
        click.echo(f"{file}: {name}, {number} of {len(wanted)}: {spent:.0f} s", err=True)
    return {name: done[name] for name in ("base", *wanted) if name in done}


def results(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Figures, scales and components of each row, and of chance over all its draws."""
    found = {
        name: {**row["figures"], "scales": row["scales"], "components": row["components"]}
        for name, row in rows.items()
    }
    for name in CHANCE:
        draws = [row for key, row in rows.items() if _is_draw(key, name)]
        if len(draws) > 1:
            metrics = [metric for metric in draws[0]["figures"] if all(metric in draw["figures"] for draw in draws)]
            values = {metric: [draw["figures"][metric]["value"] for draw in draws] for metric in metrics}
            scales = round(sum(draw["scales"] for draw in draws) / len(draws))
            found[name] = {**{m: spread(v) for m, v in values.items()}, "scales": scales, "components": []}
    return found


def _is_draw(row: str, name: str) -> bool:
    return row.startswith("random:") and row.endswith(HEADS) == name.endswith(HEADS)


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean, number, smallest and largest."""
    return {"value": sum(values) / len(values), "n": len(values), "low": min(values), "high": max(values)}


def table(found: Mapping[str, Mapping[str, Any]], budget: int) -> str:
    """The figures for a person; a column's head has the number of prompts or tokens.

    Args:
        found: As [`results`] returns them.
        budget: How many scales the rows of equal budget have.
    """
    single = [figures for name, figures in found.items() if name not in CHANCE]
    counts = [next((f[metric]["n"] for f in single if metric in f), 0) for metric in SHOWN]
    heads = " | ".join(f"{metric} (n={n:,})" for metric, n in zip(SHOWN, counts, strict=True))
    lines = [f"| Selection | scales | {heads} |", "|---" * (len(SHOWN) + 2) + "|"]
    for name, figures in found.items():
        # What the base is compared with itself in is 1 or 0 by definition.
        shown = SHOWN[:2] if name == "base" else SHOWN
        cells = [cell(figures.get(metric)) if metric in shown else "–" for metric in SHOWN]
        share = figures["scales"] / budget
        scales = f"{figures['scales']:,}" + (f" ({share:.2f} × the budget)" if share not in (0, 1) else "")
        lines.append(f"| {name} | {scales} | {' | '.join(cells)} |")
    return "\n".join(lines)


def choose(only: Sequence[str], every: Sequence[str]) -> list[str]:
    """The rows to measure, in order; `random` stands for all draws.

    Raises:
        SurgicalError: For a row that there is not.
    """
    wanted: set[str] = set()
    for name in only or every:
        found = {row for row in every if row == name or (name in CHANCE and _is_draw(row, name))}
        if not found:
            raise ps.SurgicalError(f"there is no row {name!r}; choose from {', '.join(every)}.")
        wanted |= found
    return [row for row in every if row in wanted]


@click.command(help=__doc__.partition("\n")[0] if __doc__ else None)
@click.option("--model", default="demo", show_default=True, help="A hub id, a folder, a GGUF file or demo.")
@click.option(
    "--fact",
    "facts",
    multiple=True,
    default=[FACT],
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A fact file; repeat for more. The capital of France when not given.",
)
@click.option("--seeds", default=5, show_default=True, type=click.IntRange(1), help="Draws of random selections.")
@click.option(
    "--projection",
    "projections",
    multiple=True,
    type=click.Choice(PROJECTIONS),
    default=EDIT_PROJECTIONS,
    show_default=True,
    help="Where components are scaled; repeat for more.",
)
@click.option("--heads", is_flag=True, help="Also rows of heads and MLPs alike, up to as many scales.")
@click.option("--only", multiple=True, metavar="NAME", help="Only this row; repeat for more. All when not given.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="JSON lines, gone on from.")
@click.option("--prompts", default=8, show_default=True, type=click.IntRange(1), help="Prompts to localize on.")
@click.option("--steps", type=click.IntRange(1), help="Training steps; those of edit when not given.")
@click.option("--seed", type=SEED, default=0, show_default=True)
@click.option("--dtype", default="auto", show_default=True, type=click.Choice(list(DTYPES)))
@click.option("--device", default=None)
def main(
    model: str,
    facts: tuple[Path, ...],
    seeds: int,
    projections: tuple[str, ...],
    heads: bool,
    only: tuple[str, ...],
    out: Path | None,
    prompts: int,
    steps: int | None,
    seed: int,
    dtype: str,
    device: str | None,
) -> None:
    """Reads the options, runs, prints."""
    recipe = RECIPES[LEARN] if steps is None else replace(RECIPES[LEARN], steps=steps)
    try:
        wanted = choose(only, row_names(seeds, heads))
        read = {path.name: fact for path, fact in read_facts(facts).items()}
        digests = {name: asked_digest(fact) for name, fact in read.items()}
        loaded, tokenizer = ps.load_model(model, dtype=dtype, device=device)
        with tempfile.TemporaryDirectory() as scratch:
            journal = Journal(
                out or Path(scratch) / "rows.jsonl",
                {
                    "benchmark": "selection",
                    "facts": digests,
                    **base_told(model, loaded, tokenizer),
                    "seed": seed,
                    "prompts": prompts,
                    "projections": list(projections),
                    "recipe": as_json(recipe, loaded),
                },
                run_told("selection", loaded.device),
            )
            found = {}
            for file, fact in read.items():
                comparison = Comparison(
                    loaded, tokenizer, fact, recipe, projections=projections, prompts=prompts, seed=seed
                )
                found[file] = results(run(comparison, file, wanted, journal))
                click.echo(f"{fact.subject}: {fact.old[0]} → {fact.new[0]} ({file})\n")
                click.echo(table(found[file], comparison.budget) + "\n")
    except ps.SurgicalError as error:
        raise click.ClickException(str(error)) from error
    click.echo(json.dumps(found if len(found) > 1 else next(iter(found.values()))))


if __name__ == "__main__":
    main(obj=sys.argv[1:])
