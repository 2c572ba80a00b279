"""Finding the modules that an adapter selects, and refusing those it cannot scale, before anything is changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxtyping import Float
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..errors import SelectionError
from ..wrapped import COMPILED
from .coordinates import Coordinates
from .fold import features

# Mamba multiplies by `dt_proj`'s weight, and its fused kernels, which training may run, take that of the others too.
_READ_BY_MAMBA = ("dt_proj", "x_proj", "out_proj")
# Classes of transformers that read weights of their modules.
_READ_BY = {
    "WavLMAttention": ("q_proj", "k_proj", "v_proj", "out_proj"),
    "MobileBertLMPredictionHead": ("dense", "decoder"),
    "LongcatFlashTopkRouter": ("classifier",),
    "TDNNLayer": ("kernel",),
    "BloomAttention": ("dense",),
    "BloomMLP": ("dense_4h_to_h",),
    "DetrMHAttentionMap": ("k_proj",),
    "ConditionalDetrMHAttentionMap": ("k_proj",),
    "MaskFormerDetrMHAttentionMap": ("k_proj",),
    "DabDetrMHAttentionMap": ("k_linear",),
    "NeoMMEForMaskedLM": ("unembedding_projection",),
    "Gemma4AssistantForCausalLM": ("lm_head",),
    "Gemma4UnifiedAssistantForCausalLM": ("lm_head",),
    # Where it generates with a cache.
    "LSHSelfAttention": ("query_key", "value"),
    # In training.
    "Gemma3nTextAltUp": ("correction_coefs",),
}


def _slowly(bloom: Any) -> bool:
    return bool(bloom.pretraining_tp > 1 and bloom.slow_but_exact)


def _ordered(assistant: Any) -> bool:
    return bool(assistant.config.use_ordered_embeddings)


# Those of them that do so as their configuration says, and when.
_READ_WHERE: dict[str, Callable[[Any], bool]] = {
    "BloomAttention": _slowly,
    "BloomMLP": _slowly,
    "Gemma4AssistantForCausalLM": _ordered,
    "Gemma4UnifiedAssistantForCausalLM": _ordered,
}

# Packages whose linear modules have a forward of their own, for weights that are quantized or to be.
_QUANTIZING = ("bitsandbytes", "compressed_tensors", "optimum", "quanto", "quark", "torch", "torchao")
# Classes of transformers that compute what a Linear does in a forward of their own.
_LINEAR_ALL_THE_SAME = (
    "FalconLinear",
    "AutoBitLinear",
    "CompressedTensorsFP8Linear",
    "FP8Linear",
    "FbgemmFp8Linear",
    "MetalLinear",
    "QuantizedLinear",
)


def find_module(model: nn.Module, name: str) -> nn.Module:
    """Returns the module of that full name.

    Raises:
        SelectionError: If the model has none, or one whose weight another module uses behind its back.
    """
    if (module := _below(model, name)) is None:
        last = name.rsplit(".", 1)[-1]
        near = [n for n, _ in model.named_modules() if n.rsplit(".", 1)[-1] == last and ".base_layer" not in n]
        hint = f"; it has {near[0]}" if near else ""
        raise SelectionError(f"the model has no module named {name}{hint}.")
    above, _, last = name.rpartition(".")
    parent = model.get_submodule(above)
    mamba = last in _READ_BY_MAMBA and hasattr(parent, "A_log") and hasattr(parent, "D")
    # Torch's encoder does so in eval mode.
    torchs = isinstance(parent, nn.MultiheadAttention) or (
        isinstance(parent, nn.TransformerEncoderLayer) and last in ("linear1", "linear2")
    )
    theirs = [kind.__name__ for kind in type(parent).__mro__ if kind.__module__.startswith("transformers.")]
    readers = [kind for kind in theirs if last in _READ_BY.get(kind, ())]
    if mamba or torchs or any(kind not in _READ_WHERE or _READ_WHERE[kind](parent) for kind in readers):
        raise SelectionError(
            f"{name} belongs to a {type(parent).__name__}, which reads its weight without calling it, so a scale on it"
            " would have no effect."
        )
    return module


def _below(model: nn.Module, name: str) -> nn.Module | None:
    """The module of that name among `named_modules`: not one that a property leads to, whose weights have others."""
    found: nn.Module | None = model
    for part in name.split("."):
        # What torch.compile wraps goes by its own name too, and is told of where that would lose an adapter.
        while found is not None and part not in found._modules and COMPILED in found._modules:
            found = found._modules[COMPILED]
        found = found._modules.get(part) if found is not None else None
    return found


def unwrapped(module: nn.Module) -> nn.Module:
    """Returns the module under any PEFT layers."""
    found: nn.Module = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
    return found


def weight_of(module: nn.Module) -> Float[Tensor, "out in"]:
    """Returns a linear module's weight, whether or not an adapter is on it; of a Conv1D it is transposed."""
    base: Any = unwrapped(module)
    weight: Tensor = base.weight
    return weight.T if isinstance(base, Conv1D) else weight


def _computes_linear(module: nn.Module) -> bool:
    """Whether what comes out of a linear module is as wide as it says, and a merge of scales computes the same."""
    kind = next(kind for kind in type(module).__mro__ if "forward" in vars(kind))
    package, _, _ = kind.__module__.partition(".")
    known = package == "transformers" and kind.__name__ in _LINEAR_ALL_THE_SAME
    return kind is Conv1D or package in _QUANTIZING or known


def check_target(name: str, module: nn.Module, coordinates: Coordinates, width: int | None = None) -> int:
    """Refuses a module that cannot be scaled, or does not have the coordinates.

    Args:
        name: Its name, for the messages.
        module: The module, possibly under PEFT layers.
        coordinates: What is to be scaled.
        width: How wide the scaled side was in the model that the adapter was made for, if that is known.

    Returns:
        The width of the scaled side.

    Raises:
        SelectionError: If the module is not linear, or narrower than a range, or of another width than expected.
    """
    base = unwrapped(module)
    found = features(base, coordinates.side)
    if found is None:
        raise SelectionError(
            f"{name} is a {type(module).__name__}; a surgical adapter scales Linear and Conv1D modules."
        )
    if not _computes_linear(base):
        raise SelectionError(
            f"{name} is a {type(base).__name__}, which has a forward of its own, and is not known to compute what a"
            " Linear does; a surgical adapter scales modules that do."
        )
    if width is not None and width != found:
        raise SelectionError(
            f"the adapter was made for a {name} with {width} {coordinates.side} features; this model's has {found}."
        )
    check_width(name, coordinates, found)
    return found


def check_width(module: str, coordinates: Coordinates, width: int) -> None:
    """Refuses coordinates that the module does not have.

    Raises:
        SelectionError: If a range ends beyond `width`.
    """
    if coordinates.stop > width:
        start, stop = coordinates.ranges[-1]
        raise SelectionError(
            f"the range [{start}, {stop}] of {module} ends beyond its {width} {coordinates.side} features."
        )
