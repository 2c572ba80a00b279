"""Systems of equations that training solves, and what to do where one has no solution."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..errors import ModelError


@contextmanager
def solved_with(name: str, value: float) -> Iterator[None]:
    """A block that solves equations which an amount of a recipe makes solvable.

    Args:
        name: The amount's name.
        value: What it is.

    Raises:
        ModelError: If they cannot be solved: numbers are not finite, or what is kept says nothing of some directions
            and the amount is too small to.
    """
    try:
        yield
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        raise ModelError(
            f"nothing decides some directions of a change with {name}={value:g}; give a recipe with a larger {name}."
        ) from error
