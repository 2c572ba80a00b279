"""Puts many CounterFact edits into one model, and measures after each of some counts what became of all of them.

    python -m benchmarks.together --data counterfact_dev.jsonl --known-facts known_facts_dev.jsonl --model demo \\
        --after 1 --after 20 --after 50 --seed 0 --out out/together.jsonl

The cases are those of [`benchmarks.counterfact`][benchmarks.counterfact] with the same options, in their order. A
method that edits one request edits each in the model that has those before it, as `--on` does; one that edits a batch
(`edit_batch`) gets the first 1, 20, 50 together, in the base. Measured are, of all cases edited so far, ES, PS, NS,
their Score and what the model says; of facts that the base knows and that no case is about, how many it still
completes; and on unrelated text the divergence from the base. An edit that its method refuses is counted among them
as one that is not there, and told.

A method's results are lines of `--out`; the same command leaves out what is there. Prints a Markdown table and, as its
last line, JSON: method to count to metric to `{value, n, low, high}`.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

import peft_surgical as ps
from peft_surgical.cli.options import SEED
from peft_surgical.measuring.metrics import Figure, rate
from peft_surgical.measuring.retention import measure_retention
from peft_surgical.models import DTYPES
from peft_surgical.sentence import sample_contexts
from peft_surgical.texts.prompts import without_template
from peft_surgical.texts.text import contains

from .baselines import METHODS, Method, build, described
from .baselines.folded import Weights, keep
from .baselines.method import BatchMethod
from .cases import Case, read_cases
from .counterfact import check_settings, known_among, known_cases, learning_rates
from .counterfact_metrics import figures
from .journal import Journal, configuration_digest, read_records, surroundings, weights_digest
from .known_facts import KnownFact, read_known_facts
from .measuring import NEW_TOKENS, measure
from .plain_text import greedily_follows

SHOWN = ("es", "ps", "ns", "score", "new_answer_rate", "other_facts_kept", "kl_per_token", "perplexity_ratio")
_ABSOLUTE = ("kl_per_token", "perplexity_ratio")
_BATCH = 64
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
        right = []
        for start in range(0, len(self.others), _BATCH):
            asked = [(fact.prompt, fact.answer) for fact in self.others[start : start + _BATCH]]
            right += greedily_follows(self.model, self.tokenizer, asked)
        states = {"base": nullcontext if base is None else base.acting, "edited": nullcontext}
        text = measure_retention(self.model, self.tokenizer, states, tokens=_RETENTION_TOKENS)["edited"]
        return {
            "cases": cases,
            "other_facts": right,
            "text": {name: figure.to_dict() for name, figure in text.items()},
        }

    def edited(self, method: Method) -> Iterator[tuple[int, float, list[int], dict[str, Any]]]:
        """Edits with one method; after each count, how long its edits took, which it refused, and what is measured."""
        if method.name == "base":
            for count in self.counts:
                yield count, 0.0, [], self.measured(count)
            return
        base = Weights(self.model.parameters())
        requests = [case.request(self.contexts, [fact.prompt for fact in self.others]) for case in self.cases]
        seconds, refused, done = 0.0, list[int](), 0
        try:
            for count in self.counts:
                if isinstance(method, BatchMethod):
                    base.put_back()
                    started = time.perf_counter()
                    keep(self.model, method.edit_batch(self.model, self.tokenizer, requests[:count], self.seed))
                    seconds = time.perf_counter() - started
                else:
                    for case, request in zip(self.cases[done:count], requests[done:count], strict=True):
                        started = time.perf_counter()
                        try:
                            keep(self.model, method.edit(self.model, self.tokenizer, request, self.seed))
                        except ps.SurgicalError as error:
                            refused.append(case.case_id)
                            click.echo(f"{method.name} does not edit the case {case.case_id}: {error}", err=True)
                        seconds += time.perf_counter() - started
                    done = count
                yield count, round(seconds, 3), list(refused), self.measured(count, base)
        finally:
            base.put_back()


def run(plan: Run, methods: Sequence[Method], journal: Journal) -> dict[str, dict[str, dict[str, Figure]]]:
    """Edits what the journal does not have yet, and returns all figures: method to count to metric.

    Args:
        plan: What is edited.
        methods: The base among them.
        journal: Gets every result.
    """
    done = {(record["method"], record["count"]): record for record in journal.of_kind("together")}
    for method in methods:
        if all((method.name, count) in done for count in plan.counts):
            continue
        told = described(method, plan.model)
        for count, seconds, refused, measured in plan.edited(method):
            click.echo(f"{method.name}, {count} edits: {seconds:.1f} s", err=True)
            if (method.name, count) in done:
                continue
            record = {"kind": "together", "method": method.name, "count": count, "settings": told}
            done[method.name, count] = {**record, "seconds": seconds, "refused": refused, **measured}
            journal.append(done[method.name, count])
    found: dict[str, dict[str, dict[str, Figure]]] = {}
    for method in methods:
        for count in plan.counts:
            record, base = done[method.name, count], done["base", count]
            found.setdefault(method.name, {})[str(count)] = _figures(plan, record, base)
    return found


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
@click.option("--after", "counts", multiple=True, required=True, type=click.IntRange(1), help="Measure after so many.")
@click.option("--seed", type=SEED, default=0, show_default=True)
@click.option(
    "--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="JSON lines, gone on from."
)
@click.option(
    "--method", "names", multiple=True, required=True, type=click.Choice([name for name in METHODS if name != "base"])
)
@click.option("--learning-rate", "rates", multiple=True, callback=learning_rates, metavar="METHOD=LR")
@click.option("--contexts", default=20, show_default=True, type=click.IntRange(0), help="Beginnings to sample.")
@click.option(
    "--exclude",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Leave out the cases that this other file of results has, such as those of tuning.",
)
@click.option(
    "--known-facts",
    default=None,
    type=click.Path(path_type=Path),
    help="Other facts, from a file as that of known_1000.",
)
@click.option("--dtype", default="auto", show_default=True, type=click.Choice(list(DTYPES)))
@click.option("--device", default=None)
def main(
    data: Path,
    model: str,
    counts: tuple[int, ...],
    seed: int,
    out: Path,
    names: tuple[str, ...],
    rates: dict[str, float],
    contexts: int,
    exclude: tuple[Path, ...],
    known_facts: Path | None,
    dtype: str,
    device: str | None,
) -> None:
    """Reads the options, runs, prints."""
    wanted, after = dict.fromkeys(("base", *names)), sorted(set(counts))
    try:
        if unused := [name for name in rates if name not in wanted]:
            raise ps.SurgicalError(f"a learning rate is given for {unused[0]!r}, which does not run.")
        methods = [build(name, rates.get(name)) for name in wanted]
        cases, digest = read_cases(data, seed)
        left_out = {record["case_id"] for path in exclude for record in read_records(path) if "case_id" in record}
        cases = [case for case in cases if case.case_id not in left_out]
        facts, facts_digest = ([], "") if known_facts is None else read_known_facts(known_facts)
        loaded, tokenizer = ps.load_model(model, dtype=dtype, device=device)
        loaded.requires_grad_(False)
        journal = Journal(
            out,
            {
                "benchmark": "together",
                "data": {"name": data.name, "sha256": digest, "left_out": sorted(left_out)},
                "model": model,
                "weights_sha256": weights_digest(loaded),
                "configuration_sha256": configuration_digest(loaded, tokenizer),
                "dtype": str(loaded.dtype).removeprefix("torch."),
                "seed": seed,
                # Which facts no case is about depends on all of them.
                "cases": after[-1],
                "contexts": contexts,
                "new_tokens": NEW_TOKENS,
                "retention_tokens": _RETENTION_TOKENS,
                "known_facts": known_facts and {"name": known_facts.name, "sha256": facts_digest},
            },
            {
                "command": shlex.join(["python", "-m", "benchmarks.together", *_arguments()]),
                **surroundings(loaded.device),
            },
            lambda records: check_settings(out, records, methods, loaded),
        )
        plain = without_template(tokenizer)
        if not journal.of_kind("contexts"):
            journal.append({"kind": "contexts", "contexts": sample_contexts(loaded, plain, contexts, seed)})
        given = tuple(journal.of_kind("contexts")[0]["contexts"])
        chosen = known_cases(loaded, plain, cases, after[-1], journal)
        if len(chosen) < after[-1]:
            raise ps.SurgicalError(f"the base knows {len(chosen)} cases only; asked for {after[-1]}.")
        known = known_among(loaded, plain, facts, journal) if facts else set()
        others = about_none([fact for fact in facts if fact in known], chosen)
        found = run(Run(loaded, plain, chosen, given, others, after, seed), methods, journal)
    except ps.SurgicalError as error:
        raise click.ClickException(str(error)) from error
    seconds = {(record["method"], str(record["count"])): record["seconds"] for record in journal.of_kind("together")}
    click.echo(table(found, seconds))
    as_json = {
        name: {count: {k: v.to_dict() for k, v in held.items()} for count, held in by_count.items()}
        for name, by_count in found.items()
    }
    click.echo(json.dumps(as_json))


def _arguments() -> list[str]:
    return click.get_current_context().obj or []


if __name__ == "__main__":
    main(obj=sys.argv[1:])
