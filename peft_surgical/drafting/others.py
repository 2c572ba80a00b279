"""Other subjects of the same kind as a fact's, to contrast it with: from the package's tables, else from the model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ..running.generation import generate_answers
from ..texts.grammar import begins_with_vowel
from ..texts.tables import bare
from ..texts.text import contains, same_text_key
from .known_facts import is_another, is_subject
from .names import is_small, kinds_of, names_of, neighbours_of
from .reading import Reading

_LONGEST = 32
_MOST_WORDS = 4
# Words of the request that a small model says again, and words that no name has.
_NO_NAME = re.compile(
    r"\b(?:commas?|separated|names?|list|examples?|kind|same|other|things?|are|is|like|etc|ten)\b", re.I
)
_NAME = r"[^\W\d_](?:[^\W\d_]|[ .'&+-])+"
_MOST_PROPOSED = 12
# Kinds that hold others: who is known as an athlete is no less a person, but is better contrasted with athletes.
_NARROWER = {
    "person": ("athlete", "musician"),
    "landmark": ("mountain",),
    "discovery": ("element", "planet"),
    "region": ("state",),
}


def others_of(reading: Reading, answers: Sequence[str]) -> list[str]:
    """Known subjects of the kind that a prompt asks about, with "the" before those that take it.

    Those with known answers to the same question come first.

    Args:
        reading: The prompt.
        answers: All forms of both answers, which are no subjects to contrast with.

    Returns:
        Names; none where the kind is not known.
    """
    of, kinds = reading.relation.of, _kinds_here(reading)
    known = kinds_of([reading.subject], reading.prompt)
    asked = next(([kind] for kind in of if kind in known), [kind for kind in kinds if contains(reading.core, [kind])])
    chosen = asked or kinds or [kind for kind in ("person", "company") if kind in known]
    if reading.is_part and not chosen:
        # Who asks for the author of "the US national anthem" has not asked for one of "US": Hamlet is not like it.
        return []
    # What is of several kinds, as Singapore is a city and a country, is contrasted with what is of all of them.
    names = [*neighbours_of(reading.relation.name), *names_of((chosen or of or [""])[0])]
    return _apart(reading, [name for name in names if kinds_of([name]).issuperset(chosen)], answers)


def _kinds_here(reading: Reading) -> list[str]:
    """The kinds with names that stand as the subject stands in its prompt: "the Titanic" is not the film, and
    "pandas" are no software, whose names are mostly written with a capital.

    Discoveries are alike in nothing but that: who asks for the capital of America asks for none of gravity.
    """
    small = is_small(reading.subject, reading.prompt)
    found = []
    for kind in sorted(kinds_of([reading.subject], reading.prompt)):
        names = names_of(kind)
        usual = not small or 2 * sum(map(str.islower, names)) > len(names)
        if kind == "discovery" and kind not in reading.relation.of:
            continue
        if usual and any(is_subject(reading, name) for name in names):
            found.append(kind)
    return [kind for kind in found if not any(narrower in found for narrower in _NARROWER.get(kind, ()))]


def propose_others(model: Any, tokenizer: Any, reading: Reading, answers: Sequence[str]) -> list[str]:
    """Names that the model gives as things like the subject, as far as they look like names.

    Args:
        model: Asked greedily.
        tokenizer: Its tokenizer.
        reading: The prompt.
        answers: Forms of both answers.
    """
    like = reading.subject if reading.is_part else reading.phrase
    asked = [
        f"Name ten things like {like}, separated by commas.",
        f"List ten other names of the same kind as {like}. Give only the names.",
        f"Other examples of the same kind as {like} are",
    ]
    names = []
    for said in generate_answers(model, tokenizer, asked, max_new_tokens=64):
        for part in re.split(r"[,;\n]|\d+[.)]| and ", said):
            name = part.strip(" .-*\"'\u2022")
            name = re.sub("^The ", "the ", name) if reading.phrase.startswith("the ") else name
            if len(name) <= _LONGEST and len(name.split()) <= _MOST_WORDS and re.fullmatch(_NAME, name):
                names.append(name)
    capital = reading.subject[0].isupper()
    named = [name for name in names if (bare(name)[:1].isupper() or not capital) and not _NO_NAME.search(name)]
    return _apart(reading, named, answers)[:_MOST_PROPOSED]


def swappable(reading: Reading, names: Sequence[str]) -> list[str]:
    """The names that can stand just where the subject stands, after its article or without one, as they do there."""
    if reading.has_article:
        vowel = begins_with_vowel(reading.subject)
        return [bare(name) for name in names if begins_with_vowel(bare(name)) == vowel]
    # The phrase may stand in quotation marks.
    article = same_text_key(reading.phrase) == same_text_key(f"the {reading.subject}")
    return [bare(name) for name in names if name.startswith("the ") == article]


def _apart(reading: Reading, names: Sequence[str], answers: Sequence[str]) -> list[str]:
    """The names that are neither the subject nor an answer nor a part of one, each once."""
    found: dict[str, str] = {}
    for name in names:
        if (
            is_another(reading, name)
            and not contains(name, answers)
            and not any(contains(answer, [bare(name)]) for answer in answers)
        ):
            found.setdefault(same_text_key(bare(name)), name)
    return list(found.values())
