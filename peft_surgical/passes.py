"""How many rows go through the model at once: all of a step where memory holds them, fewer where it does not.

What a step is made of is a sum over rows, so that it may be taken in parts: gradients add up in the parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import nn

Found = TypeVar("Found")


def in_passes(
    rows: Sequence[int],
    lengths: Sequence[int],
    parameters: Sequence[nn.Parameter],
    run: Callable[[Sequence[int]], Found],
    *,
    tokens: int | None = None,
) -> list[Found]:
    """Runs rows forward and backward, in as few passes as fit; the gradient of their sum is in the parameters then.

    A pass that runs out of memory is taken back and its rows are run in two halves, as often as need be.

    Args:
        rows: What to run.
        lengths: The tokens of each, without those that all rows share.
        parameters: What gets a gradient.
        run: Runs some of the rows and adds their gradient.
        tokens: At most so many tokens a pass, padding included, but always one row; all rows at once when None.

    Returns:
        What `run` returned, pass after pass, in the order of the rows.
    """
    found = []
    waiting = list(reversed(_parts(rows, lengths, tokens)))
    while waiting:
        part = waiting.pop()
        before = [None if parameter.grad is None else parameter.grad.clone() for parameter in parameters]
        try:
            found.append(run(part))
            continue
        except RuntimeError as error:
            if len(part) == 1 or not should_reduce_batch_size(error):
                raise
        # Outside of the handler, whose traceback holds on to the tensors of the pass.
        for parameter, gradient in zip(parameters, before, strict=True):
            parameter.grad = gradient
        clear_device_cache(garbage_collection=True)
        middle = len(part) // 2
        waiting += [part[middle:], part[:middle]]
    return found


def _parts(rows: Sequence[int], lengths: Sequence[int], tokens: int | None) -> list[list[int]]:
    """Rows in their order, as many in a part as its padded width allows."""
    parts: list[list[int]] = []
    width = 0
    for row, length in zip(rows, lengths, strict=True):
        width = max(width, length)
        if parts and (tokens is None or width * (len(parts[-1]) + 1) <= tokens):
            parts[-1].append(row)
        else:
            parts.append([row])
            width = length
    return parts
