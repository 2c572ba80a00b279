"""The states that one model with adapters can be in: the base, or just these adapters. No weights are copied
but those that adapters are merged into.

```py
>>> edited = adapter_state(peft_model, ["unlearn", "learn"])
>>> with edited():
...     peft_model(ids)
```
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.ia3 import IA3Layer
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor

from ..errors import AdapterError, first_line
from ..running.modes import prompts_act
from ..tuner.kinds import ADAPTED_ATTENTION, OF_ADAPTERS
from ..tuner.names import check_known
from ..tuner.unchanged import base_of, trainable_kept
from ..wrapped import check_module

State = Callable[[], AbstractContextManager[Any]]
"""What brings a model into a state: a function whose context it is in meanwhile, as [`adapter_state`] gives."""

# PEFT adds 1e-8 to the scale that it divides by, which from here on is less than a thousandth of it.
_LEAST_SCALE = 1e-5


def adapter_state(model: Any, adapters: Sequence[str]) -> State:
    """The state of a PEFT model in which just these adapters act, of whatever PEFT method.

    Args:
        model: A `PeftModel`.
        adapters: Names of adapters it holds; none of them act when empty, which is the base.

    Returns:
        A function that gives a context; leaving it restores what acted and what was trainable before.

    Raises:
        ModelError: If it is no model.
        AdapterError: If the model holds no adapter of a name, or some that were put on it by transformers; on
            entering, if they cannot act at once, or if an (IA)³ adapter of PEFT's own is merged into the weights with
            a scale of 0 or nearly, which no division takes out, or any adapter into quantized weights.
    """
    check_module(model)
    held = getattr(model, "peft_config", {})
    if not isinstance(model, PeftModel) and (held or _stands_alone(model)):
        raise AdapterError(
            "the adapters on this model were put there by transformers or by an earlier edit; take them off by"
            " peft_surgical.unload(model), and load what is to act by PeftModel.from_pretrained."
        )
    check_known(adapters, held)
    return lambda: _acting(model, list(adapters))


def _stands_alone(model: Any) -> bool:
    """Whether what acts on a model is known to a PEFT model around it alone: PEFT tells the inside of tuners only."""
    kinds = (AuxiliaryTrainingWrapper, *ADAPTED_ATTENTION)
    return any(isinstance(module, kinds) and _acts(module) for module in model.modules())


def within(outer: State, inner: State) -> State:
    """The state that one function brings a model into, within the state of another."""

    @contextmanager
    def entered() -> Iterator[None]:
        with outer(), inner():
            yield

    return entered


def adapters_act(model: Any) -> bool:
    """Whether a model is not just its base: an adapter is merged into its weights, or acts on or before them."""
    return prompts_act(model) or any(isinstance(module, OF_ADAPTERS) and _acts(module) for module in model.modules())


def _acts(layer: Any) -> bool:
    if isinstance(layer, ADAPTED_ATTENTION):
        return True
    if isinstance(layer, BaseTunerLayer) and layer.merged:
        return True
    return bool(not layer.disable_adapters and set(layer.active_adapters))


@contextmanager
def _acting(model: Any, adapters: list[str]) -> Iterator[None]:
    tuner = getattr(model, "base_model", None)
    if not isinstance(tuner, BaseTuner):
        with _acting_prompt(model, adapters):
            yield
        return
    # Whole modules of an adapter (`modules_to_save`) are switched on and off with its layers.
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)]
    disabled = [layer.disable_adapters for layer in layers]
    active = list(tuner.active_adapters)
    merged = [layer for layer in layers if isinstance(layer, BaseTunerLayer) and layer.merged]
    # PEFT lets gradients follow activity; a frozen stage must come back frozen.
    with _unmerged(merged), trainable_kept(model.parameters()):
        try:
            if adapters:
                tuner.enable_adapter_layers()
                _set_adapters(tuner, adapters)
            else:
                tuner.disable_adapter_layers()
            yield
        finally:
            tuner.set_adapter(active, inference_mode=True)
            for layer, value in zip(layers, disabled, strict=True):
                layer.enable_adapters(not value)


@contextmanager
def _unmerged(layers: Sequence[Any]) -> Iterator[None]:
    """Takes merged adapters out of the weights for a while: PEFT would in a forward, after weights were rewritten.

    PEFT's warning that its division is inexact is left to be seen: what is measured inside is what it gives.

    Raises:
        AdapterError: On entering, if a merged scale is too small to divide by, or the weights are quantized, of which
            PEFT makes new ones.
    """
    for layer in layers:
        _check_divisible(layer)
        if not all(weight.is_floating_point() for weight in layer.get_base_layer().parameters(recurse=False)):
            raise AdapterError(
                f"the adapter {layer.merged_adapters[0]!r} is merged into quantized weights, which it cannot be taken"
                " out of exactly; load the model as it was and the adapter unmerged."
            )
    merged = [(layer, list(layer.merged_adapters)) for layer in layers]
    weights = [weight for layer in layers for weight in layer.get_base_layer().parameters(recurse=False)]
    with restored(weights):
        try:
            with writing(weights):
                for layer in layers:
                    layer.unmerge()
            yield
        finally:
            with writing(weights):
                for layer, names in merged:
                    layer.merge(adapter_names=names)


def _check_divisible(layer: Any) -> None:
    """Refuses a layer with a scale of PEFT's (IA)³ merged that its weights do not come back from."""
    if not isinstance(layer, IA3Layer):
        return
    dtype = layer.get_base_layer().weight.dtype
    least = _LEAST_SCALE
    if dtype.is_floating_point:
        # Below, weights of a usual size times the scale have fewer digits than the dtype holds.
        least = max(least, 16 * torch.finfo(dtype).tiny)
    for name in set(layer.merged_adapters) & set(layer.ia3_l.keys()):
        smallest = layer.ia3_l[name].detach().abs().min().item()
        if smallest < least:
            raise AdapterError(
                f"the (IA)^3 adapter {name!r} is merged into the weights with a scale of {smallest:.2g}, and no"
                " division gives the weights back; load the model as it was and the adapter unmerged."
            )


