"""Updates of low rank on a bare model, as a stock LoRA adapter: placed and made final."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from ..adapters.bases import revision_of
from ..adapters.halves import rounded
from ..stages import LEARN
from ..staging.placeable import check_at_hand
from ..tuner.targets import find_module


def place_updates(model: Any, ranks: Mapping[str, int]) -> PeftModel:
    """Puts updates that change nothing on a bare model, as a LoRA adapter named `learn`.

    Args:
        model: The model.
        ranks: Names of its modules, and of which rank the update of each is.

    Raises:
        SelectionError: If the model has no such module.
        ModelError: If their weights are offloaded.
    """
    for name in ranks:
        find_module(model, name)
    check_at_hand(model, ranks)
    more = {name: rank for name, rank in ranks.items() if rank > 1}
    config = LoraConfig(
        r=1,
        lora_alpha=1,
        target_modules=list(ranks),
        # As large as its rank, for a factor of 1.
        rank_pattern=more,
        alpha_pattern=more,
        fan_in_fan_out=isinstance(model.get_submodule(next(iter(ranks))), Conv1D),
        task_type="CAUSAL_LM",
        revision=revision_of(model),
    )
    # Numbers that are overwritten must not move anybody's generator.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        return get_peft_model(model, config, adapter_name=LEARN).eval()


@torch.no_grad()
def settle(values: Mapping[str, nn.Parameter]) -> None:
    """Rounds values to half precision, so that what is measured is what is saved."""
    for value in values.values():
        value.copy_(rounded(value))


def frozen(model: PeftModel) -> PeftModel:
    """The model, with nothing left to train."""
    return model.requires_grad_(False)
