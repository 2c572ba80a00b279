"""ROME with a covariance of keys, estimated from the text that the package carries.

A key is worth leaving alone in so far as other text uses it: C⁻¹ turns the update away from what is common. The text
has a few thousand tokens, hardly more than an MLP has neurons, so the estimate needs a ridge.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import resources
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor

from .mlps import output_projection
from .rome import Rome

WINDOW = 256
# Not retention.txt: on that text unrelated change is measured.
TEXTS = ("everyday.txt", "general.txt")


@dataclass(frozen=True)
class RomeWithCovariance(Rome):
    """Writes one key and value into an MLP, away from common keys.

    Attributes:
        ridge: Added to the covariance's diagonal, as a multiple of the diagonal's mean.
    """

    name: ClassVar[str] = "rome_cov"
    ridge: float = 0.01
    _covariances: Any = field(default_factory=WeakKeyDictionary, compare=False, repr=False)

    def recipe(self, model: Any) -> dict[str, Any]:
        """As of [`Rome`], and what the covariance is of."""
        return {**super().recipe(model), "texts": list(TEXTS), "window": WINDOW}

    def direction(self, model: Any, tokenizer: Any, layer: int, key: Float[Tensor, " neuron"]) -> Tensor:
        """C⁻¹ k; the covariance is worked out once a model."""
        if model not in self._covariances:
            self._covariances[model] = covariance(model, tokenizer, layer)
        found: Tensor = self._covariances[model]
        ridge = self.ridge * found.diagonal().mean() * torch.eye(len(found), dtype=found.dtype, device=found.device)
        direction: Tensor = torch.linalg.solve(found + ridge, key.to(found))
        return direction.to(key)


@torch.no_grad()
def covariance(model: Any, tokenizer: Any, layer: int) -> Float[Tensor, "neuron neuron"]:
    """The mean outer product of an MLP's keys over the package's text, in float64.

    Args:
        model: The base.
        tokenizer: Without a chat template.
        layer: Which MLP.
    """
    total, count = torch.zeros(()), 0

    def add(_: Any, args: tuple[Tensor, ...]) -> None:
        nonlocal total, count
        keys = args[0].flatten(0, -2).double()
        total, count = total.to(keys) + keys.T @ keys, count + len(keys)

    handle = output_projection(model, layer).register_forward_pre_hook(add)
    try:
        for name in TEXTS:
            text = resources.files("peft_surgical").joinpath("data", name).read_text(encoding="utf-8")
            ids = torch.tensor(tokenizer(text)["input_ids"], device=model.device)
            for window in ids.split(min(WINDOW, getattr(model.config, "max_position_embeddings", None) or WINDOW)):
                model(input_ids=window[None], use_cache=False, logits_to_keep=1)
    finally:
        handle.remove()
    return total / count
