"""Numbers that count or weigh something, checked before they are used."""

from __future__ import annotations

import math
from typing import TypeGuard

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


def check_amounts(**amounts: object) -> None:
    """Refuses an amount, such as a weight or a length, that is no number of at least 0 or not finite.

    Args:
        **amounts: The amounts by their names.

    Raises:
        ModelError: Names the first that is not so.
    """
    for name, amount in amounts.items():
        if not _is_number(amount) or not 0 <= amount < math.inf:
            raise ModelError(f"{name} must be a finite number of 0 or more; got {brief(amount)}.")


def check_positive(**amounts: object) -> None:
    """Refuses what [`check_amounts`] does, and 0.

    Args:
        **amounts: The amounts by their names.

    Raises:
        ModelError: Names the first that is not so.
    """
    for name, amount in amounts.items():
        if not _is_number(amount) or not 0 < amount < math.inf:
            raise ModelError(f"{name} must be a finite number above 0; got {brief(amount)}.")


def check_limits(**limits: object) -> None:
    """Refuses what nothing can be compared with. A limit may be infinite, or one that nothing ever passes.

    Args:
        **limits: The limits by their names.

    Raises:
        ModelError: Names the first that is not so.
    """
    for name, limit in limits.items():
        if not _is_number(limit) or limit != limit:
            raise ModelError(f"{name} must be a number; got {brief(limit)}.")


def _is_number(value: object) -> TypeGuard[float]:
    # numpy's float64 is a float.
    return isinstance(value, (int, float)) and not isinstance(value, bool)
