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
        ModelError: If they have no solution: what is kept says nothing of some directions and the amount is too small
            to, or numbers are not finite.
    """
    try:
        yield
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        raise ModelError(
            f"no change can be solved for with {name}={value:g}; give a recipe with a larger {name}, if the model's "
            "weights are all finite."
        ) from error
