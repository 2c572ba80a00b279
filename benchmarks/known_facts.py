"""More neighbours for a CounterFact case: what is asked alike of other subjects, from a file of known facts.

The file is that of `known_1000` (Meng et al. 2022): JSON lines with `subject`, `attribute`, `prompt`, `relation_id`. A
fact is a neighbour of a case when its relation is asked, somewhere in the file, with the words of the case's prompt.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft_surgical.errors import FactError
from peft_surgical.text import contains, same_text_key

from .cases import Case

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
        for key in TEXTS:
            if not isinstance(data.get(key), str) or not data[key].strip():
                raise FactError(f"{key!r} must be text, not {data.get(key)!r}.")
        subject, prompt, answer, relation = (data[key].strip() for key in TEXTS)
        return cls(subject, prompt, answer, relation)


def read_known_facts(path: str | os.PathLike[str]) -> tuple[list[KnownFact], str]:
    """All facts of a file of JSON lines, in its order, and its SHA-256.

    Raises:
        FactError: If the file cannot be read or a line is no fact; names the line.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise FactError(f"cannot read {path}: {error.strerror or error}.") from error
    facts = []
    for number, line in enumerate(content.decode("utf-8", errors="replace").split("\n"), 1):
        if not line.strip():
            continue
        try:
            facts.append(KnownFact.from_dict(json.loads(line)))
        except (ValueError, AttributeError) as error:
            raise FactError(f"{path}, line {number}: {error}") from error
    return facts, hashlib.sha256(content).hexdigest()


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
        and same_text_key(fact.prompt) not in map(same_text_key, (case.prompt, case.neighbour))
        and not contains(fact.prompt, (case.subject,))
        and not contains(fact.answer, (case.new,))
    ]


def _wording(prompt: str, subject: str) -> str:
    return same_text_key(prompt.replace(subject, "{}"))
