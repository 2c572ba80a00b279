"""What a model must be like to get an adapter."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer

from ..errors import AdapterError, ModelError, SelectionError
from ..running.modes import base_model_of
from ..running.sharing import is_sharded
from ..tuner.kinds import has_adapters
from ..wrapped import check_unwrapped


def check_bare(model: Any, what: str) -> None:
    """Refuses a model with adapters, or one whose modules are not whole.

    Args:
        model: The model.
        what: What needs another one, for the message.

    Raises:
        AdapterError: If it has adapters, even if it is the model inside of a PEFT model.
        ModelError: If it is spread over processes, or under TransformerLens hooks.
    """
    check_unwrapped(model)
    if isinstance(model, PeftModel) or has_adapters(model):
        raise AdapterError(
            f"{what} takes a bare model, and this one has adapters; merge them, or take them off by"
            " peft_surgical.unload(model)."
        )
    if is_sharded(model):
        raise ModelError(f"{what} reads whole modules, and this model's are spread over processes.")


def check_whole(model: Any) -> None:
    """Refuses a model that has adapters and is no PEFT model: a new adapter would act on top of them unnoticed. And
    one into which an adapter is merged that is not active: it would be taken out unnoticed.

    Raises:
        AdapterError: If it is such a model.
        ModelError: If it is under TransformerLens hooks.
    """
    check_unwrapped(model)
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    if not isinstance(model, PeftModel) and has_adapters(model):
        raise AdapterError(
            "the model has adapters on it, put there by transformers or by a PEFT model around it, as by an earlier"
            " edit; give that PEFT model, or take them off by peft_surgical.unload(model)."
        )
    merged = (name for layer in layers for name in layer.merged_adapters if name not in layer.active_adapters)
    if (name := next(merged, None)) is not None:
        raise AdapterError(
            f"the adapter {name!r} is merged into the model and not active; unmerge or activate it first."
        )


def check_free(model: Any, names: Iterable[str]) -> None:
    """Refuses a model that has an adapter of a name already.

    Args:
        model: The model, bare or with adapters.
        names: The names of the adapters to come.

    Raises:
        AdapterError: If one of them is taken.
    """
    if isinstance(model, PeftModel) and (taken := next((name for name in names if name in model.peft_config), None)):
        # PEFT cannot run a model without any.
        way = "delete it first" if len(model.peft_config) > 1 else "give what the model's unload() returns"
        raise AdapterError(f"the model already has an adapter named {taken!r}; {way}.")


def check_at_hand(model: Any, names: Iterable[str]) -> None:
    """Refuses modules that no adapter can be trained on, as their weights are offloaded.

    Args:
        model: The model, bare or with adapters.
        names: The modules' names. One that the model does not have is passed over.

    Raises:
        ModelError: If there are any. The message names the first.
    """
    modules = dict(base_model_of(model).named_modules())
    for name in names:
        if name in modules and any(parameter.is_meta for parameter in modules[name].parameters()):
            raise ModelError(f"{name} has no weights at hand to train an adapter on: they are offloaded.")


def check_below_head(model: Any, names: Iterable[str]) -> None:
    """Refuses the output head: a stage runs it apart, on the tokens alone whose predictions are read.

    Args:
        model: The model, bare or with adapters.
        names: The modules' names. One that the model does not have is passed over.

    Raises:
        SelectionError: If one of them is the head or a part of it.
    """
    base = base_model_of(model)
    head = base.get_output_embeddings()
    if head is None:
        return
    parts, modules = {id(part) for part in head.modules()}, dict(base.named_modules(remove_duplicate=False))
    if (name := next((name for name in names if id(modules.get(name)) in parts), None)) is not None:
        raise SelectionError(f"a stage trains on what lies below the output head; leave {name} out of the selection.")
