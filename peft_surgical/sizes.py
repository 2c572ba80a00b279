"""What a model's configuration says of its sizes, in whatever words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from .errors import ArchitectureError

NAMES = {
    "n_layers": ("num_hidden_layers", "n_layer", "num_layers"),
    "n_heads": ("num_attention_heads", "n_head"),
    "d_model": ("hidden_size", "n_embd"),
}
NEURONS = ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size")


def text_values(config: Any) -> Mapping[str, Any]:
    """What a configuration says of its model, or of the part of it that reads text, by the names that all models use.

    Args:
        config: A `PreTrainedConfig` or what its `to_dict()` gives.
    """
    values: Mapping[str, Any] = config if isinstance(config, Mapping) else config.to_dict()
    text = values.get("text_config")
    if isinstance(text, Mapping):
        return _renamed(text, getattr(config, "text_config", None))
    return _renamed(values, config)


def _renamed(values: Mapping[str, Any], config: Any) -> Mapping[str, Any]:
    """Adds the common names of values that a class calls otherwise, since a dictionary has its own names alone."""
    names = getattr(config, "attribute_map", None)
    if names is None:
        model_type = values.get("model_type")
        names = CONFIG_MAPPING[model_type].attribute_map if model_type in CONFIG_MAPPING else {}
    return {**{common: values[own] for common, own in names.items() if own in values}, **values}


def size_of(values: Mapping[str, Any], names: tuple[str, ...], model_type: str, default: int | None = None) -> int:
    """One size.

    Args:
        values: What the configuration says.
        names: What it may be called, the commonest first.
        model_type: For the messages.
        default: What it is where nothing is said; it must be said when None.

    Raises:
        ArchitectureError: If it is not said, or differs from layer to layer.
    """
    value = next((values[name] for name in names if values.get(name) is not None), default)
    if type(value) is int and value > 0:
        return value
    if value is None:
        raise ArchitectureError(f"the {model_type} configuration gives no {names[0]}.")
    raise ArchitectureError(
        f"the {model_type} configuration's {names[0]} must be one positive number for all layers, not {value!r}."
    )


def kv_heads_of(values: Mapping[str, Any], model_type: str, heads: int) -> int:
    """How many key/value heads a layer has.

    Args:
        values: What the configuration says.
        model_type: For the messages.
        heads: How many query heads it has, each with a key/value head of its own where nothing is said.

    Raises:
        ArchitectureError: If it differs from layer to layer.
    """
    # Falcon counts `num_kv_heads` even where all heads share one.
    alone = values.get("multi_query") is True and not values.get("new_decoder_architecture")
    names = ("num_key_value_heads",) if alone else ("num_key_value_heads", "num_kv_heads")
    return size_of(values, names, model_type, 1 if alone else heads)
