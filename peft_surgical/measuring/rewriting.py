"""Weights rewritten for a while: adapters merged into them, something done to the result, and every bit put back.

```py
>>> with adapter_state(model, names)(), merged_weights(model, names) as layers:
...     ...  # rewrite the weights of `layers`
```
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from ..errors import AdapterError, ModelError, first_line
from ..running.modes import base_model_of
from ..running.sharing import is_sharded
from ..tuner.mergeable import check_untied
from .states import inexact_unmerging, restored, writing


def check_weights(model: Any, adapters: Sequence[str], done: str) -> None:
    """Refuses a model whose weights cannot be merged with adapters and rewritten.

    Args:
        model: A `PeftModel` or a bare model.
        adapters: Names of adapters to merge.
        done: What shall be done with the weights, for the message.

    Raises:
        AdapterError: If the adapters add to the prompt and not to weights, or to weights that are tied to others.
        ModelError: If weights are quantized, offloaded or spread over processes.
    """
    if is_sharded(model):
        raise ModelError(f"weights that are spread over processes cannot be {done}; use a model that is not sharded.")
    if adapters and not isinstance(getattr(model, "base_model", None), BaseTuner):
        raise AdapterError(f"the adapter {adapters[0]!r} is not one of weights, so it cannot be merged into them.")
    for name, module in linear_layers(model):
        if not module.weight.is_floating_point() or module.weight.device.type == "meta":
            raise ModelError(f"{name} has no weights at hand that could be {done}: they are quantized or offloaded.")
    if adapters:
        base = model.get_base_model()
        adapted = {name: layer for name, layer in base.named_modules() if isinstance(layer, BaseTunerLayer)}
        merged = {
            name: layer for name, layer in adapted.items() if set(adapters) & set(layer._all_available_adapter_names())
        }
        check_untied(base, merged)


def linear_layers(model: Any) -> Iterator[tuple[str, Any]]:
    """The linear layers of the base below any adapters, without the output head, by name."""
    base = base_model_of(model)
    adapted = [(name, module) for name, module in base.named_modules() if isinstance(module, BaseTunerLayer)]
    inside = {id(part) for _, layer in adapted for part in layer.modules()}
    found = [(name, layer.get_base_layer()) for name, layer in adapted]
    found += [(name, module) for name, module in base.named_modules() if id(module) not in inside]
    # With all that is put around it: an adapter may have a whole head of its own beside the base's.
    met = {id(part) for part in base.get_output_embeddings().modules()}
    for name, module in found:
        if isinstance(module, nn.Linear | Conv1D) and id(module) not in met:
            met.add(id(module))
            yield name, module


def _merge(model: Any, adapters: Sequence[str]) -> None:
    try:
        model.base_model.merge_adapter(list(adapters))
    except (RuntimeError, ValueError, NotImplementedError) as error:
        # Such as of a bias of LoRA's own where the layer has none.
        names = ", ".join(adapters)
        raise AdapterError(f"PEFT cannot merge {names} into the weights: {first_line(error)}.") from error


@contextmanager
def merged_weights(model: Any, adapters: Sequence[str]) -> Iterator[list[Any]]:
    """Merges adapters that act; leaving puts back every bit of every linear layer and of what adapters are on.

    Args:
        model: A `PeftModel`, or a bare model with no `adapters`.
        adapters: Their names.

    Raises:
        AdapterError: If PEFT cannot merge one.

    Yields:
        The linear layers, whose weights may be rewritten. They are copied once while the context holds.
    """
    layers = [layer for _, layer in linear_layers(model)]
    adapted = [module.get_base_layer() for module in model.modules() if isinstance(module, BaseTunerLayer)]
    written = {id(p): p for module in [*layers, *adapted] for p in module.parameters(recurse=False)}
    with restored(written.values()):
        try:
            if adapters:
                with writing(written.values()):
                    _merge(model, adapters)
            yield layers
        finally:
            if any(module.merged for module in model.modules() if isinstance(module, BaseTunerLayer)):
                with inexact_unmerging(), writing(written.values()):
                    model.base_model.unmerge_adapter()