@contextmanager
def restored(weights: Iterable[Tensor]) -> Iterator[None]:
    """Copies weights, which a block may write to, and puts back every bit when it ends.

    An interrupt meanwhile is raised when they are back.
    """
    kept = list(weights)
    with writing(kept):
        before = [weight.detach().clone() for weight in kept]
    back = False
    try:
        try:
            yield
        finally:
            with writing(kept):
                _put_back(kept, before)
            back = True
    except KeyboardInterrupt:
        # To copy once more changes nothing, so where it came does not matter.
        while not back:
            with suppress(KeyboardInterrupt), writing(kept):
                _put_back(kept, before)
                back = True
        raise


def _put_back(weights: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for weight, value in zip(weights, values, strict=True):
        weight.copy_(value)


@contextmanager
def writing(weights: Iterable[Tensor]) -> Iterator[None]:
    """A block that writes to weights, by what PEFT makes of them, too: what is made in inference mode never trains
    again, so that a block is in that mode only for weights that were made there."""
    with torch.inference_mode(any(weight.is_inference() for weight in weights)), torch.no_grad():
        yield


@contextmanager
def inexact_unmerging() -> Iterator[None]:
    """Silences PEFT, which divides to unmerge and warns that this is inexact: for where nothing is read between that
    and [`restored`], which puts back every bit."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Unmerge result can be inaccurate")
        yield


def _set_adapters(tuner: BaseTuner, adapters: list[str]) -> None:
    try:
        tuner.set_adapter(adapters, inference_mode=True)
    except ValueError as error:
        # Such as of two that each save a whole module. What PEFT says ends with the module printed.
        reason = first_line(error).partition("(")[0]
        raise AdapterError(f"the adapters {', '.join(adapters)} cannot act at once: {reason}.") from error


@contextmanager
def _acting_prompt(model: Any, adapters: list[str]) -> Iterator[None]:
    """The same for a bare model, and for methods that learn a prompt and act one at a time."""
    if not adapters and not hasattr(model, "peft_config"):
        yield
        return
    if not adapters:
        # Whole modules of an adapter stay, to PEFT, where its prompt is switched off.
        with base_of(model.base_model), model.disable_adapter():
            yield
        return
    if len(adapters) > 1:
        raise AdapterError(f"adapters that learn a prompt act one at a time; asked for {', '.join(adapters)}.")
    active = model.active_adapter
    # PEFT lets gradients of whole modules follow activity.
    with trainable_kept(model.parameters()):
        try:
            model.set_adapter(adapters[0])
            yield
        finally:
            model.set_adapter(active)
