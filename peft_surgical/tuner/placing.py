"""Making place for an adapter: all of it is checked before the first module is replaced, so that a refusal leaves the
model as it was."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from peft.utils.other import ModulesToSaveWrapper
from torch import nn
from transformers.pytorch_utils import Conv1D

from ..errors import SelectionError
from ..wrapped import check_uncompiled
from .config import SurgicalIA3Config
from .layer import SurgicalIA3Layer, layers_by_name, surgical_in
from .targets import check_target, find_module, unwrapped


def make_place(config: SurgicalIA3Config, model: nn.Module, model_config: Mapping[str, Any]) -> None:
    """Checks that a model has a place for an adapter, and takes off what adapters that were deleted have left on it.

    Args:
        config: The adapter's configuration, resolved; it is told how wide the modules are and how they are laid out.
        model: The model, with adapters on it or none.
        model_config: Its own configuration.

    Raises:
        SelectionError: If the model does not have a module or a coordinate of it, another adapter scales a module's
            other side, or a module would be scaled and saved whole at once.
        ArchitectureError: If a module that components were looked up in is laid out otherwise than the model's
            configuration says.
    """
    with _without_bare(model):
        first_names = {id(module): name for name, module in model.named_modules()}
        for name in (*layers_by_name(model), *config.coordinates):
            if any(f".{whole}." in f".{name}." for whole in config.modules_to_save or ()):
                raise SelectionError(f"{name} cannot be scaled and be in modules_to_save at once.")
        widths, transposed = {}, False
        for name, coordinates in config.coordinates.items():
            module = find_module(model, name)
            first = first_names[id(module)]
            check_uncompiled([first])
            if first != name:
                raise SelectionError(f"{name} is another name of {first}; select that one.")
            widths[name] = check_target(name, module, coordinates, (config.features or {}).get(name))
            held = surgical_in(module)
            if held is not None and held.side != coordinates.side:
                raise SelectionError(
                    f"another adapter scales the {held.side} of {name}, so this one cannot scale its"
                    f" {coordinates.side}."
                )
            transposed |= isinstance(unwrapped(module), Conv1D)
        config.check_made_for(model_config, widths)
    config.features, config.fan_in_fan_out = widths, transposed


@contextmanager
def _without_bare(model: nn.Module) -> Iterator[None]:
    """Takes off the layers and wrappers that hold no adapter any more; they are back if the block raises.

    They compute what is in them, and would keep a module on one side, or from being saved whole.
    """
    taken = []
    for parent in [*model.modules()]:
        for name, child in parent._modules.items():
            if isinstance(child, SurgicalIA3Layer) and not child.coordinates and not child.merged:
                taken.append((parent, name, child, child.base_layer))
            elif isinstance(child, ModulesToSaveWrapper) and not child._adapters:
                taken.append((parent, name, child, child.original_module))
    for parent, name, _, inside in taken:
        setattr(parent, name, inside)
    try:
        yield
    except BaseException:
        for parent, name, outside, _ in taken:
            setattr(parent, name, outside)
        raise
