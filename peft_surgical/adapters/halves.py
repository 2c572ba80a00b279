"""Scales that half precision holds, so that an edit on disk takes two bytes a scale and loses nothing.

Half precision has eleven bits: near 1 it is off by at most 0.0005, far less than what training settles to. A stage
ends by choosing its scales so that the product with what is frozen below it, in float32 as the model multiplies it,
*is* a number of half precision. What is evaluated then has these scales, and a plain adapter of them is written in
half precision (`adapter_files`) and loads in float32 again, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

# Numbers of half precision on either side of a product that may stand for it. Not each can be reached: the product of
# two float32 numbers is rounded, and may pass one over. Nine in ten scales take one of the nearest three, and few in
# ten thousand one that is off by 0.01 or more.
_NEIGHBOURS = 128
# Half of its eleven bits' last, as long as nothing is out of its range.
_ROUNDING = 2**-11


def fits_half(tensors: Mapping[str, Tensor]) -> bool:
    """Whether half precision holds every number of some tensors."""
    return all(bool((tensor.half().to(tensor.dtype) == tensor).all()) for tensor in tensors.values())


def halved(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors in half precision if it holds every number of them, else as they are."""
    return {key: tensor.half() for key, tensor in tensors.items()} if fits_half(tensors) else dict(tensors)


@torch.no_grad()
def settle_on_half(parameters: Sequence[nn.Parameter], frozen: Sequence[Float[Tensor, " selected"]]) -> None:
    """Moves each delta by about a rounding of half precision, so that `frozen * (delta + 1)` is one of its numbers.

    Args:
        parameters: Trained deltas, float32.
        frozen: For each the product of the frozen scales on the same coordinates, float32. Where it is 0 or nothing
            near enough is reached, the delta stays.
    """
    for parameter, scale in zip(parameters, frozen, strict=True):
        parameter.copy_(_settled(parameter, scale))


def _settled(delta: Float[Tensor, " selected"], frozen: Float[Tensor, " selected"]) -> Float[Tensor, " selected"]:
    wanted = frozen * (delta + 1)
    settled, half = delta.clone(), wanted.half()
    done = (half.float() == wanted) | ~half.isfinite()
    nearest = half.view(torch.int16)
    for step in sorted(range(-_NEIGHBOURS, _NEIGHBOURS + 1), key=abs):
        if bool(done.all()):
            break
        # Numbers of half precision of one sign follow one another as their bits do.
        target = (nearest + step).view(torch.float16).float()
        candidate = target / frozen - 1
        reached = (frozen * (candidate + 1) == target) & candidate.isfinite() & ~done
        settled = torch.where(reached, candidate, settled)
        done |= reached
    return settled


def rounded(values: Tensor) -> Tensor:
    """The nearest numbers of half precision, or the same where they are too large or too small for it."""
    half, size = values.half().to(values.dtype), float(values.norm())
    # The norm of what is not 0 may be, and that of what is finite may be infinite.
    fits = size > 0 and bool(half.isfinite().all()) and float((half - values).norm()) <= _ROUNDING * size
    return half if fits else values
