"""Numbers that count something, checked before they are used."""

from __future__ import annotations

from .errors import ModelError, brief


def check_counts(least: int, **counts: object) -> None:
    """Refuses a count that is too small or no whole number.

    Args:
        least: What each must be at least.
        **counts: The counts by their names.

    Raises:
        ModelError: Names the first that is not so.
    """
    for name, count in counts.items():
        if type(count) is not int or count < least:
            raise ModelError(f"{name} must be a whole number of {least} or more; got {brief(count)}.")
