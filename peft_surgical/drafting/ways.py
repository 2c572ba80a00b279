"""All the ways to put a prompt differently, sorted by what is done to it, training and held-out ones apart.

| Way | What it does | Example, of "Who wrote Hamlet?" |
|---|---|---|
| `wording` | other words, of the same form | "Who is the author of Hamlet?" |
| `frame` | a sentence around it | "Can you tell me who wrote Hamlet?" |
| `turn` | a question as the beginning of a sentence, and the other way round | "Hamlet was written by" |
| `terse` | a question in few words, for training only | "Hamlet author" |
| `context` | a neutral sentence before it | "It rained all afternoon. Who wrote Hamlet?" |

Held-out prompts come from other wordings, other frames and other contexts, and none that training could make is among
them. Contexts are what ROME (arXiv 2202.05262) puts before a prompt, but fixed rather than sampled from the model.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Literal, get_args

from ..texts.grammar import SUBJECT, as_clause, capitalized, in_place, one_stop
from ..texts.tables import bare
from ..texts.text import contains, prompt_key
from .frames import SLOT, frames
from .reading import Reading
from .relations import Wordings

Way = Literal["wording", "frame", "turn", "terse", "context"]
"""What is done to a prompt: other words, a sentence around it, a question for a sentence or the other way round, few
words in place of a question, or a sentence before it."""
WAYS: tuple[Way, ...] = get_args(Way)

# Answers whose name one can ask for: "the name of her profession" is odd.
_NAMED = ("person", "city", "country", "place", "company", "network")

# Frames that ask for a name, and those that ask of a person whether one has met.
_ASKS_NAME = ("Name {}.", "Can you name {}?")
_ACQUAINTED = ("Do you know {}?", "Do you remember {}?")


def prompts_by_way(reading: Reading, *, held_out: bool = False, seed: int = 0) -> dict[Way, list[str]]:
    """Every prompt of each way.

    Args:
        reading: The prompt.
        held_out: For evaluation rather than training; the two share no prompt.
        seed: Decides the order of each list and what meets in it first, not which prompts there are.

    Returns:
        Distinct prompts, none of them the given one. Each names the subject as that does.
    """
    taken = {prompt_key(reading.prompt)}
    if held_out:
        taken |= {prompt_key(prompt) for prompts in prompts_by_way(reading).values() for prompt in prompts}
    distinct: dict[Way, list[str]] = {}
    for way, prompts in _Maker(reading, held_out, seed).made().items():
        distinct[way] = []
        for prompt in prompts:
            key = prompt_key(prompt)
            if key not in taken and contains(prompt, [reading.subject]):
                taken.add(key)
                distinct[way].append(prompt)
    return distinct


class _Maker:
    """Fills wordings and frames; what stands twice is still in."""

    def __init__(self, reading: Reading, held_out: bool, seed: int) -> None:
        self.reading = reading
        self.held_out = held_out
        self.rng = random.Random(f"{seed} {reading.prompt}")
        self.new = reading.wordings(held_out=held_out)
        # Held-out frames may hold wordings of either kind.
        self.usual = reading.wordings() if held_out else None

    def made(self) -> dict[Way, list[str]]:
        asks = self.reading.asks
        questions, sentences = self._inner("question"), self._inner("sentence")
        about_questions = _mixed(
            self._framed(self._frames("question"), self._texts(questions)),
            self._framed(self._frames("clause"), self._clauses(questions)),
            self._framed([*self._frames("noun"), *self._frames("named")], self._nouns()),
        )
        whole = [sentence for sentence in sentences if sentence != self.reading.core or not self.reading.is_fragment]
        about_sentences = list(self._framed(self._frames("sentence"), self._texts(whole)))
        more = Wordings() if self.held_out else self._more()
        words = {
            True: self._shuffled(self._texts([*self.new.questions, *more.questions])),
            False: self._shuffled(self._texts([*self.new.sentences, *more.sentences])),
        }
        typed = [*self.new.terse, *more.terse] if asks else []
        framed = {True: about_questions, False: about_sentences}
        contexts = [f"{sentence} {SLOT}" for sentence in self._frames("context")]
        return {
            "wording": words[asks],
            "frame": framed[asks],
            "turn": _mixed(iter(words[not asks]), iter(framed[not asks])),
            "terse": self._shuffled([self._typed(template) for template in typed]),
            "context": list(self._framed(contexts, self._texts(questions if asks else sentences))),
        }

    def _texts(self, templates: Sequence[str]) -> list[str]:
        return [self.reading.fill(template) for template in templates]

    def _more(self) -> Wordings:
        """Wordings for variety alone, and what the others' own words make."""
        named = self.reading.relation.answer in _NAMED or self.reading.has_name
        names = [f"the name of {noun}" for noun in self.new.nouns if named and not self.reading.relation.many]
        asked = tuple(f"What is {name}?" for name in names)
        told = tuple(f"{capitalized(name)} is" for name in names)
        own = [self.reading.core] if self.reading.form == "question" else []
        in_places = (in_place(question) for question in (*own, *self.new.questions))
        return self.reading.more_wordings() + Wordings((*self.reading.fitting(filter(None, in_places)), *asked), told)

    def _typed(self, template: str) -> str:
        """As typed by somebody who leaves out even the article: "Mona Lisa painter"."""
        phrase = bare(self.reading.phrase)
        named = contains(phrase, [self.reading.subject])
        return self.reading.begun(template.replace(SUBJECT, phrase if named else self.reading.phrase), phrase)

    def _inner(self, form: str) -> list[str]:
        """The questions or sentences to frame: the prompt's own first."""
        own = [self.reading.core] if self.reading.form == form else []
        usual = getattr(self.usual, f"{form}s", ())
        return [*own, *getattr(self.new, f"{form}s"), *usual]

    def _clauses(self, questions: Sequence[str]) -> list[str]:
        own = [self.reading.core] if self.reading.form == "clause" else []
        clauses = [*own, *(clause for q in questions if (clause := as_clause(q)) is not None)]
        return [self.reading.inside(clause) for clause in clauses if not contains(clause, ["you"])]

    def _nouns(self) -> list[str]:
        own = [self.reading.core] if self.reading.form == "noun" else []
        usual = self.usual.nouns if self.usual else ()
        return [self.reading.inside(noun) for noun in (*own, *self.new.nouns, *usual)]

    def _frames(self, kind: str) -> tuple[str, ...]:
        relation = self.reading.relation
        if kind == "named" and relation.answer not in _NAMED:
            return ()
        found = frames(kind, held_out=self.held_out)
        # A relation of the table has nouns and answers that all of the frames were written for.
        if relation.name or kind not in ("noun", "named"):
            return found
        if kind == "named" and relation.many:
            return tuple(re.sub(r"\bname\b", "names", frame) for frame in found)
        unfit: tuple[str, ...] = () if self.reading.has_name else _ASKS_NAME
        unfit += _ACQUAINTED if relation.answer == "person" else ()
        return tuple(frame for frame in found if frame not in unfit)

    def _framed(self, around: Sequence[str], inner: Sequence[str]) -> Iterator[str]:
        """Every inner text in every frame; no frame comes again before all have come, half of them with the first."""
        turns = []
        for _ in around:
            rest = self._shuffled(inner[1:])
            turns.append([*inner[:1], *rest] if self.rng.random() < 0.5 else [*rest, *inner[:1]])
        order = self._shuffled(around)
        for number in range(len(inner)):
            for frame, texts in zip(order, turns, strict=True):
                text = self.reading.begun(texts[number]) if frame.startswith(SLOT) else texts[number]
                yield one_stop(frame, text).replace(SLOT, text)

    def _shuffled(self, texts: Sequence[str]) -> list[str]:
        return self.rng.sample(list(texts), len(texts))


def _mixed(*parts: Iterator[str]) -> list[str]:
    """What several yield, in turns."""
    return [text for turn in zip_longest(*parts) for text in turn if text is not None]
