"""CounterFact's figures from what was measured of each case, with their intervals.

ES, PS and NS are ROME's (Meng et al. 2022): the share of cases in which the new answer has a greater mean
log-likelihood per token than the old one after the prompt (ES) and after its paraphrase (PS), and the share in which
the neighbour's true answer has a greater one than the new answer (NS). The Score is their harmonic mean;
`score_neighbour_known` that of the cases whose neighbour's true answer the base prefers, so that no edit is charged
with what the base gets wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from peft_surgical.measuring.metrics import Figure, mean, rate
from peft_surgical.texts.text import contains

from .cases import Case

RESAMPLES = 10_000
Measured = Mapping[str, Any]
"""Of `prompt`, `paraphrase` and `neighbour` each `new` and `old` (mean log-likelihoods per token) and `said`; of
`known_neighbours`, where there are any, how many `n` are, how many are `kept` and how many `leaked`."""


def figures(
    cases: Sequence[Case], measured: Sequence[Measured], base: Sequence[Measured], seconds: Sequence[float], seed: int
) -> dict[str, Figure]:
    """All figures of one method.

    Args:
        cases: The edited cases.
        measured: What was measured of each, edited.
        base: What was measured of each before.
        seconds: What each edit took.
        seed: Of the resampling.

    Returns:
        Metric to figure; one with nothing to count is left out. Rates have Wilson's interval, the Score that of a
        bootstrap over cases, which is a point where all resamples are equal.
    """
    triples = [successes(m) for m in measured]
    known = [triple for triple, before in zip(triples, base, strict=True) if successes(before)[2]]
    es, ps, ns = (rate([triple[i] for triple in triples]) for i in range(3))
    kept = [
        contains(m["neighbour"]["said"], (case.neighbour_answer,))
        for case, m, b in zip(cases, measured, base, strict=True)
        if contains(b["neighbour"]["said"], (case.neighbour_answer,))
    ]
    leaked = [
        contains(m["neighbour"]["said"], (case.new,)) and not contains(b["neighbour"]["said"], (case.new,))
        for case, m, b in zip(cases, measured, base, strict=True)
    ]
    found = {
        "es": es,
        "ps": ps,
        "ns": ns,
        "score": score(triples, seed),
        "score_neighbour_known": score(known, seed),
        "new_answer_rate": _said(cases, measured, "prompt", says_new),
        "old_answer_rate": _said(cases, measured, "prompt", says_old),
        "paraphrase_new_answer_rate": _said(cases, measured, "paraphrase", says_new),
        "paraphrase_old_answer_rate": _said(cases, measured, "paraphrase", says_old),
        "neighbour_kept": rate(kept),
        "neighbour_leak": rate(leaked),
        "known_neighbours_kept": _share(measured, "kept"),
        "known_neighbours_leak": _share(measured, "leaked"),
        "seconds_per_edit": mean(seconds) if seconds else None,
    }
    return {name: figure for name, figure in found.items() if figure is not None}


def successes(measured: Measured) -> tuple[bool, bool, bool]:
    """Whether a case counts for ES, PS and NS; a tie does not."""
    prompt, paraphrase, neighbour = (measured[part] for part in ("prompt", "paraphrase", "neighbour"))
    return (
        prompt["new"] > prompt["old"],
        paraphrase["new"] > paraphrase["old"],
        neighbour["old"] > neighbour["new"],
    )


def score(triples: Sequence[tuple[bool, bool, bool]], seed: int) -> Figure | None:
    """The harmonic mean of ES, PS and NS with the 95% percentile interval of a bootstrap over cases."""
    if not triples:
        return None
    hits = np.asarray(triples, dtype=float)
    rows = np.random.default_rng(seed).integers(len(hits), size=(RESAMPLES, len(hits)))
    low, high = np.quantile(harmonic(hits[rows].mean(1)), [0.025, 0.975])
    value = float(harmonic(hits.mean(0)))
    return Figure(value, len(hits), min(value, float(low)), max(value, float(high)))


def harmonic(rates: Any) -> Any:
    """Harmonic mean along the last axis; 0 where a rate is 0.

    ```py
    >>> harmonic([1.0, 1.0, 0.5])
    0.75
    ```
    """
    rates = np.asarray(rates)
    with np.errstate(divide="ignore"):
        return rates.shape[-1] / (1 / rates).sum(-1)


def says_new(said: str, case: Case) -> bool:
    """Whether a continuation holds the new answer and not the old one."""
    return contains(said, (case.new,), besides=case.subject) and not says_old(said, case)


def says_old(said: str, case: Case) -> bool:
    """Whether a continuation holds the old answer."""
    return contains(said, (case.old,), besides=case.subject)


def _share(measured: Sequence[Measured], what: str) -> Figure | None:
    """The mean over cases of a case's own share: what an edit does to one neighbour it tends to do to others."""
    counted = [m["known_neighbours"] for m in measured if "known_neighbours" in m]
    if not counted:
        return None
    found = mean([one[what] / one["n"] for one in counted])
    # The mean's interval is Student's, and a share lies between 0 and 1.
    return Figure(found.value, found.n, max(0.0, found.low), min(1.0, found.high))


def _said(
    cases: Sequence[Case], measured: Sequence[Measured], part: str, counts: Callable[[str, Case], bool]
) -> Figure | None:
    return rate([counts(m[part]["said"], case) for case, m in zip(cases, measured, strict=True)])
