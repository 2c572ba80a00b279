"""What learning from one sentence reads: the sentence, where it names its subject, and the text around it to keep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import FactError
from ..facts import TrainingFact
from ..keying.keys import Marked
from ..staging.retain import carried_prompts
from .lengths import check_row, fits
from .prompts import EncodedAnswer, encode, encode_target, mentions
from .subjects import alias_sentences, namesake_sentences, other_sentences, subject_ends
from .text import same_text_key

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


@dataclass(frozen=True)
class NamedRows:
    """A fact's prompts with the answer, each of which names the subject.

    Attributes:
        rows: The prompts and answers.
        marks: For each the positions of the subject's last tokens, in the answer too.
    """

    rows: tuple[EncodedAnswer, ...]
    marks: tuple[tuple[int, ...], ...]

    @property
    def prompts(self) -> list[tuple[int, ...]]:
        """The prompts alone, as token ids."""
        return [row.ids[: row.answer_start] for row in self.rows]

    @property
    def inside(self) -> list[list[int]]:
        """The marks that are not in an answer."""
        return [[i for i in found if i < row.answer_start] for found, row in zip(self.marks, self.rows, strict=True)]

    @property
    def starts(self) -> list[int]:
        """For each the first mark: nothing that acts on the subject changes what stands before it."""
        return [min(found) for found in self.marks]

    @classmethod
    def of(cls, model: Any, tokenizer: Any, fact: TrainingFact) -> NamedRows:
        """Encodes them.

        Raises:
            FactError: If a prompt does not name the subject, or the tokenizer does not tell where.
            ModelError: If one is too long for the model.
        """
        if without := [prompt for prompt in fact.prompts if not mentions(prompt, fact.subject)]:
            raise FactError(
                f"the prompt {without[0]!r} does not name the subject {fact.subject!r}, by which to learn."
            )
        rows = [encode_target(tokenizer, prompt, fact.answer) for prompt in fact.prompts]
        for row in rows:
            check_row(model.config, row.ids)
        marks = subject_ends(tokenizer, fact.prompts, fact.subject, rows)
        if not all(marks):
            raise FactError(f"the tokenizer does not tell which tokens are those of the subject {fact.subject!r}.")
        return cls(tuple(rows), tuple(map(tuple, marks)))


def framed(model: Any, tokenizer: Any, fact: TrainingFact) -> TrainingFact:
    """The fact with [`FRAMES`] about its subject among the prompts.

    Those are left out that an evaluation asks, that are too long for the model, or in which the tokenizer does not
    tell where the subject is: the fact itself is none the worse for them.
    """

    def usable(prompt: str) -> bool:
        if not (fact.may_train_on(prompt) and mentions(prompt, fact.subject)):
            return False
        row = encode_target(tokenizer, prompt, fact.answer)
        return fits(model.config, len(row.ids)) and any(subject_ends(tokenizer, [prompt], fact.subject, [row]))

    made = [frame.format(fact.subject) for frame in FRAMES]
    return replace(fact, prompts=(*fact.prompts, *filter(usable, made)))


def texts_to_keep(
    model: Any, tokenizer: Any, fact: TrainingFact, *, general: int, names: int, seed: int
) -> tuple[list[list[int]], list[list[int]]]:
    """Token ids of text to keep: any, and the fact's prompts with other names in them.

    Args:
        model: Too long a text for it is left out.
        tokenizer: Its tokenizer.
        fact: Its prompts, and what an evaluation asks, are left out.
        general: How many of the package's general questions to read, beside its everyday requests.
        names: How many other names stand in for the subject.
        seed: Decides which.
    """
    carried = [prompt for prompt in carried_prompts(general) if not fact.named_in(prompt)]
    taken = {same_text_key(prompt) for prompt in fact.prompts}
    found = ([*fact.retain, *carried], other_sentences(fact, names, seed))
    texts, others = (
        [ids for prompt in prompts if fits(model.config, len(ids := encode(tokenizer, prompt)))]
        for prompts in (_allowed(fact, prompts, taken) for prompts in found)
    )
    return texts, others


def namesakes(model: Any, tokenizer: Any, fact: TrainingFact, count: int, seed: int) -> Marked:
    """The fact's prompts about others whose names end as the subject's, see [`namesake_sentences`]; only there."""
    return _named(model, tokenizer, namesake_sentences(fact, count, seed))


def under_aliases(model: Any, tokenizer: Any, fact: TrainingFact) -> list[Marked]:
    """For each of the subject's other names the fact's prompts under it, see [`alias_sentences`]; only there."""
    made = alias_sentences(fact)
    kinds = [_named(model, tokenizer, [(p, own) for p, own in made if own == name]) for name in fact.aliases]
    return [kind for kind in kinds if any(kind.marks)]


def _named(model: Any, tokenizer: Any, sentences: Sequence[tuple[str, str]]) -> Marked:
    """Prompts at the last tokens of the name that each goes with; those too long for the model are left out."""
    made = [
        (prompt, name, EncodedAnswer(tuple(ids), len(ids)))
        for prompt, name in sentences
        if fits(model.config, len(ids := encode(tokenizer, prompt)))
    ]
    ends = [subject_ends(tokenizer, [prompt], name, [row])[0] for prompt, name, row in made]
    return Marked([row for *_, row in made], ends)


def _allowed(fact: TrainingFact, prompts: Sequence[str], taken: set[str]) -> list[str]:
    return [prompt for prompt in prompts if same_text_key(prompt) not in taken and fact.may_train_on(prompt)]
