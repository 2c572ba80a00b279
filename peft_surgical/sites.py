"""Where a component lives: TransformerLens hook point, Hugging Face module, side and index range.

A *component* is an attention head (`L3.head.1`) or an MLP (`L3.mlp`). A *projection* is a place where it can be read
or scaled: `z` (a head's output before the output projection), `q`, `k`, `v`, `post` (an MLP's neurons after the
activation), `pre` and `pre_linear` (before it), and `in` (what the up projection reads: the normalized residual
stream, so its coordinates are no neurons). `in` can be scaled and is not scored. Which coordinates of a Hugging Face
module a projection is, is told here alone. With H heads, K key/value heads, d = `d_head`, I = `d_mlp`, `in` a module's
input and `out` its output:

| | Llama, Mistral, Qwen, Gemma | Phi-3 | GPT-2 | GPT-NeoX |
|---|---|---|---|---|
| z[h] | `o_proj` in h·d | `o_proj` in h·d | `c_proj` in h·d | `dense` in h·d |
| v[k] | `v_proj` out k·d | `qkv_proj` out (H+K+k)·d | `c_attn` out (2H+k)·d | `query_key_value` out (3k+2)·d |
| post[j] | `down_proj` in j | `down_proj` in j | `c_proj` in j | `dense_4h_to_h` in j |
| pre[j] | `gate_proj` out j | `gate_up_proj` out j | `c_fc` out j | `dense_h_to_4h` out j |
| pre_linear[j] | `up_proj` out j | `gate_up_proj` out I+j | none | none |
| in[m] | `up_proj` in m | `gate_up_proj` in m | `c_fc` in m | `dense_h_to_4h` in m |

Zeroing either side gives the same logits. The hook point of `in` is `mlp.in.hook_in`, or `mlp.hook_in` where one
module is both gate and up projection.

    >>> from peft_surgical.sites import Component, ModelShape, projection_slices
    >>> shape = ModelShape("llama", n_layers=4, n_heads=4, n_kv_heads=2, d_head=8, d_mlp=64, d_model=32)
    >>> projection_slices(shape, Component.parse("L3.head.1"), "z")
    Slice(module='model.layers.3.self_attn.o_proj', side='input', start=8, stop=16)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, NamedTuple

from .architectures import Architecture, architecture_of
from .errors import ArchitectureError, SelectionError, brief
from .sizes import NAMES, NEURONS, kv_heads_of, size_of, text_values

HEAD_PROJECTIONS = ("z", "v", "q", "k")
MLP_PROJECTIONS = ("post", "pre", "pre_linear")
MLP_INPUT = "in"
SCORED_PROJECTIONS = (*HEAD_PROJECTIONS, *MLP_PROJECTIONS)
PROJECTIONS = (*SCORED_PROJECTIONS, MLP_INPUT)
"""All that can be scaled; scorers know those of heads and of MLPs' neurons."""

DEFAULT_PROJECTIONS = ("z", "post")
"""What is scored, counted and scaled unless others are named."""

STREAMS = ("resid_pre", "attn_out", "mlp_out")
"""What each layer reads and writes, in TransformerLens's words and order: it can be traced, not scored or scaled."""

# No more digits than any model has layers, and not those of other scripts, which would give one component two names.
_NUMBER = "(0|[1-9][0-9]{0,4})"
_NAME = re.compile(rf"L{_NUMBER}\.(?:(mlp)|head\.{_NUMBER})")
# Far more than any model has, and little enough to be held in memory.
_MOST, WIDEST = 10_000, 1 << 24


class Slice(NamedTuple):
    """Coordinates `[start, stop)` of the last axis of a module's input or output.

    Attributes:
        module: The module's name in the model.
        side: Whether they are of what it takes or of what it gives.
        start: The first of them.
        stop: The first after them.
    """

    module: str
    side: Literal["input", "output"]
    start: int
    stop: int


@dataclass(frozen=True)
class Component:
    """An attention head or an MLP of one layer; `str()` gives its name, `parse` reads one.

    Attributes:
        kind: Which of the two.
        layer: The layer, from 0.
        index: The head, from 0; None for an MLP.
    """

    kind: Literal["head", "mlp"]
    layer: int
    index: int | None = None

    def __str__(self) -> str:
        return f"L{self.layer}.mlp" if self.kind == "mlp" else f"L{self.layer}.head.{self.index}"

    @classmethod
    def parse(cls, name: str) -> Component:
        """Read `L<layer>.head.<index>` or `L<layer>.mlp`.

        Raises:
            SelectionError: For anything else.
        """
        match = _NAME.fullmatch(name) if isinstance(name, str) else None
        if match is None:
            raise SelectionError(f"{brief(name)} is not a component: expected L<layer>.head.<index> or L<layer>.mlp.")
        layer, mlp, head = match.groups()
        return cls("mlp", int(layer)) if mlp else cls("head", int(layer), int(head))


