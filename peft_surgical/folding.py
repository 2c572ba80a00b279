"""What adapters make of a model's weights: scales multiply them, LoRA adds to them, in the order of training.

Neighbours of one kind are one step: scales are multiplied and what is added is added up before a weight is touched.
Whatever the steps, a weight is rounded to its dtype once, at the end.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from .adapters.algebra import product
from .adapters.edits import Edit, ModuleScale, check_same_base
from .adapters.fitting import check_same_weights
from .adapters.low_rank import LowRank, total
from .dtypes import dtype_name
from .errors import AdapterError, ModelError
from .running.sharing import is_sharded
from .tuner.fold import Rounding, check_foldable, fold, is_wrapper, scaled_tensors
from .tuner.kinds import ADAPTED_ATTENTION, has_adapters
from .tuner.mergeable import Place, places_of, shared_with
from .tuner.targets import check_target, find_module
from .wrapped import check_module, check_uncompiled, check_unwrapped


def steps_of(adapters: Sequence[Edit | LowRank]) -> list[Edit | LowRank]:
    """What folding some adapters, in their order, comes to: the product of scales, or the sum of what LoRA adapters
    add, and where the kinds change one such step after the other.

    Raises:
        AdapterError: If there are none, they were made for different base models, or those of one kind do not go
            together.
    """
    if not adapters:
        raise AdapterError("there is nothing to multiply; give at least one adapter.")
    check_same_base(adapters)
    steps: list[Edit | LowRank] = []
    for _, run in groupby(adapters, key=lambda adapter: isinstance(adapter, LowRank)):
        alike = [*run]
        scales = [adapter for adapter in alike if isinstance(adapter, Edit)]
        steps.append(product(scales) if scales else total([a for a in alike if isinstance(a, LowRank)]))
    return steps


def folded_apart(
    model: nn.Module, steps: Sequence[Edit | LowRank], state: Mapping[str, Tensor], dtype: torch.dtype | None
) -> Iterator[dict[str, tuple[Tensor, Rounding]]]:
    """The new tensors of the modules that adapters act on, by their key in the state, and what rounding kept: one
    module at a time, whose weights may be rewritten before the next one's are asked for.

    Args:
        model: The model; not changed.
        steps: From [`steps_of`].
        state: Its `state_dict()`.
        dtype: Of what is returned; each tensor's own when None.

    Raises:
        AdapterError: If a weight cannot be rewritten, is tied to another one, has another shape than the adapter
            takes it to have, or does not fit into its dtype, or the file of an adapter holds another output head than
            the model has.
        SelectionError: If the model does not have a module of an adapter, or has it in another width.
    """
    places = places_of(state)
    for step in steps:
        if isinstance(step, Edit):
            check_same_weights(step.name, step.base_weights, state, "this model")
    for name in modules_of(steps):
        found = _folded(model, [step for step in steps if name in _acted_on(step)], name, state, places, dtype)
        for key, (values, _) in found.items():
            check_finite(key, values, state[key])
        yield found


def modules_of(steps: Iterable[Edit | LowRank]) -> list[str]:
    """The names of all modules that some steps act on, each once."""
    return [*dict.fromkeys(name for step in steps for name in _acted_on(step))]


def _acted_on(step: Edit | LowRank) -> Mapping[str, Any]:
    return step.modules if isinstance(step, Edit) else step.factors


def _folded(
    model: nn.Module,
    steps: Sequence[Edit | LowRank],
    name: str,
    state: Mapping[str, Tensor],
    places: Mapping[int, Sequence[Place]],
    dtype: torch.dtype | None,
) -> dict[str, tuple[Tensor, Rounding]]:
    """The new tensors of one module, by their key in the state, after steps that act on it."""
    if len(steps) == 1:
        return _after(model, steps[0], name, state, state, places, dtype)
    own = {key: state[key] for key in tensors_of(name) if key in state}
    # Unrounded until the last: what is half way is no weight of any model.
    now, touched = {key: _wide(value) for key, value in own.items()}, dict[str, None]()
    for step in steps:
        new = _after(model, step, name, now, state, places, None)
        now |= {key: values for key, (values, _) in new.items()}
        touched |= dict.fromkeys(new)
    return {key: _rounded(now[key], state[key], dtype) for key in touched}


def tensors_of(name: str) -> tuple[str, str]:
    """What may be rewritten of a module, by its keys in a state."""
    return f"{name}.weight", f"{name}.bias"


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32)) if tensor.is_floating_point() else tensor


def _rounded(exact: Tensor, old: Tensor, dtype: torch.dtype | None) -> tuple[Tensor, Rounding]:
    new = exact.to(dtype or old.dtype)
    return new, Rounding.of(old, exact, new)


def _after(
    model: nn.Module,
    step: Edit | LowRank,
    name: str,
    now: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    places: Mapping[int, Sequence[Place]],
    dtype: torch.dtype | None,
) -> dict[str, tuple[Tensor, Rounding]]:
    """The tensors of a module that a step makes of those there are `now`; that none is tied is told by those of the
    model."""
    module = find_module(model, name)
    if isinstance(step, Edit):
        scale = step.modules[name]
        check_target(name, module, scale.coordinates, scale.width)
        check_foldable(module, scale.coordinates.side)
        axes = scaled_tensors(module, scale.coordinates.side)
        for part in axes:
            _check_untied(f"{name}.{part}", state, places)
        return {f"{name}.{part}": _scaled(now[f"{name}.{part}"], scale, axis, dtype) for part, axis in axes.items()}
    if isinstance(module, (nn.Linear, Conv1D)):
        check_foldable(module, "input")
    key = f"{name}.weight"
    added, old = step.added(name), now.get(key)
    added = added.T if isinstance(module, Conv1D) else added
    if old is None or old.shape != added.shape:
        there = "no weight" if old is None else f"a weight of shape {tuple(old.shape)}"
        raise AdapterError(f"the adapter adds {tuple(added.shape)} to {name}, and this model has {there} there.")
    _check_untied(key, state, places)
    return {key: _rounded(_wide(old) + added.to(old.device), old, dtype)}


def _check_untied(key: str, state: Mapping[str, Tensor], places: Mapping[int, Sequence[Place]]) -> None:
    if other := shared_with(places, key, state[key]):
        raise AdapterError(f"{key} is tied to another weight, {other}, so an edit of it cannot be merged.")


def _scaled(old: Tensor, scale: ModuleScale, axis: int, dtype: torch.dtype | None) -> tuple[Tensor, Rounding]:
    index = scale.coordinates.index(old.device)
    _, values, rounding = fold(old, index, scale.scale, axis, dtype)
    return old.to(values.dtype, copy=True).index_copy_(axis, index, values), rounding


def check_finite(key: str, new: Tensor, old: Tensor) -> None:
    """Refuses a weight that was finite and is not so any more.

    Raises:
        AdapterError: If it is one.
    """
    if not torch.isfinite(new).all() and torch.isfinite(old).all():
        dtype = dtype_name(new.dtype)
        raise AdapterError(f"the merged {key} does not fit into {dtype}; merge in float32, or edit less.")


def check_rewritable(model: Any, what: str = "merge", to: str = "merge") -> None:
    """Refuses a model of which not every weight is there to be rewritten, or that has adapters on it.

    Args:
        model: The model.
        what: What needs another one, for the message.
        to: What cannot be done with it, as a verb with what belongs to it.

    Raises:
        ModelError: If it is such a model.
    """
    check_module(model)
    check_uncompiled(name for name, _ in model.named_modules())
    check_unwrapped(model)
    if not isinstance(model, PreTrainedModel):
        raise ModelError(
            f"{what} needs the unedited base model, got a {type(model).__name__}; give its unload(), or load the base"
            " anew."
        )
    # Not by transformers' flag alone, which it leaves set where PEFT refused an adapter.
    if hasattr(model, "peft_config") or any(isinstance(module, ADAPTED_ATTENTION) for module in model.modules()):
        raise ModelError(f"the model has adapters on it; {what} needs the unedited base model.")
    # Of an adapter that transformers deleted the layers stay.
    if has_adapters(model):
        raise ModelError("the model has layers of a deleted adapter on it; give what unload(model) returns.")
    if getattr(model, "is_quantized", False):
        raise ModelError(f"the model is quantized; load it in bfloat16 or float32 to {to}.")
    if any(tensor.device.type == "meta" for tensor in (*model.parameters(), *model.buffers())):
        raise ModelError(f"some weights of the model are offloaded; load it whole to {to}.")
    if is_sharded(model):
        raise ModelError(f"the model is sharded over processes; load it whole to {to}.")
    # Of a model that was quantized after it was loaded, transformers does not know it.
    if kind := next((type(parameter).__name__ for parameter in model.parameters() if is_wrapper(parameter)), None):
        raise ModelError(
            f"the model has weights of a kind that cannot be rewritten, {kind}; load it in bfloat16 or float32 to"
            f" {to}."
        )
