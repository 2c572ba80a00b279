"""Which keys are common: uncentred covariances of what enters MLPs' output projections over the package's text."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .mlps import output_projection

WINDOW = 256
# Not retention.txt: on that text unrelated change is measured.
TEXTS = ("everyday.txt", "general.txt")


@torch.no_grad()
def covariances(model: Any, tokenizer: Any, layers: Sequence[int]) -> dict[int, Float[Tensor, "neuron neuron"]]:
    """The mean outer product of MLPs' keys over the package's text, in float64, by layer.

    Args:
        model: The base.
        tokenizer: Without a chat template.
        layers: Which MLPs.
    """
    totals: dict[int, Tensor] = {}
    count = 0

    def add(layer: int, args: tuple[Tensor, ...]) -> None:
        keys = args[0].flatten(0, -2).double()
        totals[layer] = totals.get(layer, 0) + keys.T @ keys

    handles = [
        output_projection(model, layer).register_forward_pre_hook(lambda _, args, layer=layer: add(layer, args))
        for layer in layers
    ]
    try:
        for name in TEXTS:
            text = resources.files("peft_surgical").joinpath("data", name).read_text(encoding="utf-8")
            ids = torch.tensor(tokenizer(text)["input_ids"], device=model.device)
            count += len(ids)
            for window in ids.split(min(WINDOW, getattr(model.config, "max_position_embeddings", None) or WINDOW)):
                model(input_ids=window[None], use_cache=False, logits_to_keep=1)
    finally:
        for handle in handles:
            handle.remove()
    return {layer: total / count for layer, total in totals.items()}


def with_ridge(found: Float[Tensor, "neuron neuron"], ridge: float) -> Float[Tensor, "neuron neuron"]:
    """A covariance whose diagonal has this multiple of its mean more, so that it can be inverted."""
    return found + ridge * found.diagonal().mean() * torch.eye(len(found), dtype=found.dtype, device=found.device)
