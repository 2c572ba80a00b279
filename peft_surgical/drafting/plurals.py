"""Subjects in the plural ("The Beatles were formed in"), for templates that are written for one thing."""

from __future__ import annotations

import re
from collections.abc import Iterable

from ..texts.grammar import SUBJECT
from .names import kinds_of, names_of

_BE = (("is", "are"), ("was", "were"))
_ALL = (*_BE, ("has", "have"), ("does", "do"))
# Where a subject begins a clause, so that the verb behind it is its own: not in "the capital of {} is".
_BEGINS = r"(?P<begins>^|, |\b(?:that|where|when|why|how|which|what|whom) )"
# Kinds whose names are one thing, even with "the" and an s: "the United States", "the Thames", "the Simpsons".
_ONE = frozenset(
    ("country", "region", "city", "river", "organization", "company", "series", "film", "book", "song", "state")
)
# Lower-case words of these kinds are common nouns, or groups.
_COMMON = frozenset(("discovery", "invention", "animal", "band", "club"))
# What ends in s and is no plural: of names, and of common nouns.
_ONE_NAME = re.compile(
    r".*(?:[sui]s|['\u2019]s)|Times|Mercedes|Texas|Emirates|Maldives|Seychelles|Comoros|Nations|States"
)
_ONE_THING = re.compile(
    r".*(?:[sui]s|['\u2019]s|ics)|aids|asbestos|atlas|bias|canvas|chaos|christmas|cosmos|diabetes|gas|herpes|lens|"
    r"mars|measles|news|rabies|rickets|scabies|series|species"
)
_INSIDE = re.compile(r" (?:of|in|on|at|for|from|to|with|by|and|or|the)\b")


def is_plural(template: str, phrase: str = "") -> bool:
    """Whether the subject is a plural: by the template's own verb ("{} were formed in"), else by the phrase for it."""
    shown = _number(template)
    return names_many(phrase) if shown is None else shown


def names_many(phrase: str) -> bool:
    """Whether a phrase looks like a plural: "contact lenses", "the Alps"; not "the Netherlands" or "The Planets"."""
    name = re.sub(r"^[Tt]he ", "", phrase)
    word = re.split(r"[ -]", name)[-1]
    if not word.endswith("s") or _INSIDE.search(name):
        return False
    kinds = kinds_of([name])
    if word.islower():
        return not _ONE_THING.fullmatch(word) and not kinds - _COMMON
    if any(f"The {name}" in names_of(kind) for kind in kinds) or phrase == name:
        return False
    # Whatever is not known to take "the" may be a title, where that has a capital.
    titled = phrase.startswith("The ") and not kinds & _COMMON
    return not (titled or _ONE_NAME.fullmatch(word) or kinds & _ONE)


def in_number_of(phrase: str, template: str) -> str:
    """A template in the number of another phrase, if its verb shows one: "Where is {}?" for "the Eiffel Tower"."""
    many = names_many(phrase)
    if _number(template) in (None, many):
        return template
    return (in_plural(template) or template) if many else _changed(template, ((b, a) for a, b in _ALL))


def in_singular(template: str) -> str:
    """A template with a subject in the plural, in the singular; what such a subject does ("do {} live") stays."""
    return _changed(template, ((many, one) for one, many in _BE))


def in_plural(template: str) -> str:
    """A template for a subject in the plural; empty where another word would have to change with it."""
    template = re.sub(r"\bits\b", "their", _changed(template, _ALL))
    return "" if re.search(rf"{_BEGINS}\{{\}} (?:\w+(?<!s)s\b|(?:are|were) an? )", template) else template


def _changed(template: str, forms: Iterable[tuple[str, str]]) -> str:
    for old, new in forms:
        if old not in ("has", "have"):
            template = re.sub(rf"\b{old} \{{\}}(?!')", f"{new} {SUBJECT}", template)
        if old not in ("does", "do"):
            template = re.sub(rf"{_BEGINS}\{{\}} {old}\b", rf"\g<begins>{SUBJECT} {new}", template)
    return template


def _number(template: str) -> bool | None:
    """Whether a verb next to the subject shows that it is a plural; None without such a verb."""
    before = re.search(r"\b(?P<verb>is|was|does|are|were|do) \{\}(?!')", template)
    shown = before or re.search(rf"{_BEGINS}\{{\}} (?P<verb>is|was|has|are|were|have)\b", template)
    return None if shown is None else shown["verb"] in ("are", "were", "do", "have")
