"""Figures with their N and interval, and the rules by which one answer counts."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..facts import Control, Fact
from ..texts.text import contains, normalize

Z95 = 1.959963984540054

# What a person reads as "it does not know". Matched in normalized text.
_REFUSALS = re.compile(
    r"\b(?:not (?:entirely |completely |quite |really )?(?:sure|certain|aware|familiar)|unsure|uncertain|"
    r"(?:do not|don't|does not|doesn't) (?:really |actually )?(?:know|have (?:any |enough |that )?information)|"
    r"(?:can not|cannot|can't|unable to) (?:say|tell|answer|confirm|provide)|no idea|have no information|"
    r"(?:is|are) (?:not known|unknown)|i'm sorry, but i)\b"
)


@dataclass(frozen=True)
class Figure:
    """A measured value.

    Attributes:
        value: The rate or mean.
        n: How many prompts or tokens it is over.
        low: Lower end of the 95% interval.
        high: Upper end of the 95% interval.
    """

    value: float
    n: int
    low: float
    high: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def rate(hits: Sequence[bool]) -> Figure | None:
    """The share of true values with Wilson's score interval (Wilson 1927); None where there is nothing to count.

    ```py
    >>> rate([True] * 19 + [False])
    Figure(value=0.95, n=20, low=0.7638679..., high=0.9911191...)
    ```
    """
    n = len(hits)
    if n == 0:
        return None
    return Figure(sum(hits) / n, n, *wilson(sum(hits), n))


def wilson(hits: int, n: int, z: float = Z95) -> tuple[float, float]:
    """The two ends of Wilson's score interval of a share `hits / n`; 95% unless `z` says otherwise."""
    p = hits / n
    center = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return max(0.0, min(p, center - half)), min(1.0, max(p, center + half))


def mean(values: Sequence[float]) -> Figure:
    """The mean with its normal 95% interval."""
    n = len(values)
    m = math.fsum(values) / n
    spread = math.sqrt(math.fsum((v - m) ** 2 for v in values) / max(n - 1, 1) / n)
    return Figure(m, n, m - Z95 * spread, m + Z95 * spread)


def says_new(answer: str, fact: Fact) -> bool:
    """Whether an answer gives the new answer and not the old one."""
    return names_new(answer, fact) and not says_old(answer, fact)


def names_new(answer: str, fact: Fact) -> bool:
    """Whether the new answer stands in what is said, and not only inside of the subject or of the old answer."""
    return contains(answer, fact.new, besides=(fact.subject, *fact.old))


def leaks(answer: str, base: str, fact: Fact) -> bool:
    """Whether a control is answered with the new answer where the base does not do so."""
    return names_new(answer, fact) and not names_new(base, fact)


def says_old(answer: str, fact: Fact) -> bool:
    """Whether an answer gives the old answer in any of its forms."""
    return contains(answer, fact.old, besides=fact.subject)


def refuses(answer: str, fact: Fact) -> bool:
    """Whether an answer expresses not knowing: the fact's own refusal or a common wording."""
    return contains(answer, [fact.refusal.rstrip(". ")]) or sounds_unsure(answer)


def sounds_unsure(answer: str) -> bool:
    """Whether an answer expresses not knowing in a common wording."""
    return bool(_REFUSALS.search(normalize(answer)))


def is_right(answer: str, control: Control) -> bool:
    """Whether a control is answered with one of its answers."""
    return contains(answer, control.answer)


def prompt_metrics(
    fact: Fact,
    held_out: Sequence[str],
    controls: Sequence[str],
    base_controls: Sequence[str],
) -> dict[str, Figure]:
    """The metrics of `report.json` that count answers.

    Args:
        fact: Its aliases and controls decide what counts.
        held_out: Answers to `fact.held_out`, in order.
        controls: Answers to `fact.controls`, in order.
        base_controls: The base's answers to them.

    Returns:
        Metric to figure; a metric with nothing to count is left out.
    """
    kept = [
        is_right(answer, control)
        for answer, base, control in zip(controls, base_controls, fact.controls, strict=True)
        if is_right(base, control)
    ]
    leaked = [leaks(answer, base, fact) for answer, base in zip(controls, base_controls, strict=True)]
    figures = {
        "new_answer_rate": rate([says_new(answer, fact) for answer in held_out]),
        "old_answer_rate": rate([says_old(answer, fact) for answer in held_out]),
        "refusal_rate": rate([refuses(answer, fact) for answer in held_out]),
        "control_kept": rate(kept),
        "control_leak": rate(leaked),
    }
    return {name: figure for name, figure in figures.items() if figure is not None}
