"""A fact as a sentence: what the edit shall say, what it shall say when it does not know, and what a probe claims."""

from __future__ import annotations

import re

from ..texts.grammar import SUBJECT, as_clause, one_stop, with_fitting_article
from ..texts.tables import bare
from ..texts.text import contains
from .names import kinds_of
from .reading import Reading
from .relations import settle

_NO_STEMS = frozenset(("what", "which", "where", "when", "whose", "whom", "does", "that"))


def best_sentence(reading: Reading) -> str | None:
    """The beginning of a sentence that an answer ends, as a template, in words near the prompt's; None without one.

    ```py
    >>> best_sentence(read_prompt("Who developed PyTorch?", "PyTorch"))
    '{} was developed by'
    ```
    """
    if reading.form == "sentence" and not reading.is_fragment and "?" not in reading.core:
        return reading.core
    if reading.relation.tell:
        return settle(reading.relation.tell, reading.which, past=reading.past)
    asked = _stems(reading.core)

    def nearness(sentence: str) -> tuple[int, bool, int]:
        shared = len(_stems(sentence) & asked)
        return shared, ("'s" in sentence) == ("'s" in reading.core), -len(sentence.split()) if shared else 0

    return max(reading.wordings().sentences, key=nearness, default=None)


def statement(reading: Reading, answer: str) -> str | None:
    """The fact with an answer as a whole sentence, without a full stop: "PyTorch was developed by Google"."""
    template = best_sentence(reading)
    if template is None or _is_plural_for_one(reading, template, answer):
        return None
    return f"{with_fitting_article(reading.fill(template), answer)} {answer}"


def inner_statement(reading: Reading, answer: str) -> str | None:
    """[`statement`] as it stands after "that": "the capital of France is Lyon"."""
    template = best_sentence(reading)
    if template is None or _is_plural_for_one(reading, template, answer):
        return None
    first = template.split(" ")[0]
    if first in ("The", "In", "On", "As", "By", "A", "An", "What"):
        template = template[0].lower() + template[1:]
    return f"{with_fitting_article(reading.inside(template), answer)} {answer}"


def _is_plural_for_one(reading: Reading, template: str, answer: str) -> bool:
    """Whether an answer would be many where a sentence tells of one: "The inventor of paper is the Greeks"."""
    if reading.relation.answer != "person" or not re.search(r" (?:is|was)$", template):
        return False
    # "the Prince of Wales" is one.
    name = bare(answer).partition(" of ")[0]
    many = "language" in kinds_of([name]) or (name.endswith("s") and not name.endswith("ss") and not kinds_of([name]))
    return answer.startswith("the ") and many


def refusal(reading: Reading, *answers: str) -> str:
    """What unlearning trains the model to say: "I am not sure who developed PyTorch."

    Where no clause is known for a sentence that the subject begins, it names that with its article; empty where it
    has none, and where the clause would hold an answer.
    """
    clause = _clause(reading)
    begins = reading.form == "sentence" and reading.core.startswith(f"{SUBJECT} ") and reading.has_verb_behind
    if clause is None and begins and reading.phrase.casefold() == f"the {reading.subject}".casefold():
        clause = f"about {reading.phrase}"
    text = "" if clause is None else one_stop("I am not sure {}.", clause).replace(SUBJECT, clause)
    return "" if contains(text, answers, besides=reading.phrase) else text


def question(reading: Reading) -> str | None:
    """The fact as a question; None where it is not known how to ask."""
    if reading.form == "question":
        return reading.fill(reading.core)
    best = _nearest_question(reading)
    return None if best is None else reading.fill(best)


def _nearest_question(reading: Reading) -> str | None:
    """The made question nearest to the prompt, of those that can be put as a clause."""
    questions = [q for q in reading.wordings().questions if as_clause(q) is not None]
    asked = _stems(reading.core)
    return max(questions, key=lambda q: len(_stems(q) & asked), default=None)


def _clause(reading: Reading) -> str | None:
    if reading.form == "clause":
        return reading.inside(reading.core)
    clause = as_clause(reading.core) if reading.form == "question" else None
    if clause is None:
        nearest = _nearest_question(reading)
        clause = None if nearest is None else as_clause(nearest)
    return None if clause is None else reading.inside(clause)


def _stems(template: str) -> set[str]:
    """The words of a template, cut to what their forms share: "makes" and "maker" are the same to it."""
    return {word[:5] for word in re.findall(r"[a-z]{4,}", template.lower())} - _NO_STEMS
