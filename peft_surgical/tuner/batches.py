"""Batches in which every row has an adapter of its own.

    >>> model(input_ids, adapter_names=["unlearn", "__base__", "edit"])

`__base__` stands for the unedited model, which makes base and edited answers one batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn

from ..errors import AdapterError
from .layer import BASE, SurgicalIA3Layer


@contextmanager
def rows_of(layers: Iterable[nn.Module], adapter_names: Sequence[str], known: Iterable[str]) -> Iterator[None]:
    """While the block runs, row `i` of every batch is scaled by `adapter_names[i]` alone.

    Args:
        layers: The surgical layers of a model.
        adapter_names: One adapter, or `__base__`, per row.
        known: The names of the model's adapters.

    Raises:
        AdapterError: If a name is not known, or the model is merged.
    """
    known, layers = [BASE, *known], list(layers)
    if unknown := [name for name in adapter_names if name not in known]:
        raise AdapterError(f"there is no adapter named {unknown[0]!r}; a row can have one of {', '.join(known)}.")
    if any(isinstance(layer, SurgicalIA3Layer) and layer.merged for layer in layers):
        raise AdapterError("adapter_names needs adapters that are not merged; call unmerge_adapter() first.")
    hook = partial(_with_names, list(adapter_names))
    handles = [layer.register_forward_pre_hook(hook, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _with_names(names: list[str], _: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return args, {**kwargs, "adapter_names": names}
