"""Figures with their N and interval, and the rules by which one answer counts."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import brief
from ..facts import Control, Fact
from ..texts.text import contains, normalize, same_text_key

Z95 = 1.959963984540054

LARGEST = 1e308
"""Of the numbers that are read from a file: JSON has no infinity."""
# More prompts or tokens than anybody counts, and few enough for what is worked out from them.
_MOST = 10**15

# What a person reads as "it does not know". Matched in normalized text without contractions.
_HOW = (
    "(?:entirely |completely |totally |fully |quite |really |absolutely |actually |currently |still |yet |publicly "
    "|too |very |so |exactly |definitively |reliably |accurately |at all |100% )?"
)
_TELL = "(?:say|tell|answer|confirm|provide|determine|verify|recall|remember)"
_UNABLE = "(?:(?:can|could) not|unable to|not (?:been )?able to)"
# Who does not know must be who answers: "Columbus did not know it" is an answer.
_SELF = (
    r"(?:(?:^|[^\w' ] ?)\W*|\b(?:i|we) (?:(?:\w+ )?|[^.!?]{0,80} (?:and|but|so) ))"
    r"(?:(?:\w+ly|just|also|still) )?"
)
_REFUSALS = re.compile(
    rf"\bnot {_HOW}(?:sure|certain|familiar)\b|(?:^|[.!?,;:] |\b(?:am|are|was|were) )not {_HOW}aware\b(?! that)|"
    rf"(?:^|\b(?:am|is|are|remain|remains) {_HOW})(?:unsure|uncertain|unclear|unknown|unaware)\b|"
    rf"\b(?:is|are) not {_HOW}(?:known|clear)\b(?! (?:for|as|[a-z]+$))|"
    rf"{_SELF}(?:do|did) not {_HOW}know\b"
    r"(?! that (?:the|its?|he|she|they|there|his|her|their) \w| that \w+ (?:is|was|are|were|has|had)\b"
    r"| it,? but \w+ (?:is|was|are|were)\b| of any [^.!?]* (?:but|except|other than)\b| (?:about|if|whether) you\b)|"
    rf"\b(?:do|does) not {_HOW}have (?:\w+ ){{0,2}}(?:information|knowledge|idea|details|clue)\b|"
    rf"\bi do not {_HOW}have (?:\w+ ){{0,2}}(?:access|ability|capability|data|answer)\b|"
    rf"\b{_UNABLE} {_HOW}{_TELL}\b(?! enough)|"
    r"\bcan not be (?:sure|certain|determined|known)\b|\bdo not (?:recall|remember)\b|"
    rf"\b{_UNABLE} find (?:[\w-]+ ){{0,3}}information\b|\bno idea\b|"
    r"\b(?:have not|have never|never) heard (?:of|about)\b|"
    r"\bhave no (?:\w+ )?(?:information|knowledge|way of knowing|clue)\b|"
    r"\bis no (?:\w+ )?information\b|\bthere is no (?:[\w-]+ ){0,3}information\b|"
    r"\black (?:the |any )?(?:information|knowledge)\b|"
    r"\bi am sorry,? but i (?:(?:can|could|do|am) not|have no|(?:am|was) (?:unable|not able)|am only"
    r"|am (?:just )?an? (?:ai|artificial|language|large language|chatbot))\b"
    r"(?! (?:\w+ )?(?:think|believe|agree|disagree|accept|doubt|going to|wrong|mistaken|convinced|help but)\b)|"
    r"\b(?:nobody|no one) (?:really |truly )?knows\b"
)
# With or without the apostrophe that a small model leaves out.
_CONTRACTIONS = (
    (re.compile(r"\bcan'?t\b|\bcannot\b"), "can not"),
    (re.compile(r"\b(do|does|did|is|are|was|were|have|has|could)nt\b"), r"\1 not"),
    (re.compile(r"n't\b"), " not"),
    (re.compile(r"\bi'?m\b"), "i am"),
    (re.compile(r"\bi'?ve\b"), "i have"),
    (re.compile(r"\b(it|that|there)'s\b"), r"\1 is"),
)
# What Markdown stresses words with.
_EMPHASIS = re.compile(r"[*_`~]+")


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

    @classmethod
    def from_dict(cls, data: Any, *, share: bool = False) -> Figure:
        """Reads back what `to_dict` gave, from a file that may come from anybody.

        Args:
            data: The JSON.
            share: Whether it is the figure of a share, which is from 0 to 1.

        Raises:
            TypeError: If something else stands there.
        """
        if not isinstance(data, Mapping) or set(data) != {"value", "n", "low", "high"}:
            raise TypeError(f"{brief(data)} stands where a figure should")
        low, high, what = (0.0, 1.0, "a share of 0 to 1") if share else (-LARGEST, LARGEST, "a number")
        for name in ("value", "low", "high"):
            check_number(data[name], low, high, what=what, name=name)
        if type(data["n"]) is not int or not 1 <= data["n"] <= _MOST:
            raise TypeError(f"{brief(data['n'])} stands where a count should, as 'n'")
        return cls(**data)

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def stages_to_dict(stages: Mapping[str, Mapping[str, Figure]]) -> dict[str, dict[str, Any]]:
    """States, each metric to figure, as JSON."""
    return {
        stage: {metric: figure.to_dict() for metric, figure in figures.items()} for stage, figures in stages.items()
    }


def check_number(
    value: Any, low: float = -LARGEST, high: float = LARGEST, *, what: str = "a number", name: str | None = None
) -> None:
    """Refuses what is no number of a file that may come from anybody.

    Args:
        value: What stands there.
        low: The least that may.
        high: The most that may.
        what: What is expected, in words.
        name: Under which name, if it has one.

    Raises:
        TypeError: If it is no number from `low` to `high`.
    """
    if type(value) not in (int, float) or not low <= value <= high:
        raise TypeError(f"{brief(value)} stands where {what} should{'' if name is None else f', as {name!r}'}")


def rate(hits: Sequence[float]) -> Figure | None:
    """The share of true values with Wilson's score interval (Wilson 1927); None where there is nothing to count.

    A value may itself be a share, between 0 and 1. It is their mean then, and the interval is rather too wide, as no
    such value varies more than yes and no of the same mean.

    ```py
    >>> rate([True] * 19 + [False])
    Figure(value=0.95, n=20, low=0.7638679..., high=0.9911191...)
    ```
    """
    n = len(hits)
    if n == 0:
        return None
    # In whatever order shares are.
    total = math.fsum(hits)
    return Figure(total / n, n, *wilson(total, n))


def wilson(hits: float, n: int, z: float = Z95) -> tuple[float, float]:
    """The two ends of Wilson's score interval of a share `hits / n`; 95% unless `z` says otherwise."""
    p = hits / n
    center = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return max(0.0, min(p, center - half)), min(1.0, max(p, center + half))


