"""A linear layer with surgical (IA)^3 scales on some coordinates of its input or its output.

What [`SurgicalIA3Layer`] computes is what PEFT's own (IA)^3 computes for the same scales written out in full: the two
agree bit for bit. A new adapter changes no bit of the output, and weight decay pulls towards the identity.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from jaxtyping import Float, Int
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from ..dtypes import dtype_name
from ..errors import AdapterError, SelectionError
from ..wrapped import uncompiled
from .coordinates import Coordinates, Side
from .fold import Folded, features
from .merging import Merging
from .offloading import execution_device
from .scaling import scale_coordinates, spread

# The name of "no adapter" for a row of a mixed batch, as in PEFT.
BASE = "__base__"


@cache
def warn_of_precision(dtype: torch.dtype) -> None:
    """Warns, once for each dtype, that scales are trained in one that rounds away most of their steps.

    Args:
        dtype: Which.
    """
    warnings.warn(
        f"scales are trained in {dtype_name(dtype)}, which rounds away most steps of those that differ"
        " from 1; after building the trainer, make them float32:"
        " for p in model.parameters(): if p.requires_grad: p.data = p.data.float()",
        stacklevel=2,
    )


class SurgicalIA3Layer(Merging):
    """What every layer with surgical scales has.

    An adapter multiplies coordinate `i` of one side by `1 + delta[i]` if it selects `i` and by exactly 1 otherwise;
    several multiply. `delta` is float32, `[selected]`, and 0 at the start; the product is taken in float32 and cast
    back to the activation's dtype.

    Args:
        base_layer: The linear module that is wrapped.
        side: Whether the input or the output of `base_layer` is scaled; one per layer, for all of its adapters.

    Raises:
        SelectionError: If `base_layer` is neither Linear nor Conv1D.
    """

    adapter_layer_names = ("surgical_ia3_delta",)
    other_param_names = ("_indices", "coordinates")

    base_layer: nn.Module

    def __init__(self, base_layer: nn.Module, side: Side) -> None:
        self.base_layer = base_layer
        self.side = side
        self.surgical_ia3_delta = nn.ParameterDict()
        self.coordinates: dict[str, Coordinates] = {}
        # No buffers: `to_empty` and the meta device would leave them without their values.
        self._indices: dict[str, Tensor] = {}
        self._disable_adapters = False
        # PEFT's `disable_input_dtype_casting` switches it; here nothing is cast to a weight's dtype either way.
        self.cast_input_dtype_enabled = True
        self._folded: Folded | None = None
        self.merged_adapters = []
        module = self.get_base_layer()
        in_features, out_features = features(module, "input"), features(module, "output")
        if in_features is None or out_features is None:
            raise SelectionError(f"a surgical adapter scales Linear and Conv1D modules, not {type(module).__name__}.")
        self.in_features, self.out_features = in_features, out_features

    @property
    def width(self) -> int:
        """How many coordinates the scaled side has."""
        return self.in_features if self.side == "input" else self.out_features

    def update_layer(
        self, adapter_name: str, coordinates: Coordinates, inference_mode: bool = False, init_weights: bool = True
    ) -> None:
        """Adds an adapter.

        Args:
            adapter_name: The adapter's name.
            coordinates: What it scales; on this layer's side.
            inference_mode: Whether the new parameters stay frozen.
            init_weights: Whether its scales are all 1, and random otherwise.

        Raises:
            SelectionError: If the coordinates are on the layer's other side.
        """
        if coordinates.side != self.side:
            raise SelectionError(
                f"the layer's {self.side} is scaled already, so {adapter_name!r} cannot scale its {coordinates.side}."
            )
        self.coordinates[adapter_name] = coordinates
        self._indices.pop(adapter_name, None)
        self.index(adapter_name, torch.device("cpu"))
        # From the processor, whatever the caller's default device is, it goes to where the base layer is.
        delta = torch.zeros(coordinates.n, device="cpu")
        if not init_weights:
            delta = torch.rand(coordinates.n, device="cpu") - 0.5
        self.surgical_ia3_delta[adapter_name] = nn.Parameter(delta.to(torch.float32))
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)

    def index(self, adapter_name: str, device: torch.device) -> Int[Tensor, " selected"]:
        """Returns one adapter's coordinates as single indices, ascending.

        Args:
            adapter_name: The adapter's name.
            device: Where they are needed; those of the device that was named last are kept.
        """
        held = self._indices.get(adapter_name)
        if held is not None and held.device == device:
            return held
        if device.type == "meta" or torch.compiler.is_compiling():
            # What has no values, or is a part of a graph, is of no use to another call.
            return self.coordinates[adapter_name].index(device) if held is None else held.to(device)
        # A tensor of inference mode could not be used in training later.
        with torch.inference_mode(False):
            held = self.coordinates[adapter_name].index(device)
        if type(held) is Tensor:
            self._indices[adapter_name] = held
        return held

    def scale(self, adapter_name: str) -> Float[Tensor, " selected"]:
        """Returns one adapter's factors on its coordinates, in float32."""
        delta: Tensor = self.surgical_ia3_delta[adapter_name]
        return delta.to(torch.float32) + 1

    def dense_scale(self, adapter_name: str) -> Float[Tensor, " width"]:
        """Returns one adapter's factors on every coordinate of the scaled side, in float32."""
        scale, coordinates = self.scale(adapter_name), self.coordinates[adapter_name]
        if coordinates.covers(self.width):
            return scale
        return spread(scale, self.index(adapter_name, scale.device), self.width)

    def product(self, adapter_names: list[str]) -> tuple[Coordinates, Float[Tensor, " selected"]] | None:
        """Multiplies adapters, in the order given.

        Args:
            adapter_names: Adapters, of which this layer may lack some: they count as 1.

        Returns:
            The coordinates where the product can differ from 1 and its factors there, or None if no adapter is here.
        """
        names = [name for name in adapter_names if name in self.coordinates]
        if not names:
            return None
        coordinates = self.coordinates[names[0]]
        alike = all(self.coordinates[name] == coordinates for name in names[1:])
        scale = self.scale if alike else self.dense_scale
        product = scale(names[0])
        for name in names[1:]:
            product = product * scale(name)
        return coordinates if alike else Coordinates(self.side, ((0, self.width),)), product

    def others_scale(self, adapter_name: str, adapter_names: list[str]) -> Float[Tensor, " selected"]:
        """Multiplies adapters other than one, on the coordinates of that one.

        Args:
            adapter_name: The adapter that is left out.
            adapter_names: Adapters, of which this layer may lack some: they count as 1.
        """
        product = torch.ones_like(self.scale(adapter_name))
        for name in adapter_names:
            if name != adapter_name and name in self.coordinates:
                dense = self.dense_scale(name)
                product = product * dense[self.index(adapter_name, dense.device)]
        return product

    def apply_scale(self, x: Float[Tensor, "... width"], names: list[str]) -> Float[Tensor, "... width"]:
        """Multiplies an activation by the product of adapters.

        Args:
            x: The input or output of the base layer.
            names: The active adapters.

        Returns:
            The product in the dtype of `x`; coordinates outside of the selection are copied.
        """
        found = self.product(names)
        if found is None:
            return x
        coordinates, scale = found
        if coordinates.covers(self.width):
            return (x * scale).to(x.dtype)
        index = self.index(next(name for name in names if name in self.coordinates), scale.device)
        return scale_coordinates(x, coordinates, scale, index)

    def scale_rows(self, x: Float[Tensor, "batch ... width"], names: list[str]) -> Float[Tensor, "batch ... width"]:
        """Multiplies each row of a batch by an adapter of its own.

        Args:
            x: The input or output of the base layer.
            names: One adapter, or `__base__`, per row.

        Raises:
            AdapterError: If there are not as many names as rows.
        """
        here = {name: self.dense_scale(name) for name in set(names) if name in self.coordinates}
        if not here:
            return x
        if len(names) != len(x):
            raise AdapterError(f"adapter_names has {len(names)} names for a batch of {len(x)} rows.")
        ones = torch.ones(self.width, dtype=torch.float32, device=x.device)
        rows = torch.stack([here.get(name, ones) for name in names])
        return (x * rows.view(len(x), *[1] * (x.ndim - 2), self.width)).to(x.dtype)

    def _check_precision(self, adapter_names: Sequence[str]) -> None:
        for name in adapter_names:
            delta = self.surgical_ia3_delta[name] if name in self.coordinates else None
            if delta is not None and delta.requires_grad and delta.dtype.itemsize < 4:
                warn_of_precision(delta.dtype)

    def enable_adapters(self, enabled: bool) -> None:
        """Switches the scales on or off; what trains and what is frozen stays so.

        Args:
            enabled: True for on.
        """
        self._disable_adapters = not enabled

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        # The parent class would cast to the base's dtype; scales stay in float32, and keep their requires_grad.
        if device is None:
            base = self.get_base_layer()
            device = execution_device(base) or self._get_base_layer_device_and_dtype(base)[0]
        if adapter_name not in self.coordinates or device is None or device.type == "meta":
            return
        self.index(adapter_name, device)
        old = self.surgical_ia3_delta[adapter_name]
        if old.device.type == "meta" or (old.device == device and old.dtype == torch.float32):
            return
        self.surgical_ia3_delta[adapter_name] = nn.Parameter(
            old.detach().to(device, torch.float32), requires_grad=old.requires_grad
        )


