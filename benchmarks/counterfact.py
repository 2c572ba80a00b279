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
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click

import peft_surgical as ps
from peft_surgical.cli.options import SEED
from peft_surgical.models import DTYPES
from peft_surgical.sentence import sample_contexts
from peft_surgical.texts.prompts import without_template

from .baselines import BATCHED, METHODS, Method, build, described
from .cases import Case, read_cases
from .counterfact_metrics import figures
from .journal import Journal, configuration_digest, read_records, surroundings, weights_digest
from .known_facts import KnownFact, neighbours, read_known_facts
from .measuring import NEW_TOKENS, edit_and_measure
from .plain_text import greedily_follows

KNOWN = "the greedy continuation of the prompt, as plain text, begins with all tokens of the true answer"
BATCH = 64
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


def known_cases(model: Any, tokenizer: Any, cases: Sequence[Case], count: int, journal: Journal) -> list[Case]:
    """The first cases that the base knows, in order; a batch that the journal has is not asked again."""
    records = journal.of_kind("known")
    known = {number for record in records for number in record["known"]}
    checked = sum(record["checked"] for record in records)
    while len(known) < count and checked < len(cases):
        batch = cases[checked : checked + BATCH]
        found = greedily_follows(model, tokenizer, [(case.prompt, case.old) for case in batch])
        numbers = [case.case_id for case, follows in zip(batch, found, strict=True) if follows]
        journal.append({"kind": "known", "checked": len(batch), "known": numbers})
        known.update(numbers)
        checked += len(batch)
        click.echo(f"the base knows {len(known)} of {checked} cases", err=True)
    return [case for case in cases if case.case_id in known][:count]


def known_among(model: Any, tokenizer: Any, facts: Sequence[KnownFact], journal: Journal) -> set[KnownFact]:
    """The facts that the base knows, in the sense of [`KNOWN`]; asked once a file of results."""
    if not journal.of_kind("known facts"):
        found: list[bool] = []
        for start in range(0, len(facts), BATCH):
            batch = facts[start : start + BATCH]
            found += greedily_follows(model, tokenizer, [(fact.prompt, fact.answer) for fact in batch])
        journal.append({"kind": "known facts", "known": [place for place, follows in enumerate(found) if follows]})
    [record] = journal.of_kind("known facts")
    return {facts[place] for place in record["known"]}


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


def check_settings(path: Path, records: Sequence[Mapping[str, Any]], methods: Sequence[Method], model: Any) -> None:
    """Refuses to add to a method's results others that it would reach with other settings, or to give them for these.

    Args:
        path: The file of results.
        records: What it holds.
        methods: With the settings of this run.
        model: The base.

    Raises:
        OutputError: Names the method and a setting that differs, or that the file does not tell.
    """
    wanted = {method.name: flat(described(method, model)) for method in methods}
    for record in records:
        name = record.get("method")
        if name not in wanted or "settings" not in record:
            continue
        held, now = flat(record["settings"]), wanted[name]
        for key in {**now, **held}:
            if key not in held:
                raise ps.OutputError(
                    f"{path} holds rows of {name} that do not say what {key} they were taken with, and this run has"
                    f" {now[key]!r}; name another file."
                )
            if key not in now or held[key] != now[key]:
                raise ps.OutputError(
                    f"{path} holds {name} with {key} {held[key]!r}, and this run has {now.get(key)!r}; name another"
                    " file."
                )