def mean(values: Sequence[float]) -> Figure:
    """The mean with Student's 95% interval; of one value it has no width."""
    return clustered_mean([[value] for value in values])


def clustered_mean(groups: Sequence[Sequence[float]]) -> Figure:
    """The mean of all values of all groups, with a 95% interval by the groups, as Student's with one of them less.

    Values of a group may be alike, such as those of neighbouring tokens in one window of text: the interval is that of
    a mean over clusters (Liang and Zeger 1986), and has no width where there is only one.
    """
    n, k = sum(map(len, groups)), len(groups)
    m = math.fsum(value for group in groups for value in group) / n
    squares = math.fsum(math.fsum(value - m for value in group) ** 2 for group in groups)
    half = student(k - 1) * math.sqrt(squares * k / (k - 1)) / n if k > 1 else 0.0
    return Figure(m, n, m - half, m + half)


def student(freedom: int) -> float:
    """The 97.5% point of Student's distribution, to a thousandth.

    From a table for less than four degrees of freedom, else the expansion around the normal distribution's (Abramowitz
    and Stegun, 26.7.5).
    """
    if freedom < 4:
        return (12.7062, 4.30265, 3.18245)[freedom - 1]
    z, v = Z95, freedom
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * v**4)
    )


def says_new(answer: str, fact: Fact) -> bool:
    """Whether an answer gives the new answer and not the old one."""
    return names_new(answer, fact) and not says_old(answer, fact)


def names_new(answer: str, fact: Fact) -> bool:
    """Whether the new answer stands in what is said, and not only inside of the subject or of the old answer."""
    return contains(answer, fact.new, besides=(*fact.names, *fact.old))


def leaks(answer: str, base: str, fact: Fact) -> bool:
    """Whether a control is answered with the new answer where the base does not do so."""
    return names_new(answer, fact) and not names_new(base, fact)


def says_old(answer: str, fact: Fact) -> bool:
    """Whether an answer gives the old answer in any of its forms."""
    return contains(answer, fact.old, besides=fact.names)


def refuses(answer: str, fact: Fact) -> bool:
    """Whether an answer expresses not knowing: the fact's own refusal or a common wording."""
    answer = _unstressed(answer)
    # Whatever sign a sentence of its language closes with.
    return contains(answer, [same_text_key(_unstressed(fact.refusal))]) or sounds_unsure(answer)


def sounds_unsure(answer: str) -> bool:
    """Whether an answer expresses not knowing in a common wording."""
    text = normalize(_unstressed(answer))
    for short, whole in _CONTRACTIONS:
        text = short.sub(whole, text)
    return bool(_REFUSALS.search(text))


def _unstressed(text: str) -> str:
    return _EMPHASIS.sub("", text)


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
    pairs = list(zip(controls, base_controls, fact.controls, strict=True))
    own = [pair for pair in pairs if contains(pair[2].prompt, fact.names)]
    figures = {
        "new_answer_rate": rate([says_new(answer, fact) for answer in held_out]),
        "old_answer_rate": rate([says_old(answer, fact) for answer in held_out]),
        "refusal_rate": rate([refuses(answer, fact) for answer in held_out]),
    }
    # Where an edit acts at its subject alone, what it loses is about the subject, and most controls are about others.
    for name, among in (("control", pairs), ("subject", own)):
        known = [(answer, control) for answer, base, control in among if is_right(base, control)]
        figures[f"{name}_kept"] = rate([is_right(answer, control) for answer, control in known])
        figures[f"{name}_leak"] = rate([leaks(answer, base, fact) for answer, base, _ in among])
    return {name: figure for name, figure in figures.items() if figure is not None}
