"""The state of an edited model after its weights were rounded, as a deployment in few bits would have them.

What was unlearned can come back there (Zhang et al., arXiv 2410.16454): an edit changes weights by little, and
rounding may undo that.

```py
>>> states = {"base": adapter_state(model, []), "edited in 8 bits": rounded_state(model, ["unlearn", "learn"], 8)}
>>> evaluate(model, tokenizer, fact, states=states)
```
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from torch.nn.modules.conv import _ConvNd

from ..errors import ModelError
from ..tuner.targets import weight_of
from .rewriting import check_weights, merged_weights
from .states import State, adapter_state, writing


def rounded_state(model: Any, adapters: Sequence[str], bits: int) -> State:
    """The state in which adapters are merged into the weights, and the weights rounded.

    Every linear layer but the output head, each output channel's weights to `2**bits - 1` evenly spaced values
    around zero (symmetric absmax rounding). Each time that the state is entered, weights are copied, for as long as it
    holds.

    Args:
        model: A `PeftModel`, or a bare model with no `adapters`.
        adapters: Names of adapters it holds; the base is rounded when empty.
        bits: Between 2 and 8.

    Returns:
        A function that gives a context; leaving it restores every bit.

    Raises:
        AdapterError: If the model holds no adapter of a name, or one that adds to the prompt.
        ModelError: If `bits` is out of range, weights are quantized already or spread over processes, or many experts'
            weights or other matrices are one tensor, whose channels cannot be told.
    """
    if type(bits) is not int or not 2 <= bits <= 8:
        raise ModelError(f"weights are rounded to 2 to 8 bits, not {bits!r}.")
    acting = adapter_state(model, adapters)
    check_weights(model, adapters, "rounded")
    _check_no_experts(model)

    @contextmanager
    def entered() -> Iterator[None]:
        with acting(), merged_weights(model, adapters) as layers:
            with writing(layer.weight for layer in layers):
                for layer in layers:
                    channels = weight_of(layer)
                    channels.copy_(round_channels(channels, bits))
            yield

    return entered


def _check_no_experts(model: Any) -> None:
    """Refuses a model most of whose weights would silently stay as they are."""
    adapted = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    # What adapters consist of is not rounded, of however many dimensions it is.
    beside = {id(part) for layer in adapted for part in layer.modules()}
    beside -= {id(part) for layer in adapted for part in layer.get_base_layer().modules()}
    for name, module in model.named_modules():
        if isinstance(module, _ConvNd) or id(module) in beside:
            continue
        for own, parameter in module.named_parameters(recurse=False):
            # A vector may have dimensions of one, to be multiplied with a batch.
            if sum(size > 1 for size in parameter.shape) > 2 and parameter.is_floating_point():
                raise ModelError(
                    f"{name}.{own} holds the weights of many experts in one tensor, or other matrices side by side, of"
                    " which it is not known what to round; only linear layers are rounded."
                )


def round_channels(weight: Float[Tensor, "out in"], bits: int) -> Float[Tensor, "out in"]:
    """Rounds each row to `2**bits - 1` evenly spaced values, the outermost its largest absolute weight."""
    most = 2 ** (bits - 1) - 1
    step = weight.float().abs().amax(1, keepdim=True) / most
    # A row that is not finite becomes one of NaN: to make zeros of it would mend a broken model.
    return torch.where(step == 0, 0.0, (weight.float() / step).round() * step).to(weight.dtype)
