"""How an adapter comes to a model that has others: in place of one of its name, and off where these are off."""

from __future__ import annotations

from peft.tuners.tuners_utils import BaseTunerLayer, onload_layer
from peft.utils.other import ModulesToSaveWrapper
from torch import nn

from .layer import layers_with
from .unchanged import trainable_kept
from .whole import whole_modules


def take_off(name: str, model: nn.Module) -> None:
    """Takes what an adapter of that name has off a model, scales and modules that it saves whole, if there is one.

    Put on a base under the name of an adapter that is there, PEFT's own methods begin anew on all of its modules. The
    modules of a surgical adapter are not those of another one, so that scales of both would act.

    Args:
        name: The adapter's name.
        model: The model. Layers that hold no adapter any more stay for [`make_place`] to take off.
    """
    layers = layers_with(name, model)
    for layer in layers:
        with onload_layer(layer):
            # Another one cannot be put on while any is merged: PEFT unmerges them all.
            layer.merge_only([])
        # As PEFT's `delete_adapter` of a layer, which would also let others act and train in its place.
        for kept in (*layer.adapter_layer_names, *layer.other_param_names):
            if name in (held := getattr(layer, kept)):
                del held[name]
    # Without a surgical adapter of that name they are another method's.
    for wrapper, names in whole_modules(model) if layers else ():
        if isinstance(wrapper, ModulesToSaveWrapper) and name in names:
            wrapper.delete_adapter(name, [])


def all_off(model: nn.Module) -> bool:
    """Whether a model has adapters, of whatever method, and all of them are switched off."""
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    off = [layer.disable_adapters for layer in layers if layer._all_available_adapter_names()]
    return bool(off) and all(off)


def switch_off(name: str, model: nn.Module) -> None:
    """Switches an adapter's layers off, and the modules that it saves whole; what trains and what is frozen stays so.

    Args:
        name: The adapter's name.
        model: The model.
    """
    for layer in layers_with(name, model):
        layer.enable_adapters(False)
    for wrapper, held in whole_modules(model):
        if name in held:
            with trainable_kept(wrapper.parameters()):
                wrapper.enable_adapters(False)
