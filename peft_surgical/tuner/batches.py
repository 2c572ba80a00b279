"""Batches in which every row has an adapter of its own.

    >>> model(input_ids, adapter_names=["unlearn", "__base__", "edit"])

`__base__` stands for the unedited model, which makes base and edited answers one batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from ..errors import AdapterError
from .layer import BASE, SurgicalIA3Layer


@contextmanager
def rows_of(tuner: Any, adapter_names: Sequence[str]) -> Iterator[None]:
    """While the block runs, row `i` of every batch is scaled by `adapter_names[i]` alone, and meets the modules that
    this adapter saves whole.

    Args:
        tuner: The [`SurgicalIA3Model`] that holds the model with its surgical layers.
        adapter_names: One adapter, or `__base__`, per row.

    Raises:
        AdapterError: If a name is not known, or the model is merged; and in the block, if a batch that the tuner is
            called with has another number of rows.
    """
    names, known = list(adapter_names), [BASE, *tuner.peft_config]
    if unknown := [name for name in names if name not in known]:
        raise AdapterError(f"there is no adapter named {unknown[0]!r}; a row can have one of {', '.join(known)}.")
    layers = [module for module in tuner.modules() if isinstance(module, SurgicalIA3Layer)]
    if any(layer.merged for layer in layers):
        raise AdapterError("adapter_names needs adapters that are not merged; call unmerge_adapter() first.")
    wrappers = {name: module for name, module in tuner.named_modules() if isinstance(module, AuxiliaryTrainingWrapper)}
    hooks: list[tuple[nn.Module, Any]] = [(tuner, partial(_checked, names))]
    hooks += [(layer, partial(_with_names, names)) for layer in layers]
    hooks += [(wrapper, partial(_with_own_names, names, name)) for name, wrapper in wrappers.items()]
    with ExitStack() as hooked:
        for module, hook in hooks:
            hooked.enter_context(module.register_forward_pre_hook(hook, with_kwargs=True))
        yield


def check_rows(names: Sequence[str], model: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Refuses names that are not as many as the rows of what a model is called with.

    Args:
        names: One per row.
        model: What is called.
        args: Its positional arguments; the first is its input.
        kwargs: Its named arguments.

    Raises:
        AdapterError: If there are no names, or an input is among them and has another number of rows.
    """
    if not names:
        raise AdapterError("adapter_names is empty; give one name for each row of the batch.")
    inputs = (getattr(model, "main_input_name", "input_ids"), "inputs", "inputs_embeds")
    given = [value for value in (*args[:1], *(kwargs.get(name) for name in inputs)) if isinstance(value, Tensor)]
    if given and len(given[0]) != len(names):
        raise AdapterError(f"adapter_names has {len(names)} names for a batch of {len(given[0])} rows.")


def _checked(names: list[str], tuner: Any, args: Any, kwargs: dict[str, Any]) -> None:
    # A generating model does not come this way: its batches may hold each row once per beam.
    check_rows(names, tuner.model, args, kwargs)


def _with_names(names: list[str], _: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return args, {**kwargs, "adapter_names": names}


def _with_own_names(
    names: list[str], called: str, wrapper: Any, args: Any, kwargs: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    # PEFT's wrapper has no module for an adapter that saves none, and wants one name for each row that generation
    # made.
    own = [name if name in wrapper._adapters else BASE for name in names]
    if own == [next(iter(wrapper.active_adapters), BASE)] * len(own):
        return args, kwargs
    copies, rest = divmod(len(args[0]), len(names)) if args else (0, 0)
    if rest or not copies:
        raise AdapterError(f"the rows of {called}, which adapters save whole, cannot be told apart in one batch.")
    return args, {**kwargs, "adapter_names": [name for name in own for _ in range(copies)]}
