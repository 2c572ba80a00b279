"""What the fuzz tests share: any JSON value, a JSON document with something wrong in it, bytes with a bit flipped."""

import copy
from typing import Any

from hypothesis import strategies as st

TEXT = st.text(st.sampled_from("abAB01.-é\u200b\u0301東🍎\x1b\n:[]{}*&"), max_size=8)
NAMES = ["", "L1.mlp", "L0.head.1", "L9.mlp", "input", "SURGICAL_IA3", "../../etc/passwd", "AAAA", "\ud800"]
NUMBERS = [10**12, 10**400, -1, 1 << 24, 1 << 31]
SCALARS = st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | TEXT | st.sampled_from([*NAMES, *NUMBERS])
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=6
)


def places(document: Any) -> list[tuple[Any, ...]]:
    """The way to every value in a JSON document."""
    found: list[tuple[Any, ...]] = [()]
    if isinstance(document, (dict, list)):
        children = document.items() if isinstance(document, dict) else enumerate(document)
        found += [(key, *rest) for key, child in children for rest in places(child)]
    return found


def replaced(document: Any, place: tuple[Any, ...], value: Any, *, drop: bool = False) -> Any:
    """A copy of a document with another value at one place, or without it."""
    if not place:
        return value
    document = copy.deepcopy(document)
    inside = document
    for key in place[:-1]:
        inside = inside[key]
    if drop:
        del inside[place[-1]]
    else:
        inside[place[-1]] = value
    return document


def mutated(document: Any) -> st.SearchStrategy[Any]:
    """The document with one or two values replaced by anything, or left out."""

    def once(inner: Any) -> st.SearchStrategy[Any]:
        change = st.tuples(st.sampled_from(places(inner)), VALUES, st.booleans())
        return change.map(lambda change: replaced(inner, change[0], change[1], drop=change[2]))

    return once(document) | once(document).flatmap(once)


def flipped(content: bytes, bit: int) -> bytes:
    """The bytes with one bit the other way round."""
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << (bit % 8)
    return bytes(changed)
