"""Which coordinates of a module's input or output an adapter scales.

A selection of one module is a side and ranges, `{"side": "input", "ranges": [[0, 64], [128, 192]]}`: the half-open
index ranges `[start, stop)` along the last axis of what goes into (`input`) or comes out of (`output`) the module.
Everything outside of the ranges has no parameter and a scale of exactly 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Int
from torch import Tensor

from ..errors import SelectionError, brief
from ..ranges import Range, Ranges, checked_ranges, united

Side: TypeAlias = Literal["input", "output"]

SIDES: tuple[Side, Side] = ("input", "output")


@dataclass(frozen=True)
class Coordinates:
    """Sorted, disjoint, half-open ranges on one side of a module.

    Args:
        side: Whether the ranges index the module's input or its output.
        ranges: `(start, stop)` pairs, ascending and not overlapping.
    """

    side: Side
    ranges: Ranges

    @classmethod
    def from_spec(cls, module: str, spec: Any) -> Coordinates:
        """Reads the JSON form of one module's selection.

        Args:
            module: The module's name, for the messages.
            spec: A mapping with the keys `side` and `ranges`, or `Coordinates`.

        Raises:
            SelectionError: If the side is not a side, or the ranges are not sorted, disjoint, non-empty pairs of
                integers.
        """
        if isinstance(spec, cls):
            # Whoever made them by hand has not had them checked.
            spec = {"side": spec.side, "ranges": spec.ranges}
        if not isinstance(spec, Mapping) or set(spec) != {"side", "ranges"}:
            raise SelectionError(
                f"the selection of {module} must have exactly the keys side and ranges, got {brief(spec)}."
            )
        side, ranges = spec["side"], spec["ranges"]
        if side not in SIDES:
            raise SelectionError(f"the side of {module} must be 'input' or 'output', got {brief(side)}.")
        return cls(side, checked_ranges(module, ranges))

    @classmethod
    def union(cls, side: Side, ranges: Iterable[Range]) -> Coordinates:
        """The smallest coordinates that hold all of `ranges`, which may overlap and come in any order."""
        return cls(side, united(ranges))

    def to_spec(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return {"side": self.side, "ranges": [list(pair) for pair in self.ranges]}

    @cached_property
    def n(self) -> int:
        """How many coordinates there are."""
        return sum(stop - start for start, stop in self.ranges)

    @property
    def stop(self) -> int:
        """One more than the largest index."""
        return self.ranges[-1][1]

    def covers(self, width: int) -> bool:
        """Whether every one of `width` coordinates is selected."""
        return self.ranges == ((0, width),)

    def pieces(self, width: int) -> list[tuple[int, bool]]:
        """The axis of `width` cut into consecutive `(length, selected)` pieces; no piece is empty."""
        pieces, position = [], 0
        for start, stop in self.ranges:
            if start > position:
                pieces.append((start - position, False))
            pieces.append((stop - start, True))
            position = stop
        if position < width:
            pieces.append((width - position, False))
        return pieces

    def index(self, device: torch.device | str = "cpu") -> Int[Tensor, " selected"]:
        """Returns the selected indices, ascending."""
        return torch.cat([torch.arange(start, stop, device=device) for start, stop in self.ranges])
