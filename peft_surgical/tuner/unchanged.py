"""What is done to a model and leaves it as it was: always, or if it fails."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from .layer import SurgicalIA3Layer

# They hold in attributes which adapters act, and whether these are switched off.
_OF_PEFT = (PeftModel, BaseTuner, BaseTunerLayer, AuxiliaryTrainingWrapper)

# PEFT hooks the embeddings of a model with gradient checkpointing, and transformers holds what takes that off again.
_OF_HOOKS = ("_require_grads_hook", "_require_grads_hooks")

# Which adapters a layer or a wrapper holds.
_IN_PLACE = ("coordinates", "_indices", "_adapters")


@contextmanager
def trainable_kept(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Puts back which of these parameters train, whatever this block makes of it."""
    held = [(parameter, parameter.requires_grad) for parameter in parameters]
    try:
        yield
    finally:
        for parameter, flag in held:
            parameter.requires_grad_(flag)


@contextmanager
def base_of(model: Any) -> Iterator[None]:
    """Switches every adapter on `model` off in this block. What was on and trainable is so again afterwards; what was
    merged has been taken out of the weights, and acts beside them."""
    kinds = BaseTunerLayer | AuxiliaryTrainingWrapper
    layers = [module for module in model.modules() if isinstance(module, kinds) and not module.disable_adapters]
    # PEFT's own layers train all that acts once they are switched on.
    with trainable_kept(parameter for layer in layers for parameter in layer.parameters()):
        try:
            for layer in layers:
                layer.enable_adapters(False)
            yield
        finally:
            for layer in layers:
                layer.enable_adapters(True)


@contextmanager
def embeddings_unhooked(model: Any) -> Iterator[None]:
    """Takes off again what PEFT hooks onto the embeddings of a model with gradient checkpointing in this block.

    It makes their output require gradients, which training here does not need, and stays when adapters are taken off.

    Args:
        model: A bare model that becomes a PEFT model in the block. What was hooked before stays.
    """
    held = {name: vars(model).pop(name) for name in _OF_HOOKS if name in vars(model)}
    try:
        yield
    finally:
        for hook in vars(model).get("_require_grads_hooks", ()):
            hook.remove()
        for name in _OF_HOOKS:
            vars(model).pop(name, None)
        vars(model).update(held)


@contextmanager
def notes_kept_on_failure(model: Any) -> Iterator[None]:
    """Puts back what PEFT and transformers note on a model of its adapters, if this block, which puts one on, raises.

    Args:
        model: A model with adapters on it or none.
    """
    held = getattr(model, "peft_config", None)
    configs = dict(held or {})
    try:
        yield
    except BaseException:
        if held is not None:
            held.clear()
            held.update(configs)
        elif getattr(model, "_hf_peft_config_loaded", False):
            # transformers says so before it asks PEFT.
            model._hf_peft_config_loaded = False
        raise


@contextmanager
def unchanged_on_failure(model: Any) -> Iterator[None]:
    """Puts a model back as it was if this block raises: its layers, its adapters, which of these act, which parameters
    train, each module's mode and what hooks its forward.

    Args:
        model: A bare model, or one with adapters or its tuner, that gets another one in the block.
    """
    adapted = isinstance(model, (PeftModel, BaseTuner))
    held = model.peft_config if adapted else vars(model).get("peft_config")
    configs = dict(held or {})
    modules = [(m, _own(m), dict(m._modules), dict(m._forward_hooks)) for m in model.modules()]
    merged = [(m, list(m.merged_adapters)) for m in model.modules() if isinstance(m, SurgicalIA3Layer)]
    trainable = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    except BaseException:
        # An interrupt may have come while layers were being put in, so PEFT need not know of them.
        for module, own, children, hooks in modules:
            for name in _OF_HOOKS:
                vars(module).pop(name, None)
            vars(module).update(own)
            for held_now, before in ((module._modules, children), (module._forward_hooks, hooks)):
                held_now.clear()
                held_now.update(before)
        for layer, names in merged:
            # To make others act takes what is merged out of the weights.
            layer.merge_only(names)
        if adapted:
            for name in [name for name in model.peft_config if name not in configs]:
                model.delete_adapter(name)
        else:
            # PEFT notes on the model what it has put on it.
            vars(model).pop("peft_config", None)
            if held is not None:
                held.clear()
                held.update(configs)
                vars(model)["peft_config"] = held
        for parameter, flag in trainable:
            parameter.requires_grad_(flag)
        raise


def _own(module: Any) -> dict[str, Any]:
    """The attributes of a module that are to be put back. Those that describe its weights are left out."""
    if isinstance(module, nn.ParameterDict):
        # Scales come into one and leave it by name.
        return {"training": module.training} | {name: dict(vars(module)[name]) for name in ("_keys", "_parameters")}
    if not isinstance(module, _OF_PEFT):
        kept = ("training", *_OF_HOOKS)
        return {name: vars(module)[name] for name in kept if name in vars(module)}
    own = {name: value for name, value in vars(module).items() if name not in ("merged_adapters", "_folded")}
    # These are added to in place, as PEFT does with its lists of targets.
    copied = {name: copy(value) for name, value in own.items() if isinstance(value, list) or name in _IN_PLACE}
    return own | copied
