"""What the benchmarks that edit cases which the base knows begin with: their options, files, model and journal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click

import peft_surgical as ps
from peft_surgical.models import DTYPES
from peft_surgical.sentence import sample_contexts
from peft_surgical.texts.prompts import without_template

from .baselines import Method
from .cases import Case, read_cases
from .journal import Journal, base_told, read_records, run_told
from .known_facts import KnownFact, read_known_facts
from .measuring import NEW_TOKENS
from .plain_text import greedily_follows
from .settings import check_settings

KNOWN = "the greedy continuation of the prompt, as plain text, begins with all tokens of the true answer"
BATCH = 64


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
            **base_told(model, loaded, tokenizer),
            "seed": seed,
            "contexts": contexts,
            "new_tokens": NEW_TOKENS,
            **more,
            "known_facts": known_facts and {"name": known_facts.name, "sha256": facts_digest},
        },
        run_told(benchmark, loaded.device),
        lambda records: check_settings(out, records, methods, loaded),
    )
    plain = without_template(tokenizer)
    if not journal.of_kind("contexts"):
        journal.append({"kind": "contexts", "contexts": sample_contexts(loaded, plain, contexts, seed)})
    return Opened(loaded, plain, [case for case in cases if case.case_id not in left_out], facts, journal)


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


def completed(model: Any, tokenizer: Any, facts: Sequence[KnownFact]) -> list[bool]:
    """Whether a model's greedy continuation of each fact's prompt begins with its answer."""
    found: list[bool] = []
    for start in range(0, len(facts), BATCH):
        batch = facts[start : start + BATCH]
        found += greedily_follows(model, tokenizer, [(fact.prompt, fact.answer) for fact in batch])
    return found


def known_among(model: Any, tokenizer: Any, facts: Sequence[KnownFact], journal: Journal) -> set[KnownFact]:
    """The facts that the base knows, in the sense of [`KNOWN`]; asked once a file of results."""
    if not journal.of_kind("known facts"):
        found = completed(model, tokenizer, facts)
        journal.append({"kind": "known facts", "known": [place for place, follows in enumerate(found) if follows]})
    [record] = journal.of_kind("known facts")
    return {facts[place] for place in record["known"]}
