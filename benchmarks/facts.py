"""Edits fact files one after another with the defaults of `peft-surgical edit`, or `edit-keyed`, and prints what the
reports say.

    python -m benchmarks.facts examples/facts/*.yaml --model demo --out out/facts

Prints a Markdown table and, as its last line, JSON: fact file to stage to metric to `{value, n, low, high}`. As with
the command, what the first edit measures on the package's own questions is kept on disk, so others take less time.
"""

from __future__ import annotations

import json
from pathlib import Path

import click

import peft_surgical as ps
from peft_surgical.cli.options import SEED
from peft_surgical.measuring.metrics import stages_to_dict
from peft_surgical.running.cache import FOLDER, answers_kept
from peft_surgical.writing.files import check_output

from .fact_files import read_facts

SHOWN = ("new_answer_rate", "old_answer_rate", "control_kept", "subject_kept", "control_leak", "kl_per_token")


@click.command()
@click.argument("facts", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--model", default="demo", show_default=True)
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path))
@click.option("--seed", type=SEED, default=0, show_default=True)
@click.option("--overwrite", is_flag=True, help="Replace earlier edits in the folder.")
@click.option("--keyed", is_flag=True, help="By `edit-keyed`.")
def main(facts: tuple[Path, ...], model: str, out: Path, seed: int, overwrite: bool, keyed: bool) -> None:
    """Edits each fact in a fresh copy of the model."""
    edit = ps.edit_keyed if keyed else ps.edit
    reports: dict[str, ps.Report] = {}
    try:
        read = read_facts(facts)
        # All are looked at before the first is edited: one that is in the way should not cost the others' time.
        for path in read:
            check_output(out / path.stem, overwrite=overwrite)
        for path, fact in read.items():
            loaded, tokenizer = ps.load_model(model)
            target = out / path.stem
            with answers_kept(out / FOLDER):
                reports[path.name] = edit(loaded, tokenizer, fact, out=target, seed=seed, overwrite=overwrite)
    except ps.SurgicalError as error:
        raise click.ClickException(str(error)) from error
    click.echo("| Fact | base says old | new | old | controls kept | of the subject | leak | KL per token | seconds |")
    click.echo("|---|---|---|---|---|---|---|---|---|")
    for report in reports.values():
        edited = report.stages["edited"]
        cells = [report.stages["base"].get("old_answer_rate"), *(edited.get(metric) for metric in SHOWN)]
        shown = " | ".join(map(_cell, cells))
        answers = f"{report.fact.old[0]} → {report.fact.new[0]}"
        click.echo(f"| {report.fact.subject}: {answers} | {shown} | {sum(report.seconds.values()):.0f} |")
    click.echo(json.dumps({name: stages_to_dict(report.stages) for name, report in reports.items()}))


def _cell(figure: ps.Figure | None) -> str:
    # A metric with nothing to count is left out, such as what is kept of controls that the base answers wrong.
    return "–" if figure is None else f"{figure.value:.3f} [{figure.low:.3f}, {figure.high:.3f}] n={figure.n:,}"


if __name__ == "__main__":
    main()
