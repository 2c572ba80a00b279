"""The relations that prompts ask about (the author of a book, the capital of a country) and how each is worded.

The table is `data/relations.yaml`; a prompt that fits none of it gets a relation made from its own noun or verb. Every
relation has two sets of wordings that share none: one for training, the other for held-out prompts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from ..texts.grammar import SUBJECT, as_clause, capitalized
from ..texts.tables import read_table
from ..texts.text import contains, same_text_key

WHICH = "{which}"
_LEADS = ("It is well known that", "Everybody in the room agreed that", "The guide told us that")
_ALTERNATIVE = re.compile(r"\[([^/\]]*)/([^/\]]*)\]")


@dataclass(frozen=True)
class Wordings:
    """Templates with `{}` for the subject.

    Attributes:
        questions: "Who wrote {}?"
        sentences: Beginnings that the answer ends: "{} was written by".
        nouns: "the author of {}"
        terse: As one asks who types little: "{} author"
    """

    questions: tuple[str, ...] = ()
    sentences: tuple[str, ...] = ()
    nouns: tuple[str, ...] = ()
    terse: tuple[str, ...] = ()

    def __add__(self, other: Wordings) -> Wordings:
        return Wordings(
            self.questions + other.questions,
            self.sentences + other.sentences,
            self.nouns + other.nouns,
            self.terse + other.terse,
        )


@dataclass(frozen=True)
class Relation:
    """What is asked of a subject.

    Attributes:
        name: Its key in the table; empty for one made from a prompt.
        of: Kinds of subject it is asked of, as in `data/names.yaml`.
        answer: The kind of its answers, or nothing.
        which: What "which …" asks for when neither the prompt nor the answers say.
        training: Wordings for training.
        held_out: Wordings for held-out prompts.
        more: Further wordings for training, by which nothing else is worded.
        heard: Wordings by which it is recognized, and no more.
        reverse: Questions about the answer that the subject answers.
        many: Whether it is made from a noun in the plural, so that it has several answers.
        tell: The best beginning of a sentence that tells the answer, where it is not the one nearest to the prompt.
    """

    name: str = ""
    of: tuple[str, ...] = ()
    answer: str = ""
    which: str = ""
    training: Wordings = field(default_factory=Wordings)
    held_out: Wordings = field(default_factory=Wordings)
    more: Wordings = field(default_factory=Wordings)
    heard: tuple[str, ...] = ()
    reverse: tuple[str, ...] = ()
    tell: str = ""
    many: bool = False


def settle(template: str, which: str, *, past: bool = False) -> str | None:
    """A template with its tense and `{which}` decided; None where it needs a `{which}` and there is none to be had.

    "Which language is the native language of …" says the same word twice and is left out too.

    ```py
    >>> settle("Which {which} [is/was] {} from?", "city")
    'Which city is {} from?'
    ```
    """
    if WHICH in template and (not which or contains(template.replace(WHICH, ""), [which])):
        return None
    return _ALTERNATIVE.sub(lambda m: m[2 if past else 1], template).replace(WHICH, which)


def from_noun(
    noun: str, *, who: bool, possessive: str = "", number: int = 0, plural: bool = False
) -> tuple[Wordings, Wordings]:
    """The wordings, for training and held-out prompts, of a noun such as "the capital of {}".

    Args:
        noun: With the subject at its end.
        who: Whether it is a person or a company.
        possessive: "{}'s capital", where there is one.
        number: Which of a relation's nouns it is, so that not all begin a held-out sentence in the same way.
        plural: Whether it is a plural ("the founders of {}"), of which none asks "which person".
    """
    asks = "Who" if who else "What"
    first = capitalized(noun)
    be = "[are/were]" if plural else "[is/was]"
    bare = capitalized(noun.removeprefix("the "))
    training = Wordings(
        (f"{asks} {be} {noun}?", f"Which {WHICH} {be} {noun}?"), (f"{first} {be}",), (noun,), (f"{bare}?",)
    )
    held_out = Wordings(
        (f"{first} {be} which {WHICH}?", f"{asks} would you say {be} {noun}?"),
        (f"{_LEADS[number % len(_LEADS)]} {noun} {be}",),
    )
    if possessive:
        owned = possessive.partition(" ")[2]
        training += Wordings(
            (f"{asks} {be} {possessive}?",),
            (f"{possessive} {be}",),
            (possessive,),
            (*shortened(owned), f"{possessive}?"),
        )
        held_out += Wordings((f"Which {WHICH} {be} {possessive}?",))
    return (_without_which(training), _without_which(held_out)) if plural else (training, held_out)


def shortened(noun: str) -> tuple[str, ...]:
    """What one types who wants to know a subject's `noun`."""
    return (f"{SUBJECT} {noun}", f"{noun} {SUBJECT}")


