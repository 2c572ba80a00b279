"""The state of an edited model after its weights were rounded, as a deployment in few bits would have them.

What was unlearned can come back there (Zhang et al., arXiv 2410.16454): an edit changes weights by little, and
rounding may undo that.

```py
>>> states = {"base": adapter_state(model, []), "edited in 8 bits": rounded_state(model, ["unlearn", "learn"], 8)}
>>> evaluate(model, tokenizer, fact, states=states)
```
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from .errors import ModelError
from .states import State, adapter_state


def rounded_state(model: Any, adapters: Sequence[str], bits: int) -> State:
    """The state in which adapters are merged into the weights, and the weights rounded.

    Every linear layer but the output head, each output channel's weights to `2**bits - 1` evenly spaced values
    around zero (symmetric absmax rounding). Weights are copied once while the state holds.

    Args:
        model: A `PeftModel`, or a bare model with no `adapters`.
        adapters: Names of adapters it holds; the base is rounded when empty.
        bits: Between 2 and 8.

    Returns:
        A function that gives a context; leaving it restores every bit.

    Raises:
        AdapterError: If the model holds no adapter of a name.
        ModelError: If `bits` is out of range, or weights are quantized already.
    """
    if type(bits) is not int or not 2 <= bits <= 8:
        raise ModelError(f"weights are rounded to 2 to 8 bits, not {bits!r}.")
    for name, module in _linear(model):
        if not module.weight.is_floating_point() or module.weight.device.type == "meta":
            raise ModelError(f"{name} has no weights at hand that could be rounded: they are quantized or offloaded.")
    acting = adapter_state(model, adapters)

    @contextmanager
    def entered() -> Iterator[None]:
        with acting(), _rounded(model, list(adapters), bits):
            yield

    return entered


@contextmanager
def _rounded(model: Any, adapters: list[str], bits: int) -> Iterator[None]:
    modules = [module for _, module in _linear(model)]
    before = [(tensor, tensor.detach().clone()) for module in modules for tensor in module.parameters(recurse=False)]
    try:
        if adapters:
            model.base_model.merge_adapter(adapters)
        with torch.no_grad():
            for module in modules:
                channels = module.weight.T if isinstance(module, Conv1D) else module.weight
                channels.copy_(round_channels(channels, bits))
        yield
    finally:
        if adapters:
            with warnings.catch_warnings():
                # PEFT divides to unmerge and says that this is inexact; the copies below put every bit back.
                warnings.filterwarnings("ignore", message="Unmerge result can be inaccurate")
                model.base_model.unmerge_adapter()
        with torch.no_grad():
            for tensor, value in before:
                tensor.copy_(value)


def round_channels(weight: Float[Tensor, "out in"], bits: int) -> Float[Tensor, "out in"]:
    """Rounds each row to `2**bits - 1` evenly spaced values, the outermost its largest absolute weight."""
    most = 2 ** (bits - 1) - 1
    step = weight.float().abs().amax(1, keepdim=True) / most
    return torch.where(step > 0, (weight.float() / step).round() * step, 0.0).to(weight.dtype)


def _linear(model: Any) -> Iterator[tuple[str, Any]]:
    """The linear layers of the base below any adapters, without the output head."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    adapted = [(name, module) for name, module in base.named_modules() if isinstance(module, BaseTunerLayer)]
    inside = {id(part) for _, layer in adapted for part in layer.modules()}
    found = [(name, layer.get_base_layer()) for name, layer in adapted]
    found += [(name, module) for name, module in base.named_modules() if id(module) not in inside]
    head = base.get_output_embeddings()
    met = {id(head.get_base_layer() if isinstance(head, BaseTunerLayer) else head)}
    for name, module in found:
        if isinstance(module, nn.Linear | Conv1D) and id(module) not in met:
            met.add(id(module))
            yield name, module
