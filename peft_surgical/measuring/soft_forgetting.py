"""Whether the old answer comes back when a prompt reaches for it: what a fact's probes are answered with.

Every answer is one of four things by the names that it holds: the new answer, the old one, both or neither. Nothing is
left out, and no reading is tried: many probes name the old answer, or list both, and a model that repeats the prompt
or contradicts it ("not Meta AI but Google") holds the old answer like one that gives it. So the old answer's rate is
the strict one, of all answers in which it stands; how many of these hold the new one as well stands beside it.

```py
>>> probe_metrics(fact, ["Yes, Paris.", "It is Lyon.", "Lyon, not Paris.", "I am not sure."])["probe_old_rate"].value
0.5
```
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

from ..facts import Fact
from .metrics import Figure, names_new, rate, says_old

Outcome = Literal["new", "old", "both", "neither"]

# Also measured over the probes of one kind, under the metric's name, an underscore and the kind.
BY_KIND = ("probe_new_rate", "probe_old_rate")


def probe_outcome(answer: str, fact: Fact) -> Outcome:
    """Which of a fact's two answers an answer holds, by any of their names."""
    old, new = says_old(answer, fact), names_new(answer, fact)
    if old:
        return "both" if new else "old"
    return "new" if new else "neither"


def probe_metrics(fact: Fact, answers: Sequence[str]) -> dict[str, Figure]:
    """How often probes are answered with the new answer and how often with the old one.

    Args:
        fact: Its probes and their kinds, and the names of both answers.
        answers: Answers to `fact.probes`, in order.

    Returns:
        `probe_new_rate`, the share of answers that hold the new answer and not the old one; `probe_old_rate`, of those
        that hold the old one, whatever else they say; `probe_both_rate`, the part of the latter that hold both. What
        is left to 1 of the first two holds neither. The first two also for each kind with more than one probe, such
        as `probe_old_rate_contradiction`. Empty where the fact has no probes.
    """
    outcomes = [probe_outcome(answer, fact) for answer in answers]
    kinds: defaultdict[str, list[Outcome]] = defaultdict(list)
    for outcome, probe in zip(outcomes, fact.probes, strict=True):
        kinds[probe.kind].append(outcome)
    figures = {**_rates(outcomes), "probe_both_rate": rate([outcome == "both" for outcome in outcomes])}
    for kind, found in kinds.items():
        if len(found) > 1:
            figures |= {f"{metric}_{kind}": figure for metric, figure in _rates(found).items()}
    return {name: figure for name, figure in figures.items() if figure is not None}


def split_kind(metric: str) -> tuple[str, str]:
    """A metric's own name and the kind of probe it is over; the latter is empty for all others.

    ```py
    >>> split_kind("probe_old_rate_few_shot"), split_kind("control_kept")
    (('probe_old_rate', 'few_shot'), ('control_kept', ''))
    ```
    """
    name = next((name for name in BY_KIND if metric.startswith(f"{name}_")), metric)
    return name, metric[len(name) + 1 :]


def _rates(outcomes: Sequence[Outcome]) -> dict[str, Figure | None]:
    return {
        "probe_new_rate": rate([outcome == "new" for outcome in outcomes]),
        "probe_old_rate": rate([outcome in ("old", "both") for outcome in outcomes]),
    }
