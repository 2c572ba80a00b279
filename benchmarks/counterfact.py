"""Edits CounterFact cases that the base knows, one at a time, with every method in the same run.

    python -m benchmarks.counterfact --data counterfact_dev.jsonl --model demo --cases 20 --seed 0 --out out/cf.jsonl

The file is in EasyEdit's layout, JSON lines. The cases are shuffled by the seed; a case is *known* when the greedy
continuation of its prompt, as plain text without a chat template, begins with all tokens of its true answer. The first
known ones are edited, each singly, and each is measured on its prompt (ES), paraphrase (PS) and neighbour (NS) by
log-likelihood, and by what the model goes on to say; with `--known-facts` also on more neighbours that it knows. All
methods get the prompt alone and behind the same sampled contexts. The baselines take at most 25 gradient steps,
`surgical` and `surgical_keyed` 20, and the stages of `edit` (`staged`) 8 and 15, after one pass over what they keep,
as do the 15 of `keyed`.

Every result is a line of `--out`; the same command goes on where it was interrupted, and is refused where the weights,
a method's settings or its recipe are others than those of the rows that are there. Prints a Markdown table and, as its
last line, JSON: method to metric to `{value, n, low, high}`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

import peft_surgical as ps
from peft_surgical.cli.options import SEED

from .baselines import METHODS, Method, build, described
from .cases import Case
from .counterfact_metrics import figures
from .journal import Journal
from .known_cases import KNOWN, known_among, known_cases, opened, shared_options
from .known_facts import KnownFact, neighbours
from .measuring import edit_and_measure
from .settings import check_rates, learning_rates

SHOWN = (
    "es",
    "ps",
    "ns",
    "score",
    "score_neighbour_known",
    "new_answer_rate",
    "paraphrase_new_answer_rate",
    "neighbour_kept",
    "known_neighbours_kept",
)


def run(
    model: Any,
    tokenizer: Any,
    cases: Sequence[Case],
    methods: Sequence[Method],
    journal: Journal,
    count: int,
    seed: int,
    facts: Sequence[KnownFact] = (),
) -> dict[str, dict[str, ps.Figure]]:
    """Edits what the journal does not have yet, case by case, and returns all figures.

    Args:
        model: The base, frozen.
        tokenizer: Without a chat template.
        cases: In the order of the seed.
        methods: The base among them.
        journal: Gets every result.
        count: How many known cases to edit.
        seed: Of methods and of the Score's interval.
        facts: Where more neighbours of a case are looked for.
    """
    contexts = tuple(journal.of_kind("contexts")[0]["contexts"])
    chosen = known_cases(model, tokenizer, cases, count, journal)
    if len(chosen) < count:
        click.echo(f"the base knows {len(chosen)} cases only; asked for {count}", err=True)
    known = known_among(model, tokenizer, facts, journal) if facts else set()
    given = {method.name: described(method, model) for method in methods}
    done = {(record["method"], record["case_id"]): record for record in journal.of_kind("case")}
    for number, case in enumerate(chosen, 1):
        beside = [fact for fact in neighbours(case, facts) if fact in known]
        for method in methods:
            key = (method.name, case.case_id)
            if key in done:
                continue
            found = edit_and_measure(model, tokenizer, method, case, contexts, seed, beside)
            done[key] = {"kind": "case", "method": key[0], "case_id": key[1], "settings": given[key[0]], **found}
            journal.append(done[key])
            click.echo(f"case {number} of {len(chosen)}, {method.name}: {found['seconds']:.1f} s", err=True)
    base = [done["base", case.case_id] for case in chosen]
    result = {}
    for method in methods:
        records = [done[method.name, case.case_id] for case in chosen]
        result[method.name] = figures(chosen, records, base, [record["seconds"] for record in records], seed)
    return result


def table(result: Mapping[str, Mapping[str, ps.Figure]]) -> str:
    """The figures for a person, rates in percent; a column's head has the number of cases that it counts."""
    counts = [next((found[metric].n for found in result.values() if metric in found), 0) for metric in SHOWN]
    heads = " | ".join(f"{metric} (n={n:,})" for metric, n in zip(SHOWN, counts, strict=True))
    lines = [f"| Method | {heads} | s an edit |", "|---" * (len(SHOWN) + 2) + "|"]
    for name, found in result.items():
        cells = [_percent(found.get(metric)) for metric in SHOWN]
        seconds = f"{found['seconds_per_edit'].value:.1f}" if "seconds_per_edit" in found else "–"
        lines.append(f"| {name} | {' | '.join(cells)} | {seconds} |")
    return "\n".join(lines)


def _percent(figure: ps.Figure | None) -> str:
    if figure is None:
        return "–"
    return f"{100 * figure.value:.1f} [{100 * figure.low:.1f}, {100 * figure.high:.1f}]"


@click.command(help=__doc__.partition("\n")[0] if __doc__ else None)
@click.option("--data", required=True, type=click.Path(path_type=Path), help="Cases as JSON lines, EasyEdit's layout.")
@click.option("--model", default="demo", show_default=True, help="A hub id, a folder, a GGUF file or demo.")
@click.option("--cases", "count", default=20, show_default=True, type=click.IntRange(1), help="Known cases to edit.")
@click.option("--seed", type=SEED, default=0, show_default=True)
@click.option(
    "--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="JSON lines, gone on from."
)
@click.option("--method", "names", multiple=True, type=click.Choice(list(METHODS)), help="All when not given.")
@click.option("--learning-rate", "rates", multiple=True, callback=learning_rates, metavar="METHOD=LR")
@shared_options
def main(
    data: Path,
    model: str,
    count: int,
    seed: int,
    out: Path,
    names: tuple[str, ...],
    rates: dict[str, float],
    **given: Any,
) -> None:
    """Reads the options, runs, prints."""
    try:
        # The base's own figures stand beside every method's, and what is kept is kept of its answers.
        wanted = dict.fromkeys(("base", *(names or METHODS)))
        check_rates(rates, wanted)
        methods = [build(name, rates.get(name)) for name in wanted]
        held = opened("counterfact", methods, out, {"known": KNOWN}, data=data, model=model, seed=seed, **given)
        result = run(held.model, held.tokenizer, held.cases, methods, held.journal, count, seed, held.facts)
    except ps.SurgicalError as error:
        raise click.ClickException(str(error)) from error
    click.echo(table(result))
    click.echo(json.dumps({name: {k: v.to_dict() for k, v in found.items()} for name, found in result.items()}))


if __name__ == "__main__":
    main(obj=sys.argv[1:])
