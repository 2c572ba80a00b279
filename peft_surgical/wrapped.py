"""Models that something stands around, so that their modules are not those of the architecture."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from .errors import ModelError, brief

COMPILED = "_orig_mod"


def is_spread(tensor: Tensor) -> bool:
    """Whether a tensor is spread over processes, by FSDP2 or tensor parallelism; torch may be built without either."""
    if not torch.distributed.is_available():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def uncompiled(name: str) -> str:
    """The name that a module has without `torch.compile`, which wraps it under one of its own."""
    return ".".join(part for part in name.split(".") if part != COMPILED)


def check_uncompiled(names: Iterable[str]) -> None:
    """Refuse a model that torch.compile wrapped: its modules have names that no other model has.

    Args:
        names: The names of its modules.

    Raises:
        ModelError: If a name is one that torch.compile gives.
    """
    if any(uncompiled(name) != name for name in names):
        raise ModelError(
            "the model is wrapped by torch.compile; put the adapter on the model before compiling it, or compile in"
            " place with model.compile()."
        )


def check_no_bridge(model: object) -> None:
    """Refuse TransformerLens' own kinds of model, which take other arguments than a Hugging Face model.

    Raises:
        ModelError: If it is one.
    """
    if type(model).__module__.partition(".")[0] == "transformer_lens":
        raise ModelError(f"the model is a {type(model).__name__} of TransformerLens; give a Hugging Face model.")


def check_module(model: object) -> None:
    """Refuse what is no model, such as the pair that `load_model` gives, or a stage.

    Raises:
        ModelError: If it is none.
    """
    if not isinstance(model, nn.Module):
        hint = "; give its model" if isinstance(getattr(model, "model", None), nn.Module) else ""
        raise ModelError(f"a model must be a torch module, such as load_model gives, not {brief(model)}{hint}.")


def check_not_parallel(model: object) -> None:
    """Refuse a model under torch's wrappers of data parallelism, which have neither its configuration nor its methods.

    Raises:
        ModelError: If it is one, or no model at all.
    """
    check_module(model)
    if type(model).__name__ in ("DataParallel", "DistributedDataParallel"):
        raise ModelError(f"the model is wrapped by {type(model).__name__}; give what it wraps, its `module`.")


def check_unwrapped(model: nn.Module) -> None:
    """Refuse a model under TransformerLens hooks or torch's wrappers of data parallelism: its modules are of other
    names and kinds than any other model's.

    Raises:
        ModelError: If it is one, or the bridge itself, or no model at all.
    """
    check_not_parallel(model)
    if any(type(module).__module__.partition(".")[0] == "transformer_lens" for module in model.modules()):
        raise ModelError(
            "the model is under TransformerLens hooks already, which replaced its modules; load it anew as a Hugging"
            " Face model, and use that."
        )
