"""Where the methods that change one MLP do it."""

from __future__ import annotations

from typing import Any

from peft_surgical.architectures import architecture_of, decoder_layers
from peft_surgical.errors import SelectionError

LAYER = 5
"""The layer that EasyEdit's ROME edits in Llama models."""


def edited_layer(model: Any, layer: int | None = None) -> int:
    """The given layer, or [`LAYER`], or the middle one of a model that is too shallow for it.

    Raises:
        SelectionError: If the model has no such layer.
    """
    count = len(decoder_layers(model))
    if layer is not None and not 0 <= layer < count:
        raise SelectionError(f"the model has {count} layers (0 to {count - 1}), so no layer {layer}.")
    return min(LAYER, count // 2) if layer is None else layer


def output_projection(model: Any, layer: int) -> Any:
    """The MLP's output projection, whose input are the neurons."""
    return decoder_layers(model)[layer].get_submodule(architecture_of(model.config.model_type).mlp_out)


SPREAD, LAST = 5, 8
"""MEMIT's and AlphaEdit's layers in EasyEdit's settings for Llama models: five of them, up to this one."""


def edited_layers(model: Any) -> list[int]:
    """[`SPREAD`] layers up to [`LAST`], or to the middle one of a model that is too shallow for it."""
    last = min(LAST, len(decoder_layers(model)) // 2)
    return list(range(max(0, last - SPREAD + 1), last + 1))
