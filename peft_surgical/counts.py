"""Numbers that count or weigh something, checked before they are used, and counts in words."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

from .errors import ModelError, SurgicalError, brief


def whole(number: object) -> int | None:
    """A whole number as Python's own, NumPy's too; None for anything else, such as True."""
    if isinstance(number, bool):
        return None
    try:
        return operator.index(number)  # type: ignore[arg-type]
    except TypeError:
        return None


def counted(count: int, one: str) -> str:
    """So many of something in words, whose plural ends in s."""
    return f"{count:,} {one}{'s' * (count != 1)}"


def check_counts(least: int, error: type[SurgicalError] = ModelError, **counts: object) -> None:
    """Refuses a count that is too small or no whole number.

    Args:
        least: What each must be at least.
        error: What to raise.
        **counts: The counts by their names.

    Raises:
        SurgicalError: Of the kind `error`; names the first that is not so.
    """
    _check(counts, lambda count: type(count) is int and count >= least, f"a whole number of {least} or more", error)


def check_text_tokens(**counts: object) -> None:
    """Refuses how many tokens of a text are to be read, of which the first is not predicted.

    Raises:
        ModelError: If one is 1, less than 0 or no whole number.
    """
    check_counts(0, ModelError, **counts)
    for name, count in counts.items():
        if count == 1:
            raise ModelError(f"{name} must be 0, or 2 or more: nothing is predicted before a text's second token.")


def check_seed(seed: object, error: type[SurgicalError] = ModelError) -> None:
    """Refuses what torch's random numbers cannot begin with, or Python's would begin with otherwise each time.

    Args:
        seed: The seed.
        error: What to raise.

    Raises:
        SurgicalError: Of the kind `error`, if it is no whole number of 64 bits. One of NumPy's has to become an `int`.
    """
    if type(seed) is not int or not -(2**63) <= seed < 2**64:
        raise error(f"seed must be a whole number (int) from -2**63 to 2**64 - 1, not {brief(seed)}.")


def check_amounts(**amounts: object) -> None:
    """Refuses an amount, such as a weight or a length, that is no number of at least 0 or not finite.

    Args:
        **amounts: The amounts by their names.

    Raises:
        ModelError: Names the first that is not so.
    """
    _check(amounts, lambda amount: _is_number(amount) and 0 <= amount < math.inf, "a finite number of 0 or more")


def check_positive(**amounts: object) -> None:
    """Refuses what [`check_amounts`] does, and 0.

    Args:
        **amounts: The amounts by their names.

    Raises:
        ModelError: Names the first that is not so.
    """
    _check(amounts, lambda amount: _is_number(amount) and 0 < amount < math.inf, "a finite number above 0")


def check_limits(**limits: object) -> None:
    """Refuses what nothing can be compared with. A limit may be infinite, or one that nothing ever passes.

    Args:
        **limits: The limits by their names.

    Raises:
        ModelError: Names the first that is not so.
    """
    _check(limits, lambda limit: _is_number(limit) and not math.isnan(limit), "a number")


def check_switches(**switches: object) -> None:
    """Refuses what is neither True nor False, such as a text, which would count as True.

    Args:
        **switches: The switches by their names.

    Raises:
        ModelError: Names the first that is not so.
    """
    _check(switches, lambda switch: isinstance(switch, bool), "True or False")


def _check(
    values: Mapping[str, object], fits: Callable[[Any], bool], wanted: str, error: type[SurgicalError] = ModelError
) -> None:
    for name, value in values.items():
        if not fits(value):
            raise error(f"{name} must be {wanted}; got {brief(value)}.")


def _is_number(value: object) -> bool:
    # numpy's float64 is a float.
    return isinstance(value, (int, float)) and not isinstance(value, bool)
