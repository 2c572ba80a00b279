"""How many rows go through the model at once: all of a step where memory holds them, fewer where it does not.

What a step is made of is a sum over rows, so that it may be taken in parts: gradients add up in the parameters.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from typing import TypeVar

from .at_once import at_once
from .halving import in_turn, parts
from .sharing import is_run_together
from .workers import Worker, gather

Found = TypeVar("Found")


def in_passes(
    rows: Sequence[int],
    lengths: Sequence[int],
    run: Callable[[Worker, Sequence[int]], Found],
    workers: Sequence[Worker],
    *,
    tokens: int | None,
) -> list[Found]:
    """Runs the rows of a step forward and backward, in as few passes as fit and give each worker as many; the gradient
    of their sum is in the first worker's parameters then.

    A pass that runs out of memory is taken back and its rows are run in two halves, as often as need be; where
    processes run a sharded model's passes together, the others would not know.

    Args:
        rows: What to run.
        lengths: The tokens of each, without those that all rows share.
        run: Runs some of the rows on a worker and adds their gradient to its parameters'.
        workers: Who run them, at the same time; each runs what all rows share once.
        tokens: At most so many tokens at once, padding included, but always one row a worker.

    Returns:
        What `run` returned for each pass.

    Raises:
        ModelError: If a pass of several rows that processes run together runs out of memory.
    """
    # Within a pass weights are whole.
    together = is_run_together(workers[0].runner.model)

    def work(worker: Worker, own: Sequence[list[int]]) -> list[Found]:
        with worker.runner.prefix_once() as begun:
            gathering = [*worker.parameters, *(begun.leaves if begun else [])]
            return [found for _, found in in_turn(own, partial(run, worker), together=together, gathering=gathering)]

    dealt = zip(workers, shares(rows, lengths, tokens, len(workers)), strict=True)
    found = at_once([partial(work, worker, own) for worker, own in dealt if own])
    gather(workers)
    return [*chain.from_iterable(found)]


def shares(rows: Sequence[int], lengths: Sequence[int], tokens: int | None, workers: int) -> list[list[list[int]]]:
    """For each of some workers the passes that it takes, of about as many tokens; the first ones may get one more.

    Args:
        rows: What to part.
        lengths: The tokens of each.
        tokens: As for [`in_passes`].
        workers: How many there are.
    """
    if workers == 1:
        return [parts(rows, lengths, tokens)]
    most = max(lengths, default=1) * len(rows)
    fewest = len(parts(rows, lengths, most if tokens is None else max(1, tokens // workers)))
    wanted = -(-fewest // workers) * workers
    # Fewer tokens a pass never make fewer passes.
    least = bisect_left(range(1, most + 1), -wanted, key=lambda tokens: -len(parts(rows, lengths, tokens)))
    made = parts(rows, lengths, least + 1)
    return [made[worker::workers] for worker in range(workers)]
