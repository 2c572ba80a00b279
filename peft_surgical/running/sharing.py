"""One run in several processes: each does its share of the rows, and all of them hold the same result.

```py
accelerate.PartialState()  # or torch.distributed.init_process_group(...), as torchrun and accelerate launch expect
with shared_work():
    report = edit(model, tokenizer, fact, out="out")  # every process has its own copy of the model
```

Nothing is shared outside of such a block, so that a script in which one process of many calls this package goes on
working. What is shared is cut as one process that runs alone (`replicas`) would cut it, and random numbers are drawn
for all rows by all processes: results are those of one process, up to the order in which sums are taken.

A model that no single device holds can be spread over the processes instead ([`shard`]); they then run all rows
together.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, distributed

from ..architectures import decoder_layers
from ..errors import AdapterError, ModelError, said, tell
from ..wrapped import check_unwrapped, is_spread

Item = TypeVar("Item")
Value = TypeVar("Value")

# Whether files are written by the first process alone, and whether each process runs its own rows.
_TOGETHER: ContextVar[bool] = ContextVar("together", default=False)
_ROWS: ContextVar[bool] = ContextVar("rows", default=False)


@contextmanager
def shared_work(*, rows: bool = True) -> Iterator[None]:
    """Lets the processes of torch's default group do the work of a block together; all of them must enter it.

    They must call the same things with the same arguments; others are refused where they are seen. Stages, evaluation
    and generated answers are shared, each process holding its own copy of the model. [`edit`] and [`edit_keyed`] let
    the first process alone write files; what else is to be saved is for one process to save. Without a process group
    the block runs as it would by itself.

    Args:
        rows: Whether each process runs rows of its own; false for a model that is spread over the processes.
    """
    together = distributed.is_available() and distributed.is_initialized()
    tokens = _TOGETHER.set(together), _ROWS.set(together and rows)
    try:
        yield
        if together:
            # Who ended first would close connections that others still read from.
            distributed.barrier()
    finally:
        _TOGETHER.reset(tokens[0])
        _ROWS.reset(tokens[1])


def shard(model: Any) -> None:
    """Spreads a frozen model over the processes of torch's default group with FSDP2, decoder layer by decoder layer.

    Each process keeps its part of every weight, and gathers a layer's while it runs. Adapters that are put on
    afterwards stay whole.

    Args:
        model: A causal language model without adapters, in the memory of the processor; changed in place.

    Raises:
        ModelError: If it is no model, or one that data parallelism or TransformerLens wraps, there is no such group,
            or the model is sharded already.
        AdapterError: If it has adapters, or is the PEFT model that held some.
        ArchitectureError: If it is not known where its decoder layers are.
    """
    check_unwrapped(model)
    if not (distributed.is_available() and distributed.is_initialized()):
        raise ModelError(
            "a model is sharded over the processes of torch's default group, and there is none: start several with"
            " torchrun or accelerate launch, and call torch.distributed.init_process_group or accelerate.PartialState."
        )
    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise AdapterError("the model has adapters, which stay whole; shard it before they are put on.")
    if isinstance(model, PeftModel):
        raise AdapterError(
            "the model is a PEFT model; shard the bare one, as peft_surgical.unload(model) returns it, before adapters"
            " are put on."
        )
    if is_sharded(model):
        raise ModelError("the model is sharded already.")
    layers = decoder_layers(model)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    # Which torch is built for may not be there.
    found = torch.accelerator.current_accelerator(check_available=True)
    kind = "cpu" if found is None or distributed.get_backend() == "gloo" else found.type
    mesh = init_device_mesh(kind, (distributed.get_world_size(),))
    model.requires_grad_(False)
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def is_sharded(model: Any) -> bool:
    """Whether a model's weights are spread over processes."""
    return any(map(is_spread, model.parameters()))


def is_run_together(model: Any) -> bool:
    """Whether several processes run every pass of a model together, each with a part of its weights."""
    return is_sharded(model) and distributed.get_world_size() > 1


