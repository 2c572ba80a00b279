"""Multiplying some coordinates of an activation, at the price of about one copy of it.

Whichever way is taken, a selected coordinate becomes `(x * scale).to(x.dtype)` with the product in float32, or in
float64 for float64 activations, and every other coordinate keeps its bits, but for those of a denormal number where
these are flushed.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .coordinates import Coordinates

# Cutting an activation into pieces and joining them again costs one copy; beyond this many pieces a dense product is
# cheaper.
MAX_PIECES = 5


def spread(scale: Float[Tensor, " selected"], index: Int[Tensor, " selected"], width: int) -> Float[Tensor, " width"]:
    """Returns the factors of all `width` coordinates, 1 where none is given."""
    return torch.ones(width, dtype=scale.dtype, device=scale.device).index_copy(0, index.to(scale.device), scale)


def scale_coordinates(
    x: Float[Tensor, "... width"],
    coordinates: Coordinates,
    scale: Float[Tensor, " selected"],
    index: Int[Tensor, " selected"],
) -> Float[Tensor, "... width"]:
    """Multiplies coordinates of the last axis.

    Args:
        x: An activation.
        coordinates: Which coordinates.
        scale: One float32 factor for each.
        index: The same coordinates as single indices.

    Returns:
        A new activation in the dtype of `x`.
    """
    width = x.shape[-1]
    # There are at least as many pieces as ranges, of which neurons have hundreds.
    if len(coordinates.ranges) > MAX_PIECES or len(pieces := coordinates.pieces(width)) > MAX_PIECES:
        return (x * spread(scale, index, width)).to(x.dtype)
    parts = list(x.split([length for length, _ in pieces], dim=-1))
    position = 0
    for i, (length, selected) in enumerate(pieces):
        if selected:
            parts[i] = (parts[i] * scale[position : position + length]).to(x.dtype)
            position += length
    return torch.cat(parts, dim=-1)
