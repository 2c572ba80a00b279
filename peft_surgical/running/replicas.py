"""Replicas of a model that run at the same time on one processor, each in a thread of its own.

Threads that share every operation share the matrix products well, and little of what stands between them: norms, casts
and products of activations are most of a small model's time where products are fast. So rows are shared out instead.
A replica has modules of its own, and so hooks and forwards of its own, and the model's weights; parameters that train
have the same numbers and a gradient of their own.

```py
>>> first, second = replicate(model)
>>> at_once([partial(run, first, rows[::2]), partial(run, second, rows[1::2])])
```
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

Item = TypeVar("Item")
Thing = TypeVar("Thing")
Value = TypeVar("Value")
Worker = TypeVar("Worker")

_ALONE: ContextVar[bool] = ContextVar("alone", default=False)

# Python runs one thread at a time, so many threads wait for it; more cores than this share a replica's operations.
_MOST = 4


@dataclass(frozen=True)
class Replica:
    """A model, or modules of its own over the same weights.

    Attributes:
        model: The modules.
    """

    model: Any
    _twins: dict[int, Any] = field(default_factory=dict, repr=False)

    def twin(self, thing: Thing) -> Thing:
        """What stands here for a module or a parameter of the model; what the model does not have stands for
        itself."""
        found: Thing = self._twins.get(id(thing), thing)
        return found


def replicate(model: Any, most: int | None = None) -> list[Replica]:
    """The model, and replicas of it as it is now: as many in all as gain something.

    That is one for each of torch's threads, four at most. It is the model alone where modules of their own would not
    do the same: off the processor, with weights in a format of their own (quantized, sharded), with hooks or forwards
    that stand on its modules, under autocast and torch's other modes, which are one thread's, within [`alone`], and
    where it holds what Python cannot copy.

    Args:
        model: A causal language model, bare or with adapters.
        most: At most so many.
    """
    count = min(torch.get_num_threads(), _MOST, _MOST if most is None else most)
    if count <= 1 or _ALONE.get() or _in_a_mode() or not all(map(is_plain, model.modules())):
        return [Replica(model)]
    made = [Replica(model)]
    for _ in range(count - 1):
        twins: dict[int, Any] = {id(buffer): buffer for buffer in model.buffers()}
        for parameter in model.parameters():
            trained = parameter.requires_grad
            twins[id(parameter)] = nn.Parameter(parameter.data) if trained else parameter
        try:
            made.append(Replica(copy.deepcopy(model, twins), twins))
        except (TypeError, RuntimeError):
            return [Replica(model)]
    return made


@contextmanager
def alone() -> Iterator[None]:
    """Lets models run without replicas in a block: all threads share every operation.

    On a model whose products are most of its time that may be the faster way.
    """
    token = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(token)


def _in_a_mode() -> bool:
    """Whether something watches or changes the operations of this thread, and so not of others."""
    return bool(
        torch.is_autocast_enabled("cpu") or _get_current_dispatch_mode_stack() or _get_current_function_mode_stack()
    )


def is_plain(module: nn.Module) -> bool:
    """Whether a module is on the processor and does what its class says: no hooks, no forward but its class's, no
    parameters in a format of their own."""
    tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    return not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in vars(module)
        or any(type(tensor) not in (nn.Parameter, Tensor) or tensor.device.type != "cpu" for tensor in tensors)
    )


def deal(
    workers: Sequence[Worker], items: Sequence[Item], run: Callable[[Worker, Sequence[Item]], Value]
) -> list[Value]:
    """Runs items at the same time, each worker every so-manyeth of them; returns what it returned for each worker that
    got some.

    Args:
        workers: Such as replicas.
        items: What to run.
        run: Runs some of the items on one of them.
    """
    each = [items[i :: len(workers)] for i in range(len(workers))]
    return at_once([partial(run, worker, own) for worker, own in zip(workers, each, strict=True) if own])


def at_once(functions: Sequence[Callable[[], Value]]) -> list[Value]:
    """What some functions return that run at the same time; torch's threads are shared out among them.

    Whether gradients are recorded and denormals flushed is as in the calling thread, which runs the first of them.

    Raises:
        Exception: What the first of them raises that fails, when all of them have ended.
    """
    if len(functions) <= 1:
        return [function() for function in functions]
    threads = torch.get_num_threads()
    flushed = bool(torch.tensor([1e-39]).mul(0.5) == 0)
    inference, gradients = torch.is_inference_mode_enabled(), torch.is_grad_enabled()

    def beside(function: Callable[[], Value]) -> Value:
        torch.set_flush_denormal(flushed)
        with torch.inference_mode(inference), torch.set_grad_enabled(gradients):
            return function()

    # New threads begin with what is set when they do.
    torch.set_num_threads(max(1, threads // len(functions)))
    try:
        with ThreadPoolExecutor(len(functions) - 1) as pool:
            others = [pool.submit(beside, function) for function in functions[1:]]
            first = functions[0]()
        return [first, *(other.result() for other in others)]
    finally:
        torch.set_num_threads(threads)
