"""Taking adapters off a model of which only the inside is at hand."""

from __future__ import annotations

from typing import Any

from peft import AdaptionPromptModel, PeftMixedModel, PeftModel
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, onload_layer
from torch import nn

from ..errors import AdapterError
from ..wrapped import check_module
from .kinds import OF_ADAPTERS, bare, has_adapters
from .layer import SurgicalIA3Layer, layers_by_name
from .whole import let_whole_act

# What PEFT's files put before the names of a model's modules.
_PREFIX = "base_model."


def check_unmerged(name: str, module: nn.Module) -> None:
    """Refuses a module with an adapter merged into its weights, in which it would stay.

    Args:
        name: Its name, for the message.
        module: Any module.

    Raises:
        AdapterError: If it has one.
    """
    if isinstance(module, BaseTunerLayer) and module.merged:
        raise AdapterError(f"{name} has an adapter merged into its weights; unmerge it first.")


def take_out(model: nn.Module) -> None:
    """Puts the weights back into which surgical scales are merged, the very same ones.

    Args:
        model: What holds the layers.

    Raises:
        AdapterError: If an adapter of another method is merged, which may not come out exactly; nothing is changed.
    """
    for name, module in model.named_modules():
        if not isinstance(module, SurgicalIA3Layer):
            check_unmerged(name, module)
    for layer in layers_by_name(model).values():
        with onload_layer(layer):
            layer.merge_only([])


def unload(model: Any) -> Any:
    """Takes all adapters off a model, whichever way they were put there, so that it can be edited again.

    What `PeftModel.unload` does, and what nobody can call who holds the model inside only, as after `edit`.

    Args:
        model: A PEFT model, also one around another or of several methods (`mixed=True`), or a model with adapters on
            its modules. Those are replaced in place.

    Returns:
        The bare model, every weight as it was; it stays frozen.

    Raises:
        ModelError: If it is no model.
        AdapterError: If an adapter is merged into the weights, in which it would stay.
    """
    check_module(model)
    inside, around = model, 0
    while isinstance(inside, PeftModel | PeftMixedModel):
        inside, around = _within(inside), around + 1
    for name, module in inside.named_modules():
        check_unmerged(name, module)
    # PEFT takes only the innermost off that is around a model.
    if around < 2 and isinstance(model, PeftModel) and isinstance(model.base_model, BaseTuner):
        # PEFT leaves what acts in a module's place.
        let_whole_act(inside, [])
        return model.unload()
    while has_adapters(inside):
        _take_off_outermost(inside)
    if hasattr(inside, "peft_config"):
        del inside.peft_config
    # Where transformers put them there.
    if getattr(inside, "_hf_peft_config_loaded", False):
        inside._hf_peft_config_loaded = False
        _forget_renaming(inside)
    return inside


def _within(model: PeftModel | PeftMixedModel) -> Any:
    """What a PEFT model is around. Of two around a model, the inner one's configuration is the outer one's."""
    base = model.base_model
    return base.model if isinstance(base, (BaseTuner, AdaptionPromptModel)) else base


def _take_off_outermost(model: nn.Module) -> None:
    """Puts back the modules that something of an adapter is on. There may be more within."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if isinstance(module, OF_ADAPTERS) and not any(name.startswith(f"{outer}.") for outer in found):
            found[name] = module
    for name, module in found.items():
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, bare(module))


def _forget_renaming(model: Any) -> None:
    """Lets transformers save a model under its own names again: what it read an adapter's file by, it saves by."""
    kept = vars(model).get("_weight_conversions") or ()
    if any(name.startswith(_PREFIX) for entry in kept for name in entry.source_patterns):
        del model._weight_conversions
