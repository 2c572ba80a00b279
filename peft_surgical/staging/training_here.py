"""Training that comes out the same whatever mode its caller is in, and of nothing but an adapter."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ..errors import AdapterError, ModelError
from ..running.overlapping import Overlapping
from ..running.precision import without_autocast
from ..tuner.unchanged import trainable_kept
from ..wrapped import check_uncompiled

# Torch's stance is the whole process's.
_uncompiled = Overlapping(lambda: torch.compiler.set_stance("force_eager"))


@contextmanager
def training_here(model: Any) -> Iterator[None]:
    """Lets a model be trained in a block as its recipe says, with `torch.no_grad` or `torch.autocast` around it or
    not, wrapped by accelerate for mixed precision or not, and compiled in place or not.

    Raises:
        ModelError: If `torch.compile` wrapped the model, or under `torch.inference_mode`, be it where the model was
            loaded.
        AdapterError: If adapters of the model are switched off.
    """
    check_uncompiled(name for name, _ in model.named_modules())
    if torch.is_inference_mode_enabled():
        raise ModelError("a stage cannot be trained under torch.inference_mode; call it outside of that.")
    if any(tensor.is_inference() for tensor in (*model.parameters(), *model.buffers())):
        raise ModelError(
            "the model was loaded under torch.inference_mode, and what is computed with its weights has no gradient;"
            " load it outside of that."
        )
    if any(isinstance(module, BaseTunerLayer) and module.disable_adapters for module in model.modules()):
        raise AdapterError(
            "the model's adapters are switched off, and a stage trains on top of them; call enable_adapter_layers(),"
            " or leave disable_adapter(), first."
        )
    # Training stands on the modules' forwards, which a compiled model does not call.
    with torch.enable_grad(), _uncompiled(), without_autocast(model):
        yield


@contextmanager
def training_only(model: Any, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Freezes all but these parameters of a model in this block, so that it adds nothing to the gradients of what
    somebody else trains."""
    wanted = {id(parameter) for parameter in parameters}
    with trainable_kept(model.parameters()):
        for parameter in model.parameters():
            parameter.requires_grad_(parameter.requires_grad and id(parameter) in wanted)
        yield
