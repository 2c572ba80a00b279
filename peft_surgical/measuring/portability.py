"""Whether what follows from an edit follows: the same fact by another name, one hop on, and from the answer back.

An edit can make a model say a sentence and leave all else as it was. Portability asks for more than the sentence:
EasyEdit's KnowEdit (arXiv 2401.01286) and RippleEdits (arXiv 2307.12976) call the three kinds subject aliasing,
reasoning or compositionality, and reversed relation. Answers are greedy and are counted by the names they hold.

```py
>>> portability_metrics(fact, answers)["portability"]
Figure(value=0.428..., n=7, low=0.158..., high=0.749...)
```
"""

from __future__ import annotations

from collections.abc import Sequence

from ..facts import Fact, PortabilityQuestion
from ..texts.fact_checks import PORTABILITY_KINDS
from ..texts.text import contains, same_text_key
from .metrics import Figure, rate


def follows(answer: str, question: PortabilityQuestion, fact: Fact) -> bool:
    """Whether an answer holds one that is right after the edit, and none that was right before it."""
    besides = longer_names(question, fact)
    return contains(answer, question.answer, besides=besides) and not as_before(answer, question, fact)


def longer_names(question: PortabilityQuestion, fact: Fact) -> tuple[str, ...]:
    """Names of the subject, inside of which an answer does not count, unless the question asks for the subject."""
    names = set(map(same_text_key, fact.names))
    return () if any(same_text_key(answer) in names for answer in question.answer) else fact.names


def as_before(answer: str, question: PortabilityQuestion, fact: Fact) -> bool:
    """Whether an answer holds one that was right before the edit."""
    return contains(answer, question.before, besides=fact.names)


def portability_metrics(fact: Fact, answers: Sequence[str]) -> dict[str, Figure]:
    """How many portability questions are answered as the new answer has it, and how many as the old one had it.

    Args:
        fact: Its questions, their kinds and their answers.
        answers: Answers to `fact.portability`, in order.

    Returns:
        `portability` over all questions, `portability_alias`, `portability_one_hop` and `portability_reversal` over
        those of a kind, and `portability_before`, the share of those with a `before` that hold one of its answers: in
        the base, what it knew of the consequences. A metric with nothing to count is left out.
    """
    pairs = list(zip(answers, fact.portability, strict=True))
    figures = {"portability": rate([follows(answer, question, fact) for answer, question in pairs])}
    for kind in PORTABILITY_KINDS:
        of_kind = [follows(answer, question, fact) for answer, question in pairs if question.kind == kind]
        figures[f"portability_{kind}"] = rate(of_kind)
    figures["portability_before"] = rate([as_before(*pair, fact) for pair in pairs if pair[1].before])
    return {name: figure for name, figure in figures.items() if figure is not None}