def _without_which(wordings: Wordings) -> Wordings:
    return replace(wordings, questions=tuple(q for q in wordings.questions if WHICH not in q))


def from_verb(past: str, participle: str) -> tuple[Wordings, Wordings]:
    """The wordings, for training and held-out prompts, of what somebody did: `wrote`, `written`."""
    training = Wordings(
        (
            f"Who {past} {SUBJECT}?",
            f"Which {WHICH} {past} {SUBJECT}?",
            f"Who was {SUBJECT} {participle} by?",
            f"By whom was {SUBJECT} {participle}?",
        ),
        (f"{SUBJECT} was {participle} by",),
    )
    held_out = Wordings(
        (f"{SUBJECT} was {participle} by whom?", f"Who would you say {past} {SUBJECT}?"),
        (f"As many people know, {SUBJECT} was {participle} by",),
    )
    return training, held_out


@cache
def relations() -> tuple[Relation, ...]:
    """All relations of the table, in its order."""
    return tuple(_relation(name, entry) for name, entry in read_table("relations.yaml").items())


@cache
def by_wording() -> tuple[dict[str, list[tuple[Relation, bool]]], list[tuple[re.Pattern[str], Relation, bool]]]:
    """How a prompt is recognized: by the key of a whole template, and by patterns that leave "which …" open.

    Returns:
        A mapping from [`same_text_key`] of a template, in which `{}` stays, to the relations worded so; and patterns
        of such keys with their relations. With each relation goes whether the wording is the one for the past.
    """
    exact: dict[str, list[tuple[Relation, bool]]] = {}
    patterns: list[tuple[re.Pattern[str], Relation, bool]] = []
    for relation in relations():
        for template, past in _recognized(relation):
            if WHICH in template:
                kinds = re.escape(same_text_key(template)).replace(re.escape(WHICH), r"(?P<which>[a-z][\w -]*?)", 1)
                patterns.append((re.compile(kinds.replace(re.escape(WHICH), "(?P=which)")), relation, past))
                continue
            found = exact.setdefault(same_text_key(template), [])
            if all(other is not relation for other, _ in found):
                found.append((relation, past))
    return exact, patterns


def _recognized(relation: Relation) -> Iterator[tuple[str, bool]]:
    wordings = relation.training + relation.held_out + Wordings(relation.heard)
    for template in (*wordings.questions, *wordings.sentences, *wordings.nouns):
        for past in (False, True) if _ALTERNATIVE.search(template) else (False,):
            settled = settle(template, WHICH, past=past) or ""
            yield settled, past
            if settled.endswith("?") and (clause := as_clause(settled)) is not None:
                yield clause, past


def _relation(name: str, entry: dict[str, Any]) -> Relation:
    who = entry.get("answer") in ("person", "company") or "verb" in entry["training"]
    sides = {"training": Wordings(), "held_out": Wordings()}
    for side, other in (("training", "held_out"), ("held_out", None)):
        for verb in entry[side].get("verb", ()):
            mine, theirs = from_verb(*verb.split("/"))
            sides[side] += mine
            if other:
                sides[other] += theirs
        for number, noun in enumerate(entry[side].get("noun", ())):
            phrase, possessive = f"the {noun} of {SUBJECT}", f"{SUBJECT}'s {noun}"
            mine, theirs = from_noun(phrase, who=who, possessive=possessive, number=number)
            sides[side] += mine
            if other:
                sides[other] += theirs
        sides[side] += Wordings(_texts(entry[side], "ask"), _texts(entry[side], "say"))
    more = entry.get("more", {})
    short = [terse for noun in _texts(more, "short") for terse in shortened(noun)]
    return Relation(
        name=name,
        of=_texts(entry, "of"),
        answer=entry.get("answer", ""),
        which=entry.get("which", ""),
        training=sides["training"],
        held_out=sides["held_out"],
        more=Wordings(_texts(more, "ask"), _texts(more, "say"), terse=tuple(short)),
        heard=_texts(entry, "heard"),
        reverse=_texts(entry, "reverse"),
        tell=entry.get("tell", ""),
    )


def _texts(entry: dict[str, Any], key: str) -> tuple[str, ...]:
    found: Sequence[str] = entry.get(key, ())
    return tuple(found)
