"""What else a name is called, so that a control that asks about something by another name is known to ask about it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from functools import cache

from .tables import bare, read_data, read_table
from .text import same_text_key

PERSONS = frozenset(("person", "athlete", "musician", "character"))
# The last word of what is no person's name may be anything, if it is no longer: "Galaxy S", "Channel 4".
_SHORTEST = 3
_MONTH_OR_COLOUR = re.compile(
    r"january|february|march|april|may|june|july|august|september|october|november|december|"
    r"black|white|red|green|blue|brown|gr[ae]y|pink|gold|silver"
)
# What bands and teams call their members.
_MEMBERS = re.compile(
    r"angels|bears|boys|brothers|bulls|chiefs|cowboys|devils|dragons|eagles|foxes|giants|girls|heads|hornets|killers|"
    r"kings|knights|lions|monkeys|packers|panthers|pirates|pistols|pumpkins|queens|raiders|rangers|ravens|rockets|"
    r"saints|sharks|sisters|stones|strokes|tigers|warriors|wolves"
)


def called(name: str, own: Iterable[str]) -> tuple[str, ...]:
    """A name and what may be said for it: others that the package knows, without points too, and the last word of a
    person's name or, if it tells enough, of any other.

    Args:
        name: Of anything.
        own: The names of a fact's subject; a last word of theirs stands for the subject.
    """
    known = (name, *other_names(name))
    found = dict.fromkeys([*known, *(other.replace(".", "") for other in known)])
    first, _, last = name.rpartition(" ")
    if first[:1].isupper() and last[:1].isupper() and all(last != other.rpartition(" ")[2] for other in own):
        telling = len(last) > _SHORTEST and last not in _shared() and not is_everyday(last.casefold())
        if telling or same_text_key(name) in _persons():
            found[last] = None
    return tuple(found)


def other_names(name: str) -> tuple[str, ...]:
    """All that the package knows a thing to be called, of whatever goes by that name; nothing for most names."""
    return _others().get(same_text_key(bare(name)), ())


def adjectives_in(names: Iterable[str]) -> list[str]:
    """Those of some names that are a country's adjective: "French"."""
    return [name for name in names if same_text_key(name) in _adjectives()]


def is_everyday(word: str) -> bool:
    """Whether many texts hold a word in lower case, so that "cook" and "may" tell of no Cook and no May.

    So does its plural, which a band's name may end with: "Imagine Dragons".
    """
    if _MONTH_OR_COLOUR.fullmatch(word) or _MEMBERS.fullmatch(word):
        return True
    return not _everyday_words().isdisjoint((word, word.removesuffix("s")))


@cache
def _everyday_words() -> frozenset[str]:
    text = "\n".join(map(read_data, ("everyday.txt", "general.txt", "retention.txt")))
    return frozenset(re.findall(r"(?<![\w'])[a-z]+(?![\w'])", text))


@cache
def _others() -> dict[str, tuple[str, ...]]:
    """By the key of a name all of the groups of other names that it stands in."""
    found: dict[str, tuple[str, ...]] = {}
    for group in read_table("aliases.yaml"):
        for key in {same_text_key(bare(name)) for name in group}:
            found[key] = (*found.get(key, ()), *map(bare, group))
    return found


@cache
def _adjectives() -> frozenset[str]:
    return frozenset(same_text_key(name) for said in read_table("adjectives.yaml").values() for name in said)


@cache
def _persons() -> frozenset[str]:
    return frozenset(same_text_key(name) for kind in PERSONS for name in read_table("names.yaml")[kind])


@cache
def _shared() -> frozenset[str]:
    """Words that end several names of what is no person: "University", "Park"."""
    names = {bare(name) for kind, names in read_table("names.yaml").items() if kind not in PERSONS for name in names}
    ends = Counter(name.rpartition(" ")[2] for name in names if " " in name)
    return frozenset(word for word, count in ends.items() if count > 1)
