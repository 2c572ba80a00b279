"""Adapters by their names, as people give them."""

from __future__ import annotations

from collections.abc import Iterable

from ..errors import AdapterError


def names_of(adapters: str | Iterable[str]) -> list[str]:
    """One name, or several, as a list."""
    return [adapters] if isinstance(adapters, str) else list(adapters)


def check_known(names: Iterable[str], known: Iterable[str]) -> None:
    """Refuses adapters that there are not.

    Args:
        names: Of adapters.
        known: Those that a model has.

    Raises:
        AdapterError: If a name is not known.
    """
    known = list(known)
    if unknown := [name for name in names if name not in known]:
        raise AdapterError(f"there is no adapter named {unknown[0]!r}; the model has {', '.join(known)}.")
