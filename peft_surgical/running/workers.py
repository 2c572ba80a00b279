"""Who runs a step's rows: the model behind a runner, and replicas of it with gradients of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .replicas import Replica, replicate
from .suffix import SuffixRunner

# Of a pass with fewer tokens most of the time is its own cost.
_LEAST = 256

# A processor is nearly as fast with a few hundred tokens at a time as with thousands, which take several times the
# memory. Products of as few are not worth sharing: threads that share them get twice as many. A token takes twice the
# memory in float32, in which fewer are as fast.
_OWN, _OWN_IN_FLOAT32 = 320, 224


@dataclass(frozen=True)
class Worker:
    """Modules that run rows, and what gets a gradient there.

    Attributes:
        runner: Runs rows through its modules.
        parameters: What gets a gradient from it.
        replica: Its modules.
    """

    runner: SuffixRunner
    parameters: list[Tensor]
    replica: Replica


def workers_of(runner: SuffixRunner, parameters: Sequence[Tensor], tokens: int | None) -> list[Worker]:
    """A runner and its parameters, and what stands for them in replicas of its model, as that is now.

    Args:
        runner: Runs the rows.
        parameters: What gets a gradient.
        tokens: At most so many tokens go through the model at once; the fewer, the fewer workers share them. Each runs
            what all rows share.
    """
    least = max(_LEAST, 2 * len(runner.prefix))
    replicas = replicate(runner.model, None if tokens is None else tokens // least)
    return [
        Worker(runner.on(replica), [replica.twin(parameter) for parameter in parameters], replica)
        for replica in replicas
    ]


def tokens_of(given: int | None, workers: Sequence[Worker]) -> int | None:
    """How many tokens go through a model at once, all workers together, at most; None for as many as there are.

    Args:
        given: What a recipe says. Where that is None, it is 320 for each worker on a processor, 224 in float32, twice
            that for one by itself, and no limit elsewhere.
        workers: Who run them.
    """
    runner = workers[0].runner
    if given is None and runner.device.type == "cpu":
        return (_OWN if runner.model.dtype.itemsize < 4 else _OWN_IN_FLOAT32) * max(2, len(workers))
    return given


@torch.no_grad()
def gather(workers: Sequence[Worker]) -> None:
    """Adds the gradients of all workers to the first's, in their order."""
    first, *others = workers
    for other in others:
        for parameter, own in zip(first.parameters, other.parameters, strict=True):
            if own is not parameter and own.grad is not None:
                parameter.grad = own.grad if parameter.grad is None else parameter.grad.add_(own.grad)
                own.grad = None