@dataclass(frozen=True)
class ModelShape:
    """The sizes that turn component names into index ranges.

    Attributes:
        model_type: The configuration's `model_type`, a key of the known architectures.
        n_layers: Decoder layers.
        n_heads: Query heads a layer.
        n_kv_heads: Key/value heads a layer; smaller than `n_heads` under grouped-query attention.
        d_head: Width of one head.
        d_mlp: Neurons of one MLP.
        d_model: Width of the residual stream.
    """

    model_type: str
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_mlp: int
    d_model: int

    @classmethod
    def from_config(cls, config: Any) -> ModelShape:
        """Read the sizes from a transformers configuration or from its dictionary.

        Args:
            config: A `PreTrainedConfig` or what its `to_dict()` gives (PEFT hands its tuners the dictionary). Of a
                multimodal configuration, the sizes are those of its `text_config`.

        Raises:
            ArchitectureError: When the model type is not known, a size is missing or differs from layer to layer, or
                its fused projection is laid out as by Falcon's `new_decoder_architecture`.
        """
        values: Mapping[str, Any] = config if isinstance(config, Mapping) else config.to_dict()
        model_type = values.get("model_type")
        if not isinstance(model_type, str):
            raise ArchitectureError("the model's configuration has no model_type, so its layout is not known.")
        architecture_of(model_type)
        text = text_values(config)
        if text.get("new_decoder_architecture") and architecture_of(model_type).qkv is not None:
            raise ArchitectureError(
                f"the {model_type} configuration has new_decoder_architecture, whose fused projection has each key and"
                " value head behind its own queries; that order is not supported."
            )
        found = {field: size_of(text, names, model_type) for field, names in NAMES.items()}
        heads, width = found["n_heads"], found["d_model"]
        return cls(
            model_type=model_type,
            n_kv_heads=kv_heads_of(text, model_type, heads),
            d_head=size_of(text, ("head_dim",), model_type, width // heads),
            d_mlp=size_of(text, NEURONS, model_type, 4 * width),
            **found,
        )

    def to_dict(self) -> dict[str, Any]:
        """The sizes as JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelShape:
        """What `to_dict` gave.

        Raises:
            SelectionError: When a key is missing, unknown or of the wrong type.
        """
        names = [field.name for field in fields(cls)]
        if not isinstance(data, Mapping) or set(data) != set(names):
            raise SelectionError(f"a model shape needs exactly the keys {', '.join(names)}, not {brief(data)}.")
        if not isinstance(data["model_type"], str):
            raise SelectionError(f"a model shape's model_type must be text, not {brief(data['model_type'])}.")
        for name in names[1:]:
            most = _MOST if name.startswith("n_") else WIDEST
            if type(data[name]) is not int or not 1 <= data[name] <= most:
                given = brief(data[name])
                raise SelectionError(f"a model shape's {name} must be a positive whole number, not {given}.")
        return cls(**data)

    @property
    def architecture(self) -> Architecture:
        """The module names of this model type."""
        return architecture_of(self.model_type)


def components(shape: ModelShape) -> tuple[Component, ...]:
    """All heads and MLPs, layer by layer, a layer's heads before its MLP."""
    return tuple(
        component
        for layer in range(shape.n_layers)
        for component in (*(Component("head", layer, head) for head in range(shape.n_heads)), Component("mlp", layer))
    )


def check_component(shape: ModelShape, component: Component) -> None:
    """Refuse a component that the model does not have.

    Raises:
        SelectionError: Says how many layers or heads there are.
    """
    if not 0 <= component.layer < shape.n_layers:
        raise SelectionError(
            f"the model has {shape.n_layers} layers (L0 to L{shape.n_layers - 1}); {component} is not one of them."
        )
    if component.kind == "head" and not (component.index is not None and 0 <= component.index < shape.n_heads):
        raise SelectionError(
            f"the model has {shape.n_heads} heads a layer (0 to {shape.n_heads - 1}), so no {component}."
        )


def check_projections(projections: Iterable[str]) -> None:
    """Refuses a name that is none of a projection.

    Raises:
        SelectionError: Names the first by the alphabet.
    """
    if unknown := set(projections) - set(PROJECTIONS):
        raise SelectionError(f"the projection {min(unknown)!r} is not one of {', '.join(PROJECTIONS)}.")


def _projections_for(component: Component) -> tuple[str, ...]:
    return HEAD_PROJECTIONS if component.kind == "head" else (*MLP_PROJECTIONS, MLP_INPUT)


def projections_of(component: Component, projections: Iterable[str]) -> list[str]:
    """Those of `projections` at which a component is scaled.

    Raises:
        SelectionError: When none is, or one is unknown.
    """
    check_projections(projections)
    known = _projections_for(component)
    chosen = [projection for projection in projections if projection in known]
    if not chosen:
        raise SelectionError(
            f"{component} needs one of the projections {', '.join(known)}; got {', '.join(projections) or 'none'}."
        )
    return chosen


def projection_slices(shape: ModelShape, component: Component, projection: str) -> Slice:
    """The coordinates of a module's input or output that are this component's.

    Args:
        shape: The model's sizes.
        component: A head for `z`, `v`, `q`, `k`; an MLP for `post`, `pre`, `pre_linear`, `in`.
        projection: Where to read it. `k` and `v` are those of the key/value head that this query head reads, so under
            grouped-query attention several heads share one slice.

    Raises:
        SelectionError: When the model lacks the component, or the component the projection.
        ArchitectureError: When a fused projection's layout is not told for so few key/value heads.
    """
    check_component(shape, component)
    allowed = _projections_for(component)
    if projection not in allowed:
        raise SelectionError(f"{component} has no projection {projection!r}; it has {', '.join(allowed)}.")
    architecture, width = shape.architecture, shape.d_head
    if component.kind == "mlp":
        return _mlp_slice(shape, architecture, component.layer, projection)
    assert component.index is not None  # for the type checker: check_component refused None
    if projection == "z":
        start = component.index * width
        return Slice(_path(architecture, component.layer, architecture.attention_out), "input", start, start + width)
    head = component.index if projection == "q" else component.index * shape.n_kv_heads // shape.n_heads
    if architecture.qkv is None:
        module, block = getattr(architecture, projection), head
    else:
        module = architecture.qkv
        part = "qkv".index(projection)
        if architecture.qkv_order == "interleaved":
            if shape.n_kv_heads != shape.n_heads:
                raise ArchitectureError(
                    f"{shape.model_type} has {shape.n_heads} heads and {shape.n_kv_heads} key and value heads, which"
                    " the order 'interleaved' of a fused projection has no place for."
                )
            block = 3 * head + part
        else:
            block = (0, shape.n_heads, shape.n_heads + shape.n_kv_heads)[part] + head
    return Slice(_path(architecture, component.layer, module), "output", block * width, (block + 1) * width)


def _mlp_slice(shape: ModelShape, architecture: Architecture, layer: int, projection: str) -> Slice:
    size = shape.d_mlp
    if projection == "post":
        return Slice(_path(architecture, layer, architecture.mlp_out), "input", 0, size)
    if projection == MLP_INPUT:
        module = architecture.up or architecture.gate_up
        assert module is not None  # for the type checker: Architecture refuses an MLP without an input
        return Slice(_path(architecture, layer, module), "input", 0, shape.d_model)
    if projection == "pre_linear" and not architecture.gated:
        raise SelectionError(
            f"{shape.model_type} MLPs are not gated, so they have no projection 'pre_linear'; use 'pre'."
        )
    if architecture.gate_up is not None:
        start = 0 if projection == "pre" else size
        return Slice(_path(architecture, layer, architecture.gate_up), "output", start, start + size)
    module = architecture.gate if architecture.gated and projection == "pre" else architecture.up
    assert module is not None  # for the type checker: Architecture refuses an MLP without an input
    return Slice(_path(architecture, layer, module), "output", 0, size)


def module_slices(shape: ModelShape, component: Component) -> tuple[Slice, ...]:
    """The paper's grain: every module that holds the component, whole.

    A head gives the outputs of its query, key, value and output projections; an MLP gives the outputs of its gate and
    up projections and the input of its down projection (which (IA)^3 calls a feed-forward module).
    """
    check_component(shape, component)
    architecture, layer = shape.architecture, component.layer
    if component.kind == "mlp":
        if architecture.gate_up is not None:
            inputs = [(architecture.gate_up, 2 * shape.d_mlp)]
        else:
            inputs = [(name, shape.d_mlp) for name in (architecture.gate, architecture.up) if name is not None]
        outputs = tuple(Slice(_path(architecture, layer, name), "output", 0, width) for name, width in inputs)
        return (*outputs, Slice(_path(architecture, layer, architecture.mlp_out), "input", 0, shape.d_mlp))
    q_width, kv_width = shape.n_heads * shape.d_head, shape.n_kv_heads * shape.d_head
    if architecture.qkv is not None:
        widths = [(architecture.qkv, q_width + 2 * kv_width)]
    else:
        names = (architecture.q, architecture.k, architecture.v)
        widths = [(n, w) for n, w in zip(names, (q_width, kv_width, kv_width), strict=True) if n is not None]
    widths.append((architecture.attention_out, shape.d_model))
    return tuple(Slice(_path(architecture, layer, name), "output", 0, width) for name, width in widths)


def hook_name(projection: str, layer: int) -> str:
    """The TransformerLens hook point of a projection of a layer, or of one of [`STREAMS`].

    Raises:
        SelectionError: If the projection is none that is scored.
    """
    if projection in STREAMS:
        return f"blocks.{layer}.hook_{projection}"
    if projection not in SCORED_PROJECTIONS:
        names = ", ".join(SCORED_PROJECTIONS)
        raise SelectionError(f"a hook point belongs to a projection ({names}), not to {projection!r}.")
    return f"blocks.{layer}.{'attn' if projection in HEAD_PROJECTIONS else 'mlp'}.hook_{projection}"


def _path(architecture: Architecture, layer: int, module: str) -> str:
    return f"{architecture.layers}.{layer}.{module}"
