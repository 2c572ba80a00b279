"""What is refused before a merge changes the first weight, so that a refusal leaves the model as it was."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeAlias

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from ..errors import AdapterError
from .fold import check_foldable, is_wrapper, scaled_tensors
from .layer import SurgicalIA3Layer, layers_by_name

Extent: TypeAlias = tuple[int, int, int, int]
# Its bytes, see `_extent`, and whose they are.
Place: TypeAlias = tuple[Extent, str]


def check_mergeable(model: nn.Module, adapter_names: Sequence[str] | None = None) -> None:
    """Refuses adapters whose scales cannot be folded into the weights.

    Args:
        model: What holds them. Layers that have none of them are not asked.
        adapter_names: Which adapters; the active ones by default.

    Raises:
        AdapterError: If a weight is quantized or otherwise cannot be rewritten in place, is also used elsewhere, or
            has an adapter of another method on it, or scales are not loaded yet.
    """
    layers = {
        name: layer
        for name, layer in layers_by_name(model).items()
        if layer.coordinates.keys() & (layer.active_adapters if adapter_names is None else adapter_names)
    }
    check_alone(layers)
    for layer in layers.values():
        base: Any = layer.get_base_layer()
        check_foldable(base, layer.side)
        if not base.weight.is_meta:
            check_loaded([layer], layer.active_adapters if adapter_names is None else adapter_names)
    check_untied(model, layers)


def check_loaded(layers: Iterable[SurgicalIA3Layer], adapter_names: Iterable[str]) -> None:
    """Refuses scales without values, as PEFT makes them with `low_cpu_mem_usage` for a file that is to be loaded.

    Args:
        layers: What holds them.
        adapter_names: Which adapters; a layer may lack some.

    Raises:
        AdapterError: If there are some.
    """
    names = [*adapter_names]
    for layer in layers:
        held = layer.surgical_ia3_delta
        if found := next((name for name in names if name in layer.coordinates and held[name].is_meta), None):
            raise AdapterError(
                f"the scales of {found!r} are not loaded yet, as low_cpu_mem_usage leaves them; load them with"
                " set_peft_model_state_dict(..., low_cpu_mem_usage=True) first."
            )


def check_untied(model: nn.Module, layers: Mapping[str, BaseTunerLayer]) -> None:
    """Refuses layers whose weight or bias is also another module's, which a merge would change too.

    Args:
        model: What holds them.
        layers: By their names in it; of any PEFT method.

    Raises:
        AdapterError: If there is one.
    """
    # By the modules that hold them: one that goes by several names is listed once, and what is merged is merged there.
    tensors = {
        f"{name}.{child}.{key}".lstrip("."): parameter
        for name, module in model.named_modules()
        for child, held in module._modules.items()
        if held is not None
        for key, parameter in held._parameters.items()
        if parameter is not None
    }
    places = places_of(tensors)
    for name, layer in layers.items():
        # Of another method it is not known which of them a merge changes.
        side = layer.side if isinstance(layer, SurgicalIA3Layer) else "output"
        for kind in scaled_tensors(layer.get_base_layer(), side):
            tensor = getattr(layer.get_base_layer(), kind, None)
            if tensor is not None and (other := shared_with(places, f"{name}.base_layer.{kind}", tensor)):
                what = "the embeddings" if tensors[other] is _embedding_weight(model) else other
                raise AdapterError(f"{name} shares its {kind} with {what}, so an adapter of it cannot be merged.")


def _embedding_weight(model: nn.Module) -> Tensor | None:
    # Of models of sound transformers does not know it, and says so by an error.
    with suppress(AttributeError, NotImplementedError):
        embeddings: Any = model.get_input_embeddings
        return getattr(embeddings(), "weight", None)
    return None


def check_alone(layers: Mapping[str, SurgicalIA3Layer]) -> None:
    """Refuses layers that lie over an adapter of another method: PEFT takes both off together.

    Args:
        layers: By their names.

    Raises:
        AdapterError: If there is one.
    """
    for name, layer in layers.items():
        if layer.base_layer is not layer.get_base_layer():
            raise AdapterError(f"{name} has an adapter of another method on it; merge or delete that one first.")


def places_of(tensors: Mapping[str, Tensor]) -> dict[int, list[Place]]:
    """Where tensors lie in memory, by the storage that they are views of.

    What is offloaded, or another process's, is nowhere; what is made of other tensors has no place to tell.

    Args:
        tensors: All of a model's, by name.
    """
    places: dict[int, list[Place]] = {}
    for name, tensor in tensors.items():
        if not is_wrapper(tensor) and tensor.data_ptr():
            places.setdefault(tensor.untyped_storage().data_ptr(), []).append((_extent(tensor), name))
    return places


def shared_with(places: Mapping[int, Sequence[Place]], name: str, tensor: Tensor) -> str | None:
    """The name of another tensor in the same memory, or in a part of it, if there is one.

    Args:
        places: Of all of a model's, see [`places_of`].
        name: Which one of them it is.
        tensor: The tensor.
    """
    own, near = _extent(tensor), places.get(tensor.untyped_storage().data_ptr(), ())
    return next((other for extent, other in near if other != name and _meet(own, extent)), None)


def _extent(tensor: Tensor) -> Extent:
    """The bytes of a tensor that has any: the first one, the first behind it, from row to row, and of a row."""
    dims = [(stride, size) for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size > 1]
    step = max(dims, default=(0, 1))
    width = 1 + sum((size - 1) * stride for stride, size in dims) - step[0] * (step[1] - 1)
    start, size = tensor.data_ptr(), tensor.element_size()
    return start, start + (step[0] * (step[1] - 1) + width) * size, step[0] * size, width * size


def _meet(one: Extent, other: Extent) -> bool:
    """Whether two tensors have a byte in common. Those that are columns of one matrix, side by side, have none."""
    (start, stop, step, width), (begin, end, same, more) = one, other
    if stop <= begin or end <= start:
        return False
    apart = (begin - start) % step if step else 0
    return step != same or not (width <= apart and apart + more <= step)
