"""What learning from one sentence reads: the sentence, where it names its subject, and text to keep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import FactError
from ..facts import TrainingFact
from ..texts.lengths import check_row, fits
from ..texts.prompts import EncodedAnswer, check_answer_spelled, encode, encode_target
from ..texts.subjects import check_ends, check_named_apart, other_sentences, subject_ends
from ..texts.text import mentions, same_text_key
from .retain import carried_beside


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
            FactError: If a prompt does not name the subject, or only within another name, or the tokenizer does not
                tell where, or does not know a token of the answer or the last one of the subject.
            ModelError: If one is too long for the model.
        """
        if without := [prompt for prompt in fact.prompts if not mentions(prompt, fact.subject)]:
            raise FactError(
                f"the prompt {without[0]!r} does not name the subject {fact.subject!r}, by which to learn."
            )
        for prompt in fact.prompts:
            check_named_apart(prompt, fact.subject, fact.contrast)
        check_answer_spelled(tokenizer, fact)
        rows = [encode_target(tokenizer, prompt, fact.answer) for prompt in fact.prompts]
        for row in rows:
            check_row(model.config, row.ids)
        marks = subject_ends(tokenizer, fact.prompts, fact.subject, rows, fact.contrast)
        if not all(marks):
            raise FactError(f"the tokenizer does not tell which tokens are those of the subject {fact.subject!r}.")
        check_ends(tokenizer, fact.subject, rows, marks)
        return cls(tuple(rows), tuple(map(tuple, marks)))


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
    taken = {same_text_key(prompt) for prompt in fact.prompts}

    def encoded(prompts: Sequence[str]) -> list[list[int]]:
        allowed = (prompt for prompt in prompts if same_text_key(prompt) not in taken and fact.may_train_on(prompt))
        return [ids for prompt in allowed if fits(model.config, len(ids := encode(tokenizer, prompt)))]

    return encoded([*fact.retain, *carried_beside(fact, general)]), encoded(other_sentences(fact, names, seed))
