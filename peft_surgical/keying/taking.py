"""Which neuron of an MLP to rewrite: the one that writes least on the texts to keep.

One that hardly fires at all there, and could write as much as others do, is there for something that these texts do
not show, and is left alone. So is one that is about as deeply shut on them as a rewritten one is, as few of a model's
own are: it may be an earlier edit's, which fires as far as others do where its subject is met.
"""

from __future__ import annotations

import math

from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import SelectionError

# Below this part of the mean square, or of the squared length, that half of the neurons exceed, one is silent or void.
# What a rewritten neuron writes is about a thousandth of what half of the others do, or less, and of the demo model's
# own none writes less than a tenth.
_LITTLE = 0.01


def is_shut(
    rows: Float[Tensor, "neuron hidden"],
    biases: Float[Tensor, " neuron"],
    mean: Float[Tensor, " hidden"],
    depth: float,
) -> Bool[Tensor, " neuron"]:
    """Which neurons are on average half as deeply shut as a rewritten one, or more; none where most are.

    Args:
        rows: What neurons read a token by, before the activation function.
        biases: Added to it.
        mean: The mean of what enters, over the texts to keep.
        depth: Where a rewritten neuron is on them, below 0.
    """
    found = rows @ mean.to(rows) + biases < depth / 2
    return found & (2 * found.sum() <= len(found))


def neuron_to_take(
    squares: Float[Tensor, " neuron"], lengths: Float[Tensor, " neuron"], shut: Bool[Tensor, " neuron"]
) -> int:
    """The neuron to rewrite, see above.

    Args:
        squares: How far neurons fire on the texts to keep, mean squares.
        lengths: The squared lengths of what they write.
        shut: From [`is_shut`].

    Raises:
        SelectionError: If all are left alone.
    """
    silent, writing = squares < _LITTLE * squares.median(), lengths >= _LITTLE * lengths.median()
    left = ((silent | shut.to(silent.device)) & writing).logical_not()
    if not left.any():
        raise SelectionError("no neuron is left to be rewritten: those of other edits are left alone.")
    return int((squares * lengths).masked_fill(~left, math.inf).argmin())