def flat(settings: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Settings in settings by names with dots.

    ```py
    >>> flat({"rank": 8, "recipe": {"steps": 25}})
    {'rank': 8, 'recipe.steps': 25}
    ```
    """
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= flat(value, f"{before}{name}.") if isinstance(value, dict) else {before + name: value}
    return found


def learning_rates(context: click.Context, parameter: click.Parameter, given: tuple[str, ...]) -> dict[str, float]:
    """Reads `METHOD=LR`."""
    rates = {}
    for text in given:
        name, _, value = text.partition("=")
        try:
            rates[name] = float(value)
        except ValueError:
            raise click.BadParameter(f"{text!r} is not of the form METHOD=LR.") from None
        if name not in (known := {**METHODS, **BATCHED}):
            raise click.BadParameter(f"there is no method {name!r}; choose from {', '.join(known)}.")
    return rates


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


def shared_options(command: Any) -> Any:
    """The options of benchmarks that edit known cases, beside those of their methods."""
    for option in reversed(
        (
            click.option(
                "--contexts", default=20, show_default=True, type=click.IntRange(0), help="Beginnings to sample."
            ),
            click.option(
                "--exclude",
                multiple=True,
                type=click.Path(exists=True, dir_okay=False, path_type=Path),
                help="Leave out the cases that this other file of results has, such as those of tuning.",
            ),
            click.option(
                "--known-facts",
                default=None,
                type=click.Path(path_type=Path),
                help="Other facts, from a file as that of known_1000.",
            ),
            click.option("--dtype", default="auto", show_default=True, type=click.Choice(list(DTYPES))),
            click.option("--device", default=None),
        )
    ):
        command = option(command)
    return command


class Opened(NamedTuple):
    """What a benchmark that edits known cases begins with.

    Attributes:
        model: The base, frozen.
        tokenizer: Without a chat template.
        cases: In the order of the seed, without those that are left out.
        facts: Where more facts are looked for.
        journal: Has the contexts.
    """

    model: Any
    tokenizer: Any
    cases: list[Case]
    facts: list[KnownFact]
    journal: Journal


def opened(
    benchmark: str,
    methods: Sequence[Method],
    out: Path,
    more: Mapping[str, Any],
    *,
    data: Path,
    model: str,
    seed: int,
    contexts: int,
    exclude: Sequence[Path],
    known_facts: Path | None,
    dtype: str,
    device: str | None,
) -> Opened:
    """Reads the files, loads the model and opens the journal.

    Args:
        benchmark: The module's name.
        methods: What will run.
        out: The file of results.
        more: What else must be the same for its records to be comparable.
        data: As the option; so are the others.
        model: See `data`.
        seed: See `data`.
        contexts: See `data`.
        exclude: See `data`.
        known_facts: See `data`.
        dtype: See `data`.
        device: See `data`.
    """
    cases, digest = read_cases(data, seed)
    left_out = {record["case_id"] for path in exclude for record in read_records(path) if "case_id" in record}
    facts, facts_digest = ([], "") if known_facts is None else read_known_facts(known_facts)
    loaded, tokenizer = ps.load_model(model, dtype=dtype, device=device)
    loaded.requires_grad_(False)
    journal = Journal(
        out,
        {
            "benchmark": benchmark,
            "data": {"name": data.name, "sha256": digest, "left_out": sorted(left_out)},
            "model": model,
            "weights_sha256": weights_digest(loaded),
            "configuration_sha256": configuration_digest(loaded, tokenizer),
            "dtype": str(loaded.dtype).removeprefix("torch."),
            "seed": seed,
            "contexts": contexts,
            "new_tokens": NEW_TOKENS,
            **more,
            "known_facts": known_facts and {"name": known_facts.name, "sha256": facts_digest},
        },
        {"command": command(benchmark), **surroundings(loaded.device)},
        lambda records: check_settings(out, records, methods, loaded),
    )
    plain = without_template(tokenizer)
    if not journal.of_kind("contexts"):
        journal.append({"kind": "contexts", "contexts": sample_contexts(loaded, plain, contexts, seed)})
    return Opened(loaded, plain, [case for case in cases if case.case_id not in left_out], facts, journal)


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
        if unused := [name for name in rates if name not in wanted]:
            raise ps.SurgicalError(f"a learning rate is given for {unused[0]!r}, which does not run.")
        methods = [build(name, rates.get(name)) for name in wanted]
        held = opened("counterfact", methods, out, {"known": KNOWN}, data=data, model=model, seed=seed, **given)
        result = run(held.model, held.tokenizer, held.cases, methods, held.journal, count, seed, held.facts)
    except ps.SurgicalError as error:
        raise click.ClickException(str(error)) from error
    click.echo(table(result))
    click.echo(json.dumps({name: {k: v.to_dict() for k, v in found.items()} for name, found in result.items()}))


def command(benchmark: str) -> str:
    """The command line of this run."""
    arguments = click.get_current_context().obj or []
    return shlex.join(["python", "-m", f"benchmarks.{benchmark}", *arguments])


if __name__ == "__main__":
    main(obj=sys.argv[1:])
