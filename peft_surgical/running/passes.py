"""How many rows go through the model at once: all of a step where memory holds them, fewer where it does not.

What a step is made of is a sum over rows, so that it may be taken in parts: gradients add up in the parameters.
A processor that multiplies in float32 is as fast with a few hundred tokens at a time as with thousands, which only
take more memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import nn

Found = TypeVar("Found")

# On two cores 256 took a fifth more time in a step and half as much again for the curvature; 1,024 and all gained
# nothing and took two and four times the memory.
_PROCESSOR_TOKENS = 512


def tokens_of(given: int | None, model: Any, shared: int = 0) -> int | None:
    """How many tokens go through a model at once, at most; None for as many as there are.

    Args:
        given: What a recipe says; where that is None, it is 512 on a processor in float32, and no limit elsewhere.
        model: What runs.
        shared: How many tokens all rows share, which run once a pass: the more, the fewer passes there should be.
    """
    if given is None and model.device.type == "cpu" and model.dtype == torch.float32:
        return max(_PROCESSOR_TOKENS, 4 * shared)
    return given


def in_passes(
    rows: Sequence[int],
    lengths: Sequence[int],
    parameters: Sequence[nn.Parameter],
    run: Callable[[Sequence[int]], Found],
    *,
    tokens: int | None = None,
) -> list[tuple[list[int], Found]]:
    """Runs rows forward and backward, in as few passes as fit; the gradient of their sum is in the parameters then.

    A pass that runs out of memory is taken back and its rows are run in two halves, as often as need be.

    Args:
        rows: What to run.
        lengths: The tokens of each, without those that all rows share.
        parameters: What gets a gradient.
        run: Runs some of the rows and adds their gradient.
        tokens: See [`parts`].

    Returns:
        The rows of each pass and what `run` returned for them.
    """
    found = []
    waiting = parts(rows, lengths, tokens)[::-1]
    while waiting:
        part = waiting.pop()
        before = [None if parameter.grad is None else parameter.grad.clone() for parameter in parameters]
        try:
            found.append((part, run(part)))
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


def parts(rows: Sequence[int], lengths: Sequence[int], tokens: int | None) -> list[list[int]]:
    """Parts rows into as few passes as possible.

    Args:
        rows: What to part.
        lengths: The tokens of each.
        tokens: At most so many tokens a pass, padding included, but always one row; rows of like length go together.
            All rows are one pass, in their order, when None.
    """
    if tokens is None:
        return [list(rows)] if rows else []
    # Longest first: running out of memory shows at once.
    waiting = sorted(range(len(rows)), key=lambda place: -lengths[place])
    made = []
    while waiting:
        fit = max(1, tokens // lengths[waiting[0]])
        made.append([rows[place] for place in waiting[:fit]])
        waiting = waiting[fit:]
    return made