class Linear(nn.Module, SurgicalIA3Layer):
    """A `Linear`, `Conv1D` or quantized linear module with surgical scales.

    Args:
        base_layer: The module that is wrapped; it computes as it always did.
        adapter_name: The first adapter.
        coordinates: What the first adapter scales.
        inference_mode: Whether the new parameters are frozen.
        init_weights: Whether the new scales are all 1, and random otherwise.
    """

    def __init__(
        self,
        base_layer: nn.Module,
        adapter_name: str,
        coordinates: Coordinates,
        inference_mode: bool = False,
        init_weights: bool = True,
    ) -> None:
        super().__init__()
        SurgicalIA3Layer.__init__(self, base_layer, coordinates.side)
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, coordinates, inference_mode, init_weights)

    def forward(self, x: Tensor, *args: Any, adapter_names: list[str] | None = None, **kwargs: Any) -> Tensor:
        """Runs the base layer with its input or output scaled by the active adapters.

        Args:
            x: The input, `[..., in]`.
            *args: For the base layer.
            adapter_names: One adapter per row of the batch instead of the active ones, see `batches`.
            **kwargs: For the base layer.

        Returns:
            The output, `[..., out]`.

        Warns:
            UserWarning: Once for each dtype, if an active adapter is trained in less than float32.
        """
        active: Any = self.active_adapters
        scaled = self.apply_scale if adapter_names is None else self.scale_rows
        names = active if adapter_names is None else adapter_names
        if self.disable_adapters and self.merged:
            self.unmerge()
        # Compiled, a forward has no place for a warning.
        if self.training and not self.disable_adapters and not torch.compiler.is_compiling():
            self._check_precision(active)
        if self.disable_adapters or self.merged:
            output: Tensor = self.base_layer(x, *args, **kwargs)
        elif self.side == "input":
            output = self.base_layer(scaled(x, names), *args, **kwargs)
        else:
            output = scaled(self.base_layer(x, *args, **kwargs), names)
        return output

    def __repr__(self) -> str:
        return "surgical_ia3." + super().__repr__()


