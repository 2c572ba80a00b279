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
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from .sharing import processes

Item = TypeVar("Item")
Thing = TypeVar("Thing")
Value = TypeVar("Value")
Worker = TypeVar("Worker")

_ALONE: ContextVar[bool] = ContextVar("alone", default=False)

# How many blocks share out torch's threads now, and how many there were before.
_LOCK = threading.Lock()
_BLOCKS, _THREADS = 0, 1

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
    that stand on its modules, with adapters that are merged (they unmerge themselves in a forward pass), under
    autocast and torch's other modes, which are one thread's, and where it holds what Python cannot copy. So it is
    within [`alone`], and where processes share rows, which must all cut them alike.

    Args:
        model: A causal language model, bare or with adapters.
        most: At most so many.
    """
    count = _count(torch.get_num_threads(), _MOST if most is None else min(most, _MOST))
    if count <= 1 or is_alone() or processes() > 1 or _in_a_mode() or not all(map(_is_replicable, model.modules())):
        return [Replica(model)]
    made = [Replica(model)]
    for _ in range(count - 1):
        twins: dict[int, Any] = {id(buffer): buffer for buffer in model.buffers()}
        for parameter in model.parameters():
            trained = parameter.requires_grad
            twins[id(parameter)] = nn.Parameter(parameter.data) if trained else parameter
        try:
            made.append(Replica(copy.deepcopy(model, twins), twins))
        except Exception:  # of whatever a model holds, each kind says in its own way that it is not copied
            return [Replica(model)]
    return made


def _count(threads: int, most: int) -> int:
    """How many replicas leave the fewest threads without work; of as good numbers the largest."""
    return max(range(1 if most < 2 else 2, min(threads, most) + 1), key=lambda n: (n * (threads // n), n), default=1)


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


def is_alone() -> bool:
    """Whether this is such a block."""
    return _ALONE.get()


def _in_a_mode() -> bool:
    """Whether something watches or changes the operations of this thread, and so not of others."""
    return bool(
        torch.is_autocast_enabled("cpu") or _get_current_dispatch_mode_stack() or _get_current_function_mode_stack()
    )


def _is_replicable(module: nn.Module) -> bool:
    return is_plain(module) and not (isinstance(module, BaseTunerLayer) and module.merged)


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
        or any(type(t) not in (nn.Parameter, Tensor) or t.device.type != "cpu" or t._backward_hooks for t in tensors)
    )


def deal(
    workers: Sequence[Worker], items: Sequence[Item], run: Callable[[Worker, Iterator[Item]], Value]
) -> list[Value]:
    """Runs items at the same time: of n workers the first takes the first item, the one after n more, and so on.

    Args:
        workers: Such as replicas.
        items: What to run.
        run: Runs some of the items on one of them. When it fails on one, the others get no further items.

    Returns:
        What `run` returned for each worker that got items.

    Raises:
        Exception: As [`at_once`].
    """
    failed = threading.Event()

    def until_one_fails(own: Sequence[Item]) -> Iterator[Item]:
        for item in own:
            if failed.is_set():
                return
            yield item

    def work(worker: Worker, own: Sequence[Item]) -> Value:
        try:
            return run(worker, until_one_fails(own))
        except BaseException:
            failed.set()
            raise

    each = [items[i :: len(workers)] for i in range(len(workers))]
    return at_once([partial(work, worker, own) for worker, own in zip(workers, each, strict=True) if own])


def at_once(functions: Sequence[Callable[[], Value]]) -> list[Value]:
    """What some functions return that run at the same time; torch's threads are shared out among them.

    Whether gradients are recorded and denormals flushed is as in the calling thread, which runs the first of them. How
    many threads torch has is the whole process's: others that begin to use it meanwhile have fewer.

    Raises:
        Exception: What the first of them raises that fails, when all of them have ended.
    """
    if len(functions) <= 1:
        return [function() for function in functions]
    flushed = bool(torch.tensor([1e-39], dtype=torch.float32).mul(0.5) == 0)
    inference, gradients = torch.is_inference_mode_enabled(), torch.is_grad_enabled()

    def beside(function: Callable[[], Value]) -> Value:
        torch.set_flush_denormal(flushed)
        with torch.inference_mode(inference), torch.set_grad_enabled(gradients):
            return function()

    with _shared_out(len(functions)), ThreadPoolExecutor(len(functions) - 1) as pool:
        others = [pool.submit(beside, function) for function in functions[1:]]
        first = functions[0]()
    return [first, *(other.result() for other in others)]


@contextmanager
def _shared_out(parts: int) -> Iterator[None]:
    """Leaves each of some threads a part of torch's; what was set is set again when the last such block ends."""
    global _BLOCKS, _THREADS
    with _LOCK:
        if not _BLOCKS:
            _THREADS = torch.get_num_threads()
        _BLOCKS += 1
        # New threads begin with what is set when they do.
        torch.set_num_threads(max(1, _THREADS // parts))
    try:
        yield
    finally:
        with _LOCK:
            _BLOCKS -= 1
            if not _BLOCKS:
                torch.set_num_threads(_THREADS)
