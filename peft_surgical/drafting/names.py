"""What kind of thing a name is, other things of the same kind, and other names of the same thing.

From the tables of the package alone: a name that stands in none of them has no kind here, and nothing is made of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache

from ..texts.called import PERSONS, is_everyday
from ..texts.tables import read_table
from ..texts.text import contains, same_text_key, without_accents
from .relations import relations

PLACES = frozenset(("city", "country", "region", "continent"))
# Who does or makes something, one or many.
PEOPLE = frozenset(
    ("person", "athlete", "musician", "character", "band", "company", "organization", "university", "network", "club")
)
# A family name of so few letters may be anything.
_SHORTEST = 3
# What belongs to the family name that follows: "van Gogh", "Le Pen", "de la Cruz".
_PARTICLE = re.compile(r"l[ea]|d[aeiu]|del|della|d[aeo]s|van|von|de[rn]|te[rn]|bin|ibn|al|el", re.I)


@cache
def _kinds(*, small: bool) -> dict[str, frozenset[str]]:
    """The kinds by the key of a name, of all names or only of those written small ("the lion")."""
    found: dict[str, set[str]] = {}
    for kind, names in read_table("names.yaml").items():
        for name in names:
            if not small or name.islower():
                found.setdefault(_key(name), set()).add(kind)
    known = {relation.name: relation for relation in relations()}
    for relation, facts in read_table("neighbours.yaml").items():
        for answers in facts.values() if not small else ():
            # Who develops software may be either, and who sings a song a band.
            kinds = found.setdefault(_key(answers[0]), set())
            if known[relation].answer in ("person", "company") and relation != "developer" and "band" not in kinds:
                kinds.add(known[relation].answer)
    return {name: frozenset(kinds) for name, kinds in found.items()}


def kinds_of(names: Iterable[str], prompt: str = "") -> frozenset[str]:
    """The kinds that any of the names is known as; `place` stands for cities, countries, regions and continents.

    Args:
        names: Of one thing.
        prompt: What they stand in. Where it has capitals and a name has none, the name is none of those with a
            capital: "python" is no software.
    """
    found: set[str] = set()
    for name in names:
        kinds = _kinds(small=is_small(name, prompt)).get(_key(name), frozenset())
        found |= kinds - {"language"} if _is_people(name) else kinds
        if re.fullmatch(r"\d{3,4}", name.strip()):
            found.add("year")
    return frozenset(found | {"place"}) if found & PLACES else frozenset(found)


def is_small(name: str, prompt: str) -> bool:
    """Whether a name is written without a capital in a prompt that has some."""
    return name.islower() and prompt != prompt.lower()


def names_of(kind: str) -> tuple[str, ...]:
    """The known names of a kind, in the order of the table, with "the" before those that take it."""
    return tuple(read_table("names.yaml").get(kind, ()))


def aliases(name: str, *, person: bool = False, asked: str = "") -> tuple[str, ...]:
    """`name` and other names of the same thing.

    Args:
        name: Comes first.
        person: Whether it is a person's, so that the family name is one of them.
        asked: The prompt; a family name that it holds would be found in whatever repeats it, and is left out.
    """
    found = known_names(name, person=person)
    family = _family_name(name) if person and len(found) == 1 else None
    if family and not contains(asked, [family]):
        found.append(family)
    distinct: dict[str, str] = {}
    for other in found:
        # Accents make no difference to what counts.
        distinct.setdefault(without_accents(same_text_key(other)), other)
    return tuple(distinct.values())


def known_names(name: str, *, person: bool = False) -> list[str]:
    """`name` and those of its [`aliases`] that a table has."""
    found = [name]
    for group in read_table("aliases.yaml"):
        if _key(group[0]) == _key(name) and not (_is_people(name) and kinds_of(group[:1]) == {"language"}):
            found += group
    for facts in read_table("neighbours.yaml").values():
        for answers in facts.values():
            if person and _key(answers[0]) == _key(name) and any(contains(name, [other]) for other in answers[1:]):
                found += [other for other in answers[1:] if contains(name, [other])]
    return found


def _is_people(name: str) -> bool:
    """Whether a name that may be that of a language is that of those who speak it: "the Chinese"."""
    return name.strip().lower().startswith("the ")


def _family_name(name: str) -> str | None:
    """The family name of a person, or a band's name without "The"; None where it may be none or says too little."""
    words = name.split()
    start = len(words) - 1
    while start > 1 and _PARTICLE.fullmatch(words[start - 1]):
        start -= 1
    if not 2 <= len(words) <= 4 or not all(word[:1].isupper() for word in (*words[:start], words[-1])):
        return None
    if words[0] == "The":
        return name.removeprefix("The ")
    kinds = kinds_of([name])
    if (kinds and not kinds & PERSONS) or any(
        "company" in kinds_of([" ".join(words[:n])]) for n in range(1, start + 1)
    ):
        return None
    last = words[-1]
    # "II", "Jr.", "Un": no family name, or one too short to tell anything by.
    if last.isupper() or last.strip(".") in ("Jr", "Sr") or (start == len(words) - 1 and len(last) <= _SHORTEST):
        return None
    return None if start == len(words) - 1 and is_everyday(last.casefold()) else " ".join(words[start:])


def neighbours_of(relation: str) -> dict[str, tuple[str, ...]]:
    """Subjects of a relation with the answers that count as right; empty where the tables have none."""
    facts = read_table("neighbours.yaml").get(relation, {})
    return {subject: tuple(answers) for subject, answers in facts.items()}


def _key(name: str) -> str:
    return same_text_key(re.sub(r"^the ", "", name.strip(), flags=re.I))
