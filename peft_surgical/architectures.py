"""The module names of each supported `model_type`, and the way to teach one more.

from peft_surgical import Architecture, register_architecture

register_architecture(
    "my_model",
    Architecture(
        layers="decoder.blocks", qkv="attn.qkv", qkv_order="stacked", attention_out="attn.out",
        gate="mlp.w1", up="mlp.w3", mlp_out="mlp.w2",
    ),
)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from typing import Any, Literal, cast

from torch import nn
from transformers import PreTrainedModel

from .errors import AdapterError, ArchitectureError, ModelError, SelectionError, brief, said

GROUP = "peft_surgical.architectures"


@dataclass(frozen=True)
class Architecture:
    """Module names, relative to one decoder layer.

    Attributes:
        layers: Path of the list of decoder layers in the model.
        attention_out: The attention's output projection.
        mlp_out: The MLP's output projection.
        q: The query projection, when it is a module of its own.
        k: The key projection, likewise.
        v: The value projection, likewise.
        qkv: The fused projection, instead of `q`, `k` and `v`.
        qkv_order: How a fused projection's output is laid out: `stacked` is all queries, then all keys, then all
            values; `interleaved` is query, key and value of each head in turn.
        gate: The gate projection of a gated MLP, when it is a module of its own.
        up: The MLP's input projection.
        gate_up: The fused gate and up projection (gate first), instead of `gate` and `up`.
        mlp_norm: The RMS norm between the MLP's output and the residual stream, where there is one.

    Raises:
        ArchitectureError: When it has both separate and fused projections, or neither.
    """

    layers: str
    attention_out: str
    mlp_out: str
    q: str | None = None
    k: str | None = None
    v: str | None = None
    qkv: str | None = None
    qkv_order: Literal["stacked", "interleaved"] = "stacked"
    gate: str | None = None
    up: str | None = None
    gate_up: str | None = None
    mlp_norm: str | None = None

    def __post_init__(self) -> None:
        separate = (self.q, self.k, self.v)
        if (self.qkv is None) == (None in separate) or (self.qkv is not None and separate != (None, None, None)):
            raise ArchitectureError("an architecture names either q, k and v, or one fused qkv.")
        if (self.gate_up is None) == (self.up is None) or (self.gate_up is not None and self.gate is not None):
            raise ArchitectureError("an architecture names either up (with gate when gated), or one fused gate_up.")
        if self.qkv_order not in ("stacked", "interleaved"):
            raise ArchitectureError(f"qkv_order must be 'stacked' or 'interleaved', not {self.qkv_order!r}.")

    @property
    def gated(self) -> bool:
        """Whether the MLP multiplies its activation by a second, linear, projection."""
        return self.gate is not None or self.gate_up is not None


_LLAMA = Architecture(
    layers="model.layers",
    attention_out="self_attn.o_proj",
    mlp_out="mlp.down_proj",
    q="self_attn.q_proj",
    k="self_attn.k_proj",
    v="self_attn.v_proj",
    gate="mlp.gate_proj",
    up="mlp.up_proj",
)
_GEMMA = replace(_LLAMA, mlp_norm="post_feedforward_layernorm")
_KNOWN: dict[str, Architecture] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma", "smollm3", "granite"), _LLAMA),
    **dict.fromkeys(("gemma2", "gemma3_text"), _GEMMA),
    "gemma3": replace(_GEMMA, layers="model.language_model.layers"),
    "phi3": Architecture(
        layers="model.layers",
        attention_out="self_attn.o_proj",
        mlp_out="mlp.down_proj",
        qkv="self_attn.qkv_proj",
        gate_up="mlp.gate_up_proj",
    ),
    "gpt2": Architecture(
        layers="transformer.h", attention_out="attn.c_proj", mlp_out="mlp.c_proj", qkv="attn.c_attn", up="mlp.c_fc"
    ),
    "gpt_neox": Architecture(
        layers="gpt_neox.layers",
        attention_out="attention.dense",
        mlp_out="mlp.dense_4h_to_h",
        qkv="attention.query_key_value",
        qkv_order="interleaved",
        up="mlp.dense_h_to_4h",
    ),
    "opt": Architecture(
        layers="model.decoder.layers",
        attention_out="self_attn.out_proj",
        mlp_out="fc2",
        q="self_attn.q_proj",
        k="self_attn.k_proj",
        v="self_attn.v_proj",
        up="fc1",
    ),
}


def register_architecture(model_type: str, architecture: Architecture) -> None:
    """Teach the module names of one more `model_type`.

    An installed package calls this in a module and names that module as an entry point in the group
    `peft_surgical.architectures`. The module is imported when a model of an unknown type is met.

    Raises:
        ArchitectureError: When the type is no text, or known already with other module names, or what is given is no
            `Architecture`.
    """
    if not isinstance(model_type, str) or not model_type:
        raise ArchitectureError(f"a model type must be a text, such as 'llama', not {brief(model_type)}.")
    if not isinstance(architecture, Architecture):
        raise ArchitectureError(f"a model type's architecture must be an Architecture, not {brief(architecture)}.")
    if _KNOWN.setdefault(model_type, architecture) != architecture:
        raise ArchitectureError(f"model type {model_type!r} is registered already, with other module names.")


def architecture_of(model_type: str) -> Architecture:
    """The module names of a model type, as this package or an installed one knows them.

    Raises:
        ArchitectureError: When none knows them. The message says how to register them, and which packages failed to.
    """
    faults = [] if model_type in _KNOWN else _ask_packages()
    if model_type not in _KNOWN:
        raise ArchitectureError(
            f"the layout of model type {model_type!r} is not known (known: {', '.join(sorted(_KNOWN))}); "
            "register_architecture(model_type, Architecture(...)) teaches it, in a module that is imported or named "
            f"by an entry point of the group {GROUP}.{''.join(faults)}"
        )
    return _KNOWN[model_type]


def _ask_packages() -> list[str]:
    """Imports what installed packages register architectures in; says which could not be."""
    faults = []
    for point in sorted(metadata.entry_points(group=GROUP), key=lambda point: (point.name, point.value)):
        try:
            point.load()
        except (Exception, SystemExit) as error:  # whatever one package does wrong, the others are asked
            faults.append(f" ({point.name!r}, {point.value}, failed: {type(error).__name__}: {said(error)})")
    return faults


def residual_factor(model: Any) -> float:
    """The factor on what MLPs write into the residual stream; Granite has one, and with other models it is 1."""
    return float(getattr(model.config.get_text_config(), "residual_multiplier", 1.0))


def check_causal(model: Any) -> None:
    """Refuses a model that does not go on with a text: one with an encoder beside it, or without a method that does,
    or whose tokens see those behind them, as Gemma's may and PaliGemma's do; and one whose forward fails in itself.

    A model that may be either, as BERT's, and looks both ways by another setting than `use_bidirectional_attention` is
    not told apart.

    Args:
        model: The model, bare or with adapters. What is no model of transformers is not judged.

    Raises:
        ArchitectureError: If it is such a model.
        ModelError: If its configuration has `return_dict=False`.
        AdapterError: If it is a PEFT model whose last adapter was deleted.
    """
    if hasattr(model, "get_base_model") and not getattr(model, "peft_config", True):
        raise AdapterError("the PEFT model has no adapter any more; give what its unload() returns.")
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not isinstance(base, PreTrainedModel):
        return
    # A model's own `can_generate` may say anything; what counts is that it has the method.
    if base.config.is_encoder_decoder or not hasattr(base, "generate"):
        raise ArchitectureError(
            f"a {type(base).__name__} does not go on with a text; give a causal language model, as"
            " AutoModelForCausalLM loads it."
        )
    # Gemma 4 also says "vision", where only an image's tokens see one another.
    if getattr(base.config.get_text_config(), "use_bidirectional_attention", None) in (True, "all"):
        raise ArchitectureError(
            f"this {type(base).__name__} looks both ways, as its configuration says (use_bidirectional_attention);"
            " give a causal language model, whose tokens see only those before them."
        )
    # It reaches the decoder inside, whose tuple the model around it does not read, whatever the caller asks for.
    for where, config in (("", base.config), (".get_text_config()", base.config.get_text_config())):
        if getattr(config, "return_dict", True) is False:
            raise ModelError(
                f"transformers cannot run this {type(base).__name__}, whose configuration has return_dict=False; set"
                f" model.config{where}.return_dict = True."
            )


def decoder_layers(model: Any) -> nn.ModuleList:
    """A model's decoder layers, in order.

    Raises:
        ArchitectureError: When the architecture is not known.
    """
    return cast("nn.ModuleList", model.get_submodule(architecture_of(model.config.model_type).layers))


def output_projections(model: Any, layers: Sequence[int] | None = None) -> dict[str, int]:
    """The names of some layers' MLP output projections, whose input are the neurons, and their layers, ascending.

    Args:
        model: A model of a known architecture.
        layers: Which; all when None.

    Raises:
        SelectionError: If the model has no such layer, or `layers` is no list of whole numbers.
        ArchitectureError: If the architecture is not known.
    """
    architecture = architecture_of(model.config.model_type)
    count = len(model.get_submodule(architecture.layers))
    if layers is not None and not (isinstance(layers, Iterable) and all(type(layer) is int for layer in layers)):
        raise SelectionError(f"layers must be a list of whole numbers, such as [3, 4], not {brief(layers)}.")
    wanted = range(count) if layers is None else sorted(set(layers))
    if missing := [layer for layer in wanted if not 0 <= layer < count]:
        raise SelectionError(f"the model has {count} layers (0 to {count - 1}), so no layer {missing[0]}.")
    if not wanted:
        raise SelectionError("no layer is named; name at least one, whose MLP is changed.")
    return {f"{architecture.layers}.{layer}.{architecture.mlp_out}": layer for layer in wanted}
