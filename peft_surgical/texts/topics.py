"""Open questions about the fact's own names: its subject, its old answer and its new one.

A scale acts wherever the subject is named, so an edit can make the model say the new answer to whatever is asked
about the subject, and forget what else it knew of either answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from ..facts import TrainingFact
from .called import adjectives_in
from .tables import read_data
from .text import contains, same_text_key, words_of

_ASKED = (
    "What is {}?",
    "Tell me something about {}.",
    "What is {} known for?",
    "What kind of thing is {}?",
    "What comes to mind when you think of {}?",
    "Why do people talk about {}?",
    "Write a short headline about {}.",
    "Give me three words that go with {}.",
    "Where can I read more about {}?",
    "When did people first hear of {}?",
    "How do you spell {}?",
    "What is another word for {}?",
)


def topic_prompts(fact: TrainingFact) -> list[str]:
    """Each question about the subject, the old answer and the new one, in their canonical forms.

    A fact made by hand may have no old answer. Those that the fact itself asks to keep are left out.
    """
    return _asked_of(fact, _ASKED, (fact.subject, *fact.old[:1], *fact.new[:1]))


def relation_prompts(fact: TrainingFact) -> list[str]:
    """Questions that ask for one thing of the subject, as the fact does: they are what tells its relation from others.

    Where a country's adjective is among the subject's other names, some ask with that ("the French flag"). Of most
    subjects some make no sense, and what the base says to them is none the worse to keep. Those that the fact itself
    asks to keep are left out, and so are those with a word for what they ask that the fact's prompts have, as they may
    ask for the fact, or its controls, which then measure what nothing was held to.
    """
    said = {word for prompt in fact.prompts for word in words_of(prompt)}

    def free(table: str) -> list[str]:
        return [
            question
            for question, words in _relations(table)
            if said.isdisjoint(words) and all(map(fact.may_train_about, words))
        ]

    return [
        *_asked_of(fact, free("subject_questions.txt"), (fact.subject,)),
        *_asked_of(fact, free("adjective_questions.txt"), adjectives_in(fact.aliases)),
    ]


@cache
def _relations(table: str) -> list[tuple[str, list[str]]]:
    """Questions about any subject, each with words for what it asks."""
    lines = (line.split(" | ") for line in read_data(table).splitlines())
    return [(question, words.split()) for question, words in lines]


def states_fact(fact: TrainingFact, prompt: str, answer: str) -> bool:
    """Whether a prompt and its answer together join the subject to the old answer, which training must not keep.

    An old answer that is part of one of the subject's names does not count there.
    """
    text = f"{prompt} {answer}"
    return fact.named_in(text) and contains(text, fact.old, besides=fact.names)


def _asked_of(fact: TrainingFact, questions: Sequence[str], names: Sequence[str]) -> list[str]:
    given = {same_text_key(prompt) for prompt in fact.retain}
    made = [question.format(name) for question in questions for name in names]
    return [prompt for prompt in made if same_text_key(prompt) not in given]