def check_shareable(model: Any) -> None:
    """Refuses to share rows of a model that its processes can only run together: they would wait for each other.

    Raises:
        ModelError: If each process is to run rows of its own and the model is spread over them.
    """
    if processes() > 1 and is_sharded(model):
        raise ModelError(
            "the model is sharded over the processes, so they must run the same rows: use shared_work(rows=False)."
        )


def processes() -> int:
    """How many processes share rows; 1 outside of [`shared_work`]."""
    return distributed.get_world_size() if _ROWS.get() else 1


def is_several() -> bool:
    """Whether several processes are in [`shared_work`]."""
    return _TOGETHER.get() and distributed.get_world_size() > 1


def is_main() -> bool:
    """Whether this process is the one that writes files and shows progress."""
    return not _TOGETHER.get() or distributed.get_rank() == 0


def share(items: Sequence[Item]) -> list[Item]:
    """This process's part of some items; every item is in one process's."""
    if processes() == 1:
        return list(items)
    return list(items[distributed.get_rank() :: distributed.get_world_size()])


@torch.no_grad()
def add_up(tensors: Sequence[Tensor]) -> None:
    """Puts into each tensor the sum of what the processes have in it."""
    if processes() > 1:
        for tensor in tensors:
            distributed.all_reduce(tensor)


def by_each(function: Callable[[], Value]) -> list[Value]:
    """Calls a function that does this process's share of the rows; returns what it has returned in each, in order.

    Raises:
        Exception: In all processes, what it has raised in the first one where it did, so that none of them waits for
            one that has gone on. The first tells of it.
    """
    if processes() == 1:
        return [function()]
    own: Exception | None = None
    value = None
    try:
        value = function()
    except Exception as error:
        own = error
    found = _gathered((value, None if own is None else _portable(own)), own)
    if own is not None and None in found:
        raise own
    failed = next((rank for rank, (_, error) in enumerate(found) if error is not None), None)
    if failed is None:
        return [value for value, _ in found]
    if own is not None and failed == distributed.get_rank():
        tell(own, by_first=not is_main())
        raise own
    told: Exception = found[failed][1]
    tell(told, by_first=not is_main())
    raise told from own


def _gathered(own: Any, failed: Exception | None = None) -> list[Any]:
    """What each process has, in order; None of those that this one, which has failed itself, can hear no more."""
    every: list[Any] = [None] * distributed.get_world_size()
    try:
        distributed.all_gather_object(every, own)
    except RuntimeError:
        # Another has ended, which is not what this one has to say.
        if failed is None:
            raise
    return every


def _portable(error: Exception) -> Exception:
    """An error that another process can raise, too."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # a stranger's may hold what cannot be sent, or be made of other arguments than it holds
        return RuntimeError(f"another process failed with {type(error).__name__}: {said(error)}")
    return error


def merged(function: Callable[[], dict[Item, Value]]) -> dict[Item, Value]:
    """The entries of what a function returns in all processes, which it does as [`by_each`] says."""
    return {key: value for part in by_each(function) for key, value in part.items()}


def from_all(own: Value) -> list[Value]:
    """What each process of [`shared_work`] has, in order; that of this one alone outside of it."""
    if not _TOGETHER.get():
        return [own]
    return _gathered(own)


def by_all(function: Callable[[], Value]) -> Value:
    """Calls a function in all processes. An error that all of them raise alike is one that the first tells of."""
    if not _TOGETHER.get():
        return function()
    own: Exception | None = None
    try:
        value = function()
    except Exception as error:
        own = error
    every = _gathered(None if own is None else f"{type(own).__name__}: {said(own)}", own)
    if own is None:
        return value
    tell(own, by_first=not is_main() and len(set(every)) == 1)
    raise own


def by_main(function: Callable[[], Value]) -> Value:
    """Calls a function in the first process alone; all of them return what it returns, or raise what it raises, of
    which the first tells."""
    if not _TOGETHER.get():
        return function()
    told: list[Any] = [None, None]
    own: Exception | None = None
    if is_main():
        try:
            told[0] = function()
        except Exception as error:
            own, told[1] = error, _portable(error)
    distributed.broadcast_object_list(told, src=0)
    if (failed := own or told[1]) is not None:
        tell(failed, by_first=not is_main())
        raise failed
    value: Value = told[0]
    return value
