"""Numbers that count or weigh something, checked before they are used."""

from __future__ import annotations

import math

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


def check_amounts(**amounts: float) -> None:
    """Refuses an amount, such as a weight or a length, that is no number of at least 0 or not finite.

    Args:
        **amounts: The amounts by their names.

    Raises:
        ModelError: Names the first that is not so.
    """
    for name, amount in amounts.items():
        if type(amount) not in (int, float) or not 0 <= amount < math.inf:
            raise ModelError(f"{name} must be a finite number of 0 or more; got {brief(amount)}.")
