"""Figures that tables of the documentation take from the benchmarks' rows are those of the rows."""

import re
from pathlib import Path

import pytest

from benchmarks.journal import read_records
from peft_surgical.measuring.metrics import mean

ROOT = Path(__file__).resolve().parents[1]
README, OTHERS = "README.md", "docs/measurements/facts-by-others.md"
ONE = "new_answer_rate", "control_kept", "control_leak", "kl_per_token"
HITS = "new_answer_rate", "old_answer_rate", "control_kept", "control_leak"

# Where the rows of each method are, and what its row of a table begins with, in the README and in its page.
METHODS = [
    ("facts_by_others", None, "`edit`", "`edit`"),
    ("facts_by_others_bfloat16", None, None, "`edit`, trained in bfloat16"),
    ("facts_by_others_keyed", None, "`edit-keyed`", "`edit-keyed`"),
    ("chat_others_rome", "rome", "ROME", "ROME, one sentence"),
    ("chat_others_memit", "memit", "MEMIT", "MEMIT, one sentence"),
    ("chat_others_memit", "alphaedit", "AlphaEdit", "AlphaEdit, one sentence"),
    ("chat_others_keyed_sentence", "surgical_keyed", "`learn --keyed`", "`learn --keyed`, one sentence"),
    ("chat_others_lora", "lora", "LoRA, rank 8 on all projections", "LoRA, rank 8 on all projections"),
    ("chat_others_ia3_all", "ia3_all", "stock (IA)³, PEFT's default modules", "stock (IA)³, PEFT's default modules"),
    (
        "chat_others_target",
        "lora",
        "the same, stopped at a mean of 0.1 nats a token",
        "LoRA, stopped at 0.1 nats a token",
    ),
    ("chat_others_target", "ia3_all", "the same, stopped there", "stock (IA)³, stopped at 0.1"),
]


def rows(name):
    return read_records(ROOT / "benchmarks" / "results" / f"{name}.jsonl")


def stages(row):
    # Rows of before name the stages beside the rest.
    return row.get("stages", row)


def facts_of(name, method):
    """What was measured of each fact after its edit by a method; of `edit` or `edit-keyed` without one."""
    if method is None:
        return [stages(row)["edited"] for row in rows(name) if row["kind"] == "fact"]
    return [row["figures"] for row in rows(name) if row["kind"] == "row" and row["method"] == method]


def cells(page, first, having):
    """The cells behind a first one, in the one table row of a page that has so many of them."""
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    found = [line.strip("| ").split(" | ") for line in lines if line.startswith(f"| {first} |")]
    [row] = [row[1:] for row in found if len(row) == having + 1]
    return row


def shown(figure, digits):
    return "{:.{d}f} [{:.{d}f}, {:.{d}f}]".format(figure.value, figure.low, figure.high, d=digits)


@pytest.mark.parametrize(("name", "method", "first", "whole"), METHODS)
def test_means_over_facts_by_others(name, method, first, whole):
    facts = facts_of(name, method)
    means = {metric: mean([fact[metric]["value"] for fact in facts]) for metric in ONE}
    assert len(facts) == 15
    if first is not None:
        assert cells(README, first, 4) == [shown(means[metric], 4 if metric == ONE[-1] else 2) for metric in ONE]
    counts = [str(sum(round(fact[metric]["value"] * fact[metric]["n"]) for fact in facts)) for metric in HITS]
    assert cells(OTHERS, whole, 8) == [*counts, *(shown(means[m], 4 if m == ONE[-1] else 3) for m in ONE)]


def test_facts_of_the_first_table():
    text = (ROOT / README).read_text(encoding="utf-8")
    table = text.partition("| Fact | base: old answer |")[2].partition("\n\n")[0].splitlines()[2:]
    facts = [stages(row) for row in rows("facts") if row["kind"] == "fact"]

    def rate(figure):
        return "{value:.2f} [{low:.2f}, {high:.2f}]".format(**figure)

    expected = set()
    for fact in facts:
        edited = fact["edited"]
        new, old, kept, leak, kl = (edited[m] for m in (*HITS, ONE[-1]))
        rates = [rate(fact["base"]["old_answer_rate"]), rate(new), rate(old), str(new["n"])]
        spread = "{value:.3f} [{low:.3f}, {high:.3f}]".format(**kl)
        expected.add(" | ".join([*rates, rate(kept), str(kept["n"]), rate(leak), spread]))
    assert len(table) == len(facts)
    assert {re.sub(r"^\|[^|]*\| | \|$", "", line) for line in table} == expected
