"""Several adapters active at once, of which only some are trained: what a stage on top of a frozen stage needs."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from ..errors import AdapterError
from ..wrapped import check_module
from .layer import layers_by_name
from .model import SurgicalIA3Model
from .names import check_once, names_of
from .whole import check_one_whole, let_act, whole_modules


def activate(model: nn.Module, adapters: str | Iterable[str], trainable: str | Iterable[str] = ()) -> None:
    """Makes several adapters active at once, and only the named ones trainable.

    PEFT's `PeftModel.set_adapter` takes one name only, and the tuner's own makes every active adapter trainable; a
    stage that trains on top of a frozen one needs this:

        >>> activate(peft_model, ["unlearn", "learn"], trainable=["learn"])

    Args:
        model: A `PeftModel`, or any model with surgical layers in it. Modules that an adapter saves whole
            (`modules_to_save`) act and train with it.
        adapters: The adapters that multiply in the forward pass, in this order; one, several, or none.
        trainable: Those of `adapters` that get gradients.

    Raises:
        ModelError: If it is no model.
        AdapterError: If what is given is no name and no list of names, the model has no surgical adapter of a name, a
            name is given twice, a trainable adapter is not active, or two of them save the same module whole, of which
            only one can act.
    """
    check_module(model)
    adapters, trainable = names_of(adapters), names_of(trainable)
    layers = layers_by_name(model).values()
    known = {name for layer in layers for name in layer.coordinates}
    if unknown := [name for name in adapters if name not in known]:
        raise AdapterError(f"there is no surgical adapter named {unknown[0]!r}; the model has {sorted(known)}.")
    check_once(adapters)
    if idle := [name for name in trainable if name not in adapters]:
        raise AdapterError(f"{idle[0]!r} cannot be trained while it is not active; active are {adapters}.")
    check_one_whole(model, adapters)
    tuner = next((module for module in model.modules() if isinstance(module, SurgicalIA3Model)), None)
    if tuner is not None:
        tuner.set_adapter(adapters, inference_mode=True)
    else:
        let_act(model, adapters)
    for module in [*layers, *(wrapper for wrapper, _ in whole_modules(model))]:
        module.set_requires_grad(trainable, True)
    # A PeftModel takes the configuration of its "active adapter" from one name.
    if adapters and tuner is not None and isinstance(getattr(model, "active_adapter", None), str):
        setattr(model, "active_adapter", (trainable or adapters)[-1])  # noqa: B010 - Module's annotations forbid a str
