"""How many rows go through the model at once: all of a step where memory holds them, fewer where it does not.

What a step is made of is a sum over rows, so that it may be taken in parts: gradients add up in the parameters.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, Generic, TypeVar

from .at_once import at_once
from .halving import in_turn, parts
from .sharing import is_run_together
from .workers import Worker, gather

Found = TypeVar("Found")


@dataclass(frozen=True)
class Term(Generic[Found]):
    """Some rows of a step, of one kind.

    Attributes:
        rows: What to run.
        lengths: The tokens of each, without those that all rows share.
        run: Runs some of the rows on a worker and adds their gradient to its parameters'.
    """

    rows: Sequence[int]
    lengths: Sequence[int]
    run: Callable[[Worker, Sequence[int]], Found]


def in_passes(
    terms: Sequence[Term[Any]], workers: Sequence[Worker], *, tokens: int | None
) -> list[list[tuple[list[int], Any]]]:
    """Runs the terms of a step forward and backward, each in as few passes as fit and give each worker as many; the
    gradient of their sum is in the first worker's parameters then.

    Terms do not share passes: their rows differ in length, and together they would be padded. A pass that runs out of
    memory is taken back and its rows are run in two halves, as often as need be; where processes run a sharded model's
    passes together, the others would not know.

    Args:
        terms: What to run.
        workers: Who run them, at the same time; each runs what all rows share once.
        tokens: At most so many tokens at once, padding included, but always one row a worker.

    Returns:
        For each term the rows of each pass and what `run` returned for them.

    Raises:
        ModelError: If a pass of several rows that processes run together runs out of memory.
    """
    # Within a pass weights are whole.
    together = is_run_together(workers[0].runner.model)
    dealt = [shares(term.rows, term.lengths, tokens, len(workers)) for term in terms]
    each = [[(term, own[place]) for term, own in enumerate(dealt)] for place in range(len(workers))]

    def work(worker: Worker, own: Sequence[tuple[int, list[list[int]]]]) -> list[tuple[int, tuple[list[int], Any]]]:
        with worker.runner.prefix_once() as begun:
            gathering = [*worker.parameters, *(begun.leaves if begun else [])]
            return [
                (term, found)
                for term, waiting in own
                for found in in_turn(waiting, partial(terms[term].run, worker), together=together, gathering=gathering)
            ]

    busy = [(worker, own) for worker, own in zip(workers, each, strict=True) if any(waiting for _, waiting in own)]
    found = [*chain.from_iterable(at_once([partial(work, worker, own) for worker, own in busy]))]
    gather(workers)
    return [[passed for place, passed in found if place == term] for term in range(len(terms))]


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
