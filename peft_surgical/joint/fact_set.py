"""Which facts may be edited together, and what the folder of each is called."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path

from ..edit_folder import TOGETHER, TRACE, WRITTEN
from ..errors import FactError, brief
from ..facts import Fact, check_fact
from ..texts.text import digest, same_text_key

_UNSAFE = re.compile(r"[^\w.-]+")
_LONGEST = 50
_RESERVED = {TOGETHER, *WRITTEN, *TRACE}
# What Windows takes for a device, whatever stands behind a dot.
_DEVICES = re.compile(r"(con|prn|aux|nul|(com|lpt)[0-9¹²³])(\.|$)", re.IGNORECASE)


def read_facts(paths: Iterable[str | os.PathLike[str]]) -> list[Fact]:
    """Reads fact files, and tells of the faults of all of them.

    Raises:
        FactError: If one cannot be read or holds no fact; a sentence for each.
    """
    facts, faults = [], []
    for path in paths:
        try:
            facts.append(Fact.from_file(path))
        except FactError as error:
            faults.append(str(error))
    if faults:
        raise FactError(" ".join(faults))
    return facts


def check_facts(facts: object) -> tuple[Fact, ...]:
    """Refuses what are no facts, none, and facts that contradict or repeat each other.

    Raises:
        FactError: If they are so; a sentence for each two that do not go together.
    """
    if isinstance(facts, str | os.PathLike | Fact) or not isinstance(facts, Iterable):
        raise FactError(f"facts must be a list of them, such as Fact.from_file(...) gives, not {brief(facts)}.")
    listed = tuple(facts)
    for fact in listed:
        check_fact(fact, whole=True)
    if not listed:
        raise FactError("there is no fact to edit; give at least one.")
    if faults := [fault for pair in combinations(listed, 2) if (fault := _fault(*pair))]:
        raise FactError(" ".join(faults))
    return listed


def _fault(one: Fact, other: Fact) -> str | None:
    """Why two facts cannot both be edited, if that is so."""
    sources = [os.path.realpath(fact.source) for fact in (one, other) if fact.source]
    # A fact that was changed after it was read still names its file.
    if one == other and len(sources) == 2 and sources[0] == sources[1]:
        return f"{other.source} is given twice; give it once."
    if one == other:
        return f"{_called(one)} and {_called(other)} are the same fact; give one of them."
    if not {*map(same_text_key, one.names)} & {*map(same_text_key, other.names)}:
        return None
    asked = {digest(prompt) for prompt in (*other.prompts, *other.held_out)}
    both = next((prompt for prompt in (*one.prompts, *one.held_out) if digest(prompt) in asked), None)
    if both is None:
        return None
    # Also of one answer: what one of them trains on, the other is measured with.
    return (
        f"{_called(one)} and {_called(other)} both ask {brief(both)} of {one.subject}, and answer {one.new[0]} and"
        f" {other.new[0]}; give one of them."
    )


def _called(fact: Fact) -> str:
    return fact.source or f"the fact of {fact.subject} ({fact.old[0]} to {fact.new[0]})"


def folder_names(facts: Sequence[Fact]) -> list[str]:
    """What the folder of each fact is called: as its file, else as its subject; safe in any file system, and told
    apart by a number where need be, so that facts that are added at the end change no earlier name."""
    # A folder that is called as a file of an edit would be taken for it.
    taken, names = {*_RESERVED}, []
    for fact in facts:
        own = Path(fact.source).stem if fact.source else fact.subject
        plain = _UNSAFE.sub("_", own).strip("._-")
        if _DEVICES.match(plain):
            plain = f"fact_{plain}"
        name = plain = plain[:_LONGEST].rstrip(".") or "fact"
        number = 1
        # Some file systems take names for equal that differ in case alone.
        while name.casefold() in taken:
            number += 1
            name = f"{plain}_{number}"
        taken.add(name.casefold())
        names.append(name)
    return names
