"""Puts many CounterFact edits into one model, and measures after each of some counts what became of all of them.

    python -m benchmarks.together --data counterfact_dev.jsonl --known-facts known_facts_dev.jsonl --model demo \\
        --cases 50 --after 1 --after 20 --after 50 --method surgical_keyed --at-once memit --out out/together.jsonl

The cases are those of [`benchmarks.counterfact`][benchmarks.counterfact] with the same options, in their order. A
`--method` edits one after another, each in the model that has those before it, as `--on` does; one that is made for
many (`--at-once`) gets the first 1, 20, 50 together, in the base. Measured are, of all cases edited so far, ES, PS,
NS, their Score and what the model says; of facts that the base knows and that none of the cases is about, how many it
still completes; and on unrelated text the divergence from the base. An edit that its method refuses is counted as one
that does nothing, and told.

A method's results are lines of `--out`; the same command leaves out what is there. Prints a Markdown table and, as its
last line, JSON: method to count to metric to `{value, n, low, high}`.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

import peft_surgical as ps
from peft_surgical.cli.options import SEED
from peft_surgical.measuring.metrics import Figure, rate
from peft_surgical.measuring.retention import measure_retention
from peft_surgical.texts.text import contains

from .baselines import BATCHED, METHODS, Request, Write, build, build_batched, described
from .baselines.folded import Weights, keep
from .cases import Case
from .counterfact_metrics import figures
from .journal import Journal
from .known_cases import completed, known_among, known_cases, opened, shared_options
from .known_facts import KnownFact
from .measuring import measure
from .settings import check_rates, learning_rates

SHOWN = ("es", "ps", "ns", "score", "new_answer_rate", "other_facts_kept", "kl_per_token", "perplexity_ratio")
_ABSOLUTE = ("kl_per_token", "perplexity_ratio")
_RETENTION_TOKENS = 2048


@dataclass(frozen=True)
class Run:
    """What is edited and what is asked.

    Attributes:
        model: The base, frozen; every bit of it is the base's again when a method is done.
        tokenizer: Without a chat template.
        cases: In the order in which they are edited.
        contexts: Beginnings that an edit may put before its prompt.
        others: Facts that the base knows and that no case is about.
        counts: After how many edits to measure, ascending.
        seed: Of methods and of the Score's interval.
    """

    model: Any
    tokenizer: Any
    cases: Sequence[Case]
    contexts: tuple[str, ...]
    others: Sequence[KnownFact]
    counts: Sequence[int]
    seed: int

    def measured(self, count: int, base: Weights | None = None) -> dict[str, Any]:
        """What becomes of the first cases and of everything else in the state that the model is in.

        Args:
            count: How many cases.
            base: The base's weights where they are others than the model's.
        """
        cases = {str(case.case_id): measure(self.model, self.tokenizer, case) for case in self.cases[:count]}
        right = completed(self.model, self.tokenizer, self.others)
        states = {"base": nullcontext if base is None else base.acting, "edited": nullcontext}
        text = measure_retention(self.model, self.tokenizer, states, tokens=_RETENTION_TOKENS)["edited"]
        return {
            "cases": cases,
            "other_facts": right,
            "text": {name: figure.to_dict() for name, figure in text.items()},
        }

    def edited(self, way: Way) -> Iterator[tuple[int, float, list[int], dict[str, Any]]]:
        """Edits in one way; after each count, how long its edits took, which were refused, and what is measured."""
        if way.method.name == "base":
            for count in self.counts:
                yield count, 0.0, [], self.measured(count)
            return
        base = Weights(self.model.parameters())
        requests = [case.request(self.contexts, [fact.prompt for fact in self.others]) for case in self.cases]
        seconds, refused, done = 0.0, list[int](), 0
        with base.put_back_after(), way.writing(self.model, self.tokenizer, self.seed) as write:
            for count in self.counts:
                if way.at_once:
                    base.put_back()
                    seconds, refused, done = 0.0, [], 0
                size = count if way.at_once else 1
                for start in range(done, count, size):
                    started = time.perf_counter()
                    try:
                        write(requests[start : start + size])
                    except ps.SurgicalError as error:
                        some = [case.case_id for case in self.cases[start : start + size]]
                        refused += some
                        click.echo(f"{way} does not edit {', '.join(map(str, some))}: {error}", err=True)
                    seconds += time.perf_counter() - started
                done = count
                yield count, round(seconds, 3), list(refused), self.measured(count, base)


@dataclass(frozen=True)
class Way:
    """How the cases are edited.

    Attributes:
        method: By what; one of `BATCHED` if all are edited at once.
        at_once: All together, or one after another.
    """

    method: Any
    at_once: bool = False

    def __str__(self) -> str:
        """Its name in a table."""
        return f"{self.method.name}, at once" if self.at_once else str(self.method.name)

    @contextmanager
    def writing(self, model: Any, tokenizer: Any, seed: int) -> Iterator[Write]:
        """What edits requests in the model as it is, and leaves it so; of a method for one request, one at a time."""
        if self.method.name in BATCHED and not self.at_once:
            # One after another, it knows of those before.
            with self.method.sequence(model, tokenizer, seed) as write:
                yield write
            return

        def write_and_keep(requests: Sequence[Request]) -> None:
            if self.at_once:
                keep(model, self.method.edit_batch(model, tokenizer, requests, seed))
            else:
                [request] = requests
                keep(model, self.method.edit(model, tokenizer, request, seed))

        yield write_and_keep


def run(plan: Run, ways: Sequence[Way], journal: Journal) -> dict[str, dict[str, dict[str, Figure]]]:
    """Edits what the journal does not have yet, and returns all figures: way to count to metric.

    Args:
        plan: What is edited.
        ways: The base among them.
        journal: Gets every result.
    """
    done = {(record["way"], record["count"]): record for record in journal.of_kind("together")}
    for way in ways:
        if all((str(way), count) in done for count in plan.counts):
            continue
        told = {"way": str(way), "method": way.method.name, "settings": described(way.method, plan.model)}
        for count, seconds, refused, measured in plan.edited(way):
            click.echo(f"{way}, {count} edits: {seconds:.1f} s", err=True)
            if (str(way), count) in done:
                continue
            record = {"kind": "together", **told, "count": count, "seconds": seconds, "refused": refused, **measured}
            done[str(way), count] = record
            journal.append(record)
    return {
        str(way): {str(count): _figures(plan, done[str(way), count], done["base", count]) for count in plan.counts}
        for way in ways
    }


def _figures(plan: Run, record: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Figure]:
    cases = plan.cases[: record["count"]]
    measured, before = ([held["cases"][str(case.case_id)] for case in cases] for held in (record, base))
    found = figures(cases, measured, before, [], plan.seed)
    if (kept := rate(record["other_facts"])) is not None:
        found["other_facts_kept"] = kept
    return found | {name: Figure(**figure) for name, figure in record["text"].items()}


def about_none(facts: Sequence[KnownFact], cases: Sequence[Case]) -> list[KnownFact]:
    """The facts whose prompt names no case's subject, nor is about a subject that a case's prompt names."""
    subjects = [case.subject for case in cases]
    asked = [case.prompt for case in cases]
    return [
        fact
        for fact in facts
        if not any(contains(fact.prompt, (subject,)) for subject in subjects)
        and not any(contains(prompt, (fact.subject,)) for prompt in asked)
    ]


def table(found: Mapping[str, Mapping[str, Mapping[str, Figure]]], seconds: Mapping[tuple[str, str], float]) -> str:
    """The figures for a person, rates in percent."""
    lines = [f"| Method | edits | {' | '.join(SHOWN)} | seconds |", "|---" * (len(SHOWN) + 3) + "|"]
    for name, counts in found.items():
        for count, held in counts.items():
            cells = " | ".join(_cell(metric, held.get(metric)) for metric in SHOWN)
            lines.append(f"| {name} | {count} | {cells} | {seconds[name, count]:.0f} |")
    return "\n".join(lines)


def _cell(metric: str, figure: Figure | None) -> str:
    if figure is None:
        return "–"
    if metric in _ABSOLUTE:
        return f"{figure.value:.4f} [{figure.low:.4f}, {figure.high:.4f}]"
    return f"{100 * figure.value:.1f} [{100 * figure.low:.1f}, {100 * figure.high:.1f}]"


@click.command(help=__doc__.partition("\n")[0] if __doc__ else None)
@click.option("--data", required=True, type=click.Path(path_type=Path), help="Cases as JSON lines, EasyEdit's layout.")
@click.option("--model", default="demo", show_default=True, help="A hub id, a folder, a GGUF file or demo.")
@click.option("--cases", "total", default=20, show_default=True, type=click.IntRange(1), help="Known cases.")
@click.option(
    "--after", "counts", multiple=True, type=click.IntRange(1), help="Measure after so many of them.  [default: all]"
)
@click.option("--seed", type=SEED, default=0, show_default=True)
@click.option(
    "--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="JSON lines, gone on from."
)
@click.option("--method", "names", multiple=True, type=click.Choice([name for name in METHODS if name != "base"]))
@click.option(
    "--at-once", multiple=True, type=click.Choice(list(BATCHED)), help="A method that gets all cases at once."
)
@click.option("--learning-rate", "rates", multiple=True, callback=learning_rates, metavar="METHOD=LR")
@shared_options
def main(
    data: Path,
    model: str,
    total: int,
    counts: tuple[int, ...],
    seed: int,
    out: Path,
    names: tuple[str, ...],
    at_once: tuple[str, ...],
    rates: dict[str, float],
    **given: Any,
) -> None:
    """Reads the options, runs, prints."""
    after = sorted(set(counts)) or [total]
    try:
        if after[-1] > total:
            raise ps.SurgicalError(f"there are {total} cases to edit, so none is measured after {after[-1]}.")
        check_rates(rates, {*names, *at_once})
        ways = [Way(build(name, rates.get(name))) for name in dict.fromkeys(("base", *names))]
        ways += [Way(build_batched(name, rates.get(name)), True) for name in dict.fromkeys(at_once)]
        # Which facts no case is about depends on all of the cases.
        more = {"cases": total, "retention_tokens": _RETENTION_TOKENS}
        methods = [way.method for way in ways]
        loaded, plain, cases, facts, journal = opened(
            "together", methods, out, more, data=data, model=model, seed=seed, **given
        )
        chosen = known_cases(loaded, plain, cases, total, journal)
        if len(chosen) < total:
            raise ps.SurgicalError(f"the base knows {len(chosen)} cases only; asked for {total}.")
        known = known_among(loaded, plain, facts, journal) if facts else set()
        others = about_none([fact for fact in facts if fact in known], chosen)
        contexts = tuple(journal.of_kind("contexts")[0]["contexts"])
        found = run(Run(loaded, plain, chosen, contexts, others, after, seed), ways, journal)
    except ps.SurgicalError as error:
        raise click.ClickException(str(error)) from error
    seconds = {(record["way"], str(record["count"])): record["seconds"] for record in journal.of_kind("together")}
    click.echo(table(found, seconds))
    as_json = {
        name: {count: {k: v.to_dict() for k, v in held.items()} for count, held in by_count.items()}
        for name, by_count in found.items()
    }
    click.echo(json.dumps(as_json))


if __name__ == "__main__":
    main(obj=sys.argv[1:])
