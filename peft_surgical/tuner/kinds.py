"""What PEFT's methods put in the place of a model's own modules."""

from __future__ import annotations

from typing import Any

from peft.tuners.adaption_prompt.layer import AdaptedAttention, AdaptedAttentionGPT
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

ADAPTED_ATTENTION = (AdaptedAttention, AdaptedAttentionGPT)
"""What learned tokens act in (LLaMA-Adapter). PEFT takes it off the model where it does not act."""

OF_ADAPTERS = (BaseTunerLayer, AuxiliaryTrainingWrapper, *ADAPTED_ATTENTION)


def has_adapters(model: nn.Module) -> bool:
    """Whether something of an adapter stands on a model's modules, whether or not it acts."""
    return any(isinstance(module, OF_ADAPTERS) for module in model.modules())


def bare(module: Any) -> nn.Module:
    """The model's own module below what is one of [`OF_ADAPTERS`]."""
    if isinstance(module, BaseTunerLayer):
        found: nn.Module = module.get_base_layer()
    else:
        found = module.model if isinstance(module, ADAPTED_ATTENTION) else module.original_module
    return found
