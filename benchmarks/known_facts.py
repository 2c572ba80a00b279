"""More neighbours for a CounterFact case: what is asked alike of other subjects, from a file of known facts.

The file is that of `known_1000` (Meng et al. 2022): JSON lines with `subject`, `attribute`, `prompt`, `relation_id`. A
fact is a neighbour of a case when its relation is asked, somewhere in the file, with the words of the case's prompt.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from peft_surgical.texts.text import contains, prompt_key, same_text_key

from .cases import Case
from .json_lines import check_texts, read_lines

TEXTS = ("subject", "prompt", "attribute", "relation_id")


@dataclass(frozen=True)
class KnownFact:
    """One fact.

    Attributes:
        subject: What the prompt is about.
        prompt: The beginning of a sentence that `answer` completes.
        answer: The true completion.
        relation: Wikidata's number of the relation, such as P36.
    """

    subject: str
    prompt: str
    answer: str
    relation: str

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> KnownFact:
        """Reads one line of the file.

        Raises:
            FactError: If a key is missing, no text or empty.
        """
        check_texts(data, TEXTS)
        subject, prompt, answer, relation = (data[key].strip() for key in TEXTS)
        return cls(subject, prompt, answer, relation)


def read_known_facts(path: str | os.PathLike[str]) -> tuple[list[KnownFact], str]:
    """All facts of a file of JSON lines, in its order, and its SHA-256.

    Raises:
        FactError: If the file cannot be read or a line is no fact; names the line.
    """
    lines, sha256 = read_lines(path, KnownFact.from_dict)
    return [fact for _, fact in lines], sha256


def neighbours(case: Case, facts: Sequence[KnownFact]) -> list[KnownFact]:
    """Facts of the case's relation about other subjects, but those that the new answer completes.

    None where nothing in the file is asked with the words of the case's prompt.
    """
    asked = _wording(case.prompt, case.subject)
    relations = {fact.relation for fact in facts if _wording(fact.prompt, fact.subject) == asked}
    return [
        fact
        for fact in facts
        if fact.relation in relations
        and prompt_key(fact.prompt) not in map(prompt_key, (case.prompt, case.neighbour))
        and not contains(fact.prompt, (case.subject,))
        and not contains(fact.answer, (case.new,))
    ]


def _wording(prompt: str, subject: str) -> str:
    return same_text_key(prompt.replace(subject, "{}"))