def layers_by_name(model: nn.Module) -> dict[str, SurgicalIA3Layer]:
    """A model's surgical layers, by their names in it."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, SurgicalIA3Layer)}


def surgical_in(module: nn.Module) -> SurgicalIA3Layer | None:
    """The surgical layer that a module is, or that adapters of another method lie over."""
    while isinstance(module, BaseTunerLayer) and not isinstance(module, SurgicalIA3Layer):
        module = module.base_layer
    return module if isinstance(module, SurgicalIA3Layer) else None


def own_names(model: nn.Module) -> dict[str, str]:
    """What a model's surgical layers are called where nothing is around them, by their names in it: other adapters may
    have been put over them, and modules have been compiled, since they were put on."""
    modules = dict(model.named_modules())
    found = {}
    for name in layers_by_name(model):
        parts = name.split(".")
        within = [modules[".".join(parts[:place])] for place in range(len(parts))]
        found[name] = uncompiled(
            ".".join(
                part
                for part, parent in zip(parts, within, strict=True)
                if part != "base_layer" or not isinstance(parent, BaseTunerLayer)
            )
        )
    return found


def layers_with(adapter: str, model: nn.Module) -> list[SurgicalIA3Layer]:
    """The layers of a model that hold an adapter's scales, in the model's order."""
    return [layer for layer in layers_by_name(model).values() if adapter in layer.coordinates]
