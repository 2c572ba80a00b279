"""More texts that name a subject, in which an edit by one sentence finds its keys, and others told apart from it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..errors import FactError, FactWarning, brief
from ..facts import TrainingFact
from ..texts.lengths import fits
from ..texts.prompts import encode, encode_target, unanswered
from ..texts.subjects import alias_sentences, namesake_sentences, subject_ends
from ..texts.text import mentions
from .keys import Marked

FRAMES = (
    "{}",
    "{}'s",
    "About {}",
    "As for {}, it",
    "I have read of {}",
    "Everyone knows {}",
    "When {} was",
    "Nobody but {} could",
    "In front of {} there",
    "Because of {}, we",
    "The story of {}",
    "What I like about {}",
    "A friend spoke of {} and",
    "Long ago {} had",
    "There is news of {}.",
    "{}, of course,",
    "It was {} that",
    "Next comes {}:",
    "Thanks to {}, this",
    "They say that {} has",
)
"""Beginnings of text that name a subject of any kind and say nothing of it."""


def framed(model: Any, tokenizer: Any, fact: TrainingFact) -> TrainingFact:
    """The fact with [`FRAMES`] about its subject among the prompts.

    Those are left out that an evaluation asks, that are too long for the model, or in which the tokenizer does not
    tell where the subject is: the fact itself is none the worse for them.
    """

    def usable(prompt: str) -> bool:
        if not (fact.may_train_on(prompt) and mentions(prompt, fact.subject)):
            return False
        try:
            row = encode_target(tokenizer, prompt, fact.answer)
        except FactError:
            return False
        return fits(model.config, len(row.ids)) and any(subject_ends(tokenizer, [prompt], fact.subject, [row]))

    made = [frame.format(fact.subject) for frame in FRAMES]
    return replace(fact, prompts=(*fact.prompts, *filter(usable, made)))


def namesakes(model: Any, tokenizer: Any, fact: TrainingFact, count: int, seed: int) -> Marked:
    """The fact's prompts about others whose names end as the subject's, see [`namesake_sentences`]; marked are the
    name's last tokens."""
    return _named(model, tokenizer, namesake_sentences(fact, count, seed))


def under_aliases(model: Any, tokenizer: Any, fact: TrainingFact) -> list[Marked]:
    """For each of the subject's other names the fact's prompts under it, see [`alias_sentences`]; marked are the
    name's last tokens."""
    made, kinds = alias_sentences(fact), list[Marked]()
    for name in dict.fromkeys(fact.aliases):
        kind = _named(model, tokenizer, [(prompt, own) for prompt, own in made if own == name])
        if any(kind.marks):
            kinds.append(kind)
        else:
            told = f"no text to train on has the alias {brief(name)}, so nothing is fitted to it."
            warnings.warn(told, FactWarning, stacklevel=2)
    return kinds


def _named(model: Any, tokenizer: Any, sentences: Sequence[tuple[str, str]]) -> Marked:
    """Prompts at the last tokens of the name that each goes with; those too long for the model are left out."""
    made = [
        (prompt, name, unanswered(ids))
        for prompt, name in sentences
        if fits(model.config, len(ids := encode(tokenizer, prompt)))
    ]
    ends = [subject_ends(tokenizer, [prompt], name, [row])[0] for prompt, name, row in made]
    return Marked([row for *_, row in made], ends)
