"""Which rows go through the model together: as few padding tokens as is worth it, and no more than memory holds.

What a step is made of is a sum over rows, so that it may be taken in parts: gradients add up in the parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import nn

Found = TypeVar("Found")

# What another pass costs on a processor, in tokens, as measured: the shared beginning runs again, and each layer has a
# cost of its own.
_PASS_COST = 256


def in_passes(
    rows: Sequence[int],
    lengths: Sequence[int],
    parameters: Sequence[nn.Parameter],
    run: Callable[[Sequence[int]], Found],
    *,
    tokens: int | None = None,
    device: torch.device | None = None,
) -> list[tuple[list[int], Found]]:
    """Runs rows forward and backward in some passes; the gradient of their sum is in the parameters then.

    Rows of like length go together. A pass that runs out of memory is taken back and its rows are run in two halves,
    as often as need be.

    Args:
        rows: What to run.
        lengths: The tokens of each, without those that all rows share.
        parameters: What gets a gradient.
        run: Runs some of the rows and adds their gradient.
        tokens: At most so many tokens a pass, padding included, but always one row.
        device: Where it runs. On a processor padding costs as much as text; an accelerator does a larger pass in
            nearly the same time, and gets as few as `tokens` allows.

    Returns:
        The rows of each pass and what `run` returned for them.
    """
    found = []
    on_processor = device is None or device.type == "cpu"
    made = cheapest(rows, lengths, _PASS_COST, tokens) if on_processor else fewest(rows, lengths, tokens)
    waiting = made[::-1]
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


def fewest(rows: Sequence[int], lengths: Sequence[int], tokens: int | None) -> list[list[int]]:
    """As few passes as `tokens` allows, and of these the least padded; see [`cheapest`]."""
    return cheapest(rows, lengths, sum(lengths) * len(rows), tokens)


def cheapest(rows: Sequence[int], lengths: Sequence[int], cost: int, tokens: int | None = None) -> list[list[int]]:
    """The cheapest partition of rows into passes, from the shortest rows to the longest.

    Args:
        rows: What to part.
        lengths: The tokens of each.
        cost: Of a pass, in tokens, beside its rows padded to the longest of them.
        tokens: At most so many padded tokens a pass, but always one row.
    """
    order = sorted(range(len(rows)), key=lambda place: lengths[place])
    # The least that the first rows of the order cost, and where the last of their passes begins.
    least: list[tuple[int, int]] = [(0, 0)]
    for stop in range(1, len(order) + 1):
        width = lengths[order[stop - 1]]
        first = 0 if tokens is None else min(stop - 1, max(0, stop - tokens // width))
        least.append(min((least[begin][0] + width * (stop - begin) + cost, begin) for begin in range(first, stop)))
    made: list[list[int]] = []
    stop = len(order)
    while stop:
        begin = least[stop][1]
        made.append([rows[place] for place in order[begin:stop]])
        stop = begin
    return made[::-1]
