"""Replicas of a model, to run at the same time on one processor, each in a thread of its own (`at_once`).

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
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from .sharing import processes

Thing = TypeVar("Thing")

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
    that stand on its modules, with hooks on all modules there are, with adapters that are merged (they unmerge
    themselves in a forward pass), under autocast and torch's other modes, which are one thread's, and where it holds
    what Python cannot copy. So it is within [`without_replicas`], and where processes share rows, which must all cut
    them alike.

    Args:
        model: A causal language model, bare or with adapters.
        most: At most so many.
    """
    made = [Replica(model)]
    for _ in range(replicas_of(model, most) - 1):
        twins: dict[int, Any] = {id(buffer): buffer for buffer in model.buffers()}
        for parameter in model.parameters():
            trained = parameter.requires_grad
            twins[id(parameter)] = nn.Parameter(parameter.data) if trained else parameter
        try:
            made.append(Replica(copy.deepcopy(model, twins), twins))
        except Exception:  # of whatever a model holds, each kind says in its own way that it is not copied
            return [Replica(model)]
    return made


def replicas_of(model: Any, most: int | None = None) -> int:
    """How many [`replicate`] makes, where Python can copy what the model holds, without making them."""
    count = _count(torch.get_num_threads(), _MOST if most is None else min(most, _MOST))
    alone = count <= 1 or is_alone() or processes() > 1 or in_a_mode()
    return 1 if alone or not all(map(_is_replicable, model.modules())) else count


def _count(threads: int, most: int) -> int:
    """How many replicas leave the fewest threads without work; of as good numbers the largest."""
    return max(range(2, min(threads, most) + 1), key=lambda n: (n * (threads // n), n), default=1)


@contextmanager
def without_replicas() -> Iterator[None]:
    """Lets models run as one in a block: all of torch's threads share every operation.

    Elsewhere up to four threads on a processor each run rows of their own through modules of their own, over the same
    weights, in training, measuring and answering. As one, less is in memory at a time; on a model whose products are
    most of its time that may be the faster way, too.

    ```py
    with ps.without_replicas():
        report = ps.edit(model, tokenizer, fact, out="out", recipe=ps.low_memory())
    ```
    """
    token = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(token)


def is_alone() -> bool:
    """Whether this is such a block."""
    return _ALONE.get()


def in_a_mode() -> bool:
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
        _has_any_global_hook()
        or module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in vars(module)
        or any(type(t) not in (nn.Parameter, Tensor) or t.device.type != "cpu" or t._backward_hooks for t in tensors)
    )
