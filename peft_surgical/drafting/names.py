"""What kind of thing a name is, other things of the same kind, and other names of the same thing.

From the tables of the package alone: a name that stands in none of them has no kind here, and nothing is made of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache

from ..texts.text import contains, same_text_key
from .relations import relations
from .tables import read_table

PLACES = frozenset(("city", "country", "region", "continent"))


@cache
def _kinds() -> dict[str, frozenset[str]]:
    found: dict[str, set[str]] = {}
    for kind, names in read_table("names.yaml").items():
        for name in names:
            found.setdefault(_key(name), set()).add(kind)
    known = {relation.name: relation for relation in relations()}
    for relation, facts in read_table("neighbours.yaml").items():
        for answers in facts.values():
            # Who develops software may be either, and who sings a song a band.
            kinds = found.setdefault(_key(answers[0]), set())
            if known[relation].answer in ("person", "company") and relation != "developer" and "band" not in kinds:
                kinds.add(known[relation].answer)
    return {name: frozenset(kinds) for name, kinds in found.items()}


def kinds_of(names: Iterable[str]) -> frozenset[str]:
    """The kinds that any of the names is known as; `place` stands for cities, countries, regions and continents."""
    found: set[str] = set()
    for name in names:
        found |= _kinds().get(_key(name), frozenset())
        if re.fullmatch(r"\d{3,4}", name.strip()):
            found.add("year")
    return frozenset(found | {"place"}) if found & PLACES else frozenset(found)


def names_of(kind: str) -> tuple[str, ...]:
    """The known names of a kind, in the order of the table, with "the" before those that take it."""
    return tuple(read_table("names.yaml").get(kind, ()))


def aliases(name: str, *, person: bool = False) -> tuple[str, ...]:
    """`name` and other names of the same thing.

    Args:
        name: Comes first.
        person: Whether it is a person's, so that the family name is one of them.
    """
    found = [name]
    for group in read_table("aliases.yaml"):
        if _key(group[0]) == _key(name):
            found += group
    for facts in read_table("neighbours.yaml").values():
        for answers in facts.values():
            if person and _key(answers[0]) == _key(name) and any(contains(name, [other]) for other in answers[1:]):
                found += [other for other in answers[1:] if contains(name, [other])]
    words = name.split()
    if person and len(found) == 1 and 2 <= len(words) <= 4 and all(word[:1].isupper() for word in words):
        found.append(words[-1])
    distinct: dict[str, str] = {}
    for other in found:
        distinct.setdefault(same_text_key(other), other)
    return tuple(distinct.values())


def neighbours_of(relation: str) -> dict[str, tuple[str, ...]]:
    """Subjects of a relation with the answers that count as right; empty where the tables have none."""
    facts = read_table("neighbours.yaml").get(relation, {})
    return {subject: tuple(answers) for subject, answers in facts.items()}


def bare(name: str) -> str:
    """A name of the tables without the article that stands before it."""
    return name.removeprefix("the ")


def _key(name: str) -> str:
    return same_text_key(re.sub(r"^the ", "", name.strip(), flags=re.I))
