"""Rows in passes of so many tokens, one after another, each halved where there is no memory for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor

from ..errors import ModelError

Found = TypeVar("Found")


def in_turn(
    passes: Sequence[list[int]],
    run: Callable[[Sequence[int]], Found],
    *,
    together: bool,
    gathering: Sequence[Tensor] = (),
) -> list[tuple[list[int], Found]]:
    """Runs passes one after another. One that runs out of memory is taken back and its rows are run in two halves, as
    often as need be.

    Args:
        passes: The rows of each.
        run: Runs some rows.
        together: Whether processes run each pass together, so that the others would not know of halves.
        gathering: What gets a gradient.

    Returns:
        The rows of each pass and what `run` returned for them.

    Raises:
        ModelError: If a pass of several rows that processes run together runs out of memory.
    """
    found = []
    waiting = [*passes][::-1]
    while waiting:
        part = waiting.pop()
        before = [None if tensor.grad is None else tensor.grad.clone() for tensor in gathering]
        try:
            found.append((part, run(part)))
            continue
        except RuntimeError as error:
            if len(part) == 1 or not should_reduce_batch_size(error):
                raise
            if together:
                raise ModelError(
                    f"there is not enough memory for a pass of {len(part)} rows, and a model that is sharded over"
                    " processes runs the same passes in all of them; --low-memory (pass_tokens in a recipe, as"
                    " low_memory() sets it) or more processes take less."
                ) from error
        # Outside of the handler, whose traceback holds on to the tensors of the pass.
        for tensor, gradient in zip(gathering, before, strict=True):
            tensor.grad = gradient
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
