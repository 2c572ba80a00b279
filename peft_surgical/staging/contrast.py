"""Other subjects to keep, for a fact that names none: what an edit changes first is said of the subject's like."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any

from ..drafting.drafts import CONTRAST
from ..drafting.english import readable
from ..drafting.others import others_of, propose_others, swappable
from ..errors import ModelError
from ..facts import TrainingFact
from ..texts.called import called
from ..texts.text import contains


def with_contrast(model: Any, tokenizer: Any, fact: TrainingFact) -> TrainingFact:
    """The fact, with other subjects of its subject's kind where it gives none.

    They are those that the package knows, else names that the model gives, as far as they look like such; no other
    name of the subject, and none that a control asks about, by a shorter or another name either.

    Args:
        model: The base, which is asked where the package knows no other.
        tokenizer: Its tokenizer.
        fact: The fact. As it is, if no prompt names its subject or none can be read, as where it is not English, or if
            nobody knows another subject.
    """
    reading = None if fact.contrast else readable(fact)
    if reading is None:
        return fact
    answers = (*fact.old, *fact.new)

    def another(name: str) -> bool:
        own = contains(name, fact.names) or any(contains(names, (name,)) for names in fact.names)
        return not own and all(map(fact.may_train_about, called(name, fact.names)))

    found = [*filter(another, swappable(reading, others_of(reading, answers)))]
    if not found:
        # A model of few positions has no room for the question and its answer.
        with suppress(ModelError):
            found = [*filter(another, swappable(reading, propose_others(model, tokenizer, reading, answers)))]
    return replace(fact, contrast=tuple(found[:CONTRAST])) if found else fact
