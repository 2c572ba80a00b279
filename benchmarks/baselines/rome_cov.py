"""ROME with a covariance of keys, estimated from the text that the package carries.

A key is worth leaving alone in so far as other text uses it: C⁻¹ turns the update away from what is common. The text
has a few thousand tokens, hardly more than an MLP has neurons, so the estimate needs a ridge.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor

from .covariances import TEXTS, WINDOW, covariances, with_ridge
from .rome import Rome


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
            self._covariances[model] = covariances(model, tokenizer, [layer])[layer]
        found = with_ridge(self._covariances[model], self.ridge)
        direction: Tensor = torch.linalg.solve(found, key.to(found))
        return direction.to(key)
