"""Mass-editing memory (MEMIT; Meng et al., "Mass-Editing Memory in a Transformer", arXiv 2210.07229).

As [ROME][benchmarks.baselines.rome], with many values at once, each spread over the MLPs of several layers. A δ is
sought for each request for the output of the last of them, as a whole layer, before any weight is changed. Then, layer
after layer, what the values still lack is shared out among the layers that are left: with R these shares, and K for
each request the mean of the key of the prompt alone and the mean key behind the contexts, both as the layers before
have been changed,

    W ← W + R Kᵀ (λ C + K Kᵀ)⁻¹

λ weighs what is known against what is new. Layers and constants are EasyEdit's for Llama models, and what else the
subject is, is kept by what follows its last token, as there. C is of the text that the package carries, where EasyEdit
reads 100,000 samples of Wikipedia, and needs a ridge; so EasyEdit's λ, 15,000, was not taken but one with which
development cases, edited singly, prefer the new answer by more. Of what earlier batches have written MEMIT knows
nothing but what the weights say.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn

from peft_surgical.architectures import decoder_layers

from .batches import InBatches, add_values, gains, some
from .covariances import TEXTS, WINDOW, covariances, with_ridge
from .method import Request, Write
from .mlps import edited_layers, output_projection
from .restoring import weights_restored
from .values import Asked, Objective

Matrix = Float[Tensor, "neuron neuron"]


@dataclass(frozen=True)
class Memit(InBatches):
    """Writes keys and shares of their values into each of several MLPs.

    Attributes:
        learning_rate: Adam's, for δ.
        known: λ, what is known weighs against what is new.
        ridge: Added to the covariances' diagonals, as a multiple of the diagonal's mean.
    """

    name: ClassVar[str] = "memit"
    learning_rate: float = 0.5
    known: float = 500.0
    ridge: float = 0.01
    _away: Any = field(default_factory=WeakKeyDictionary, compare=False, repr=False)

    @contextmanager
    def sequence(self, model: Any, tokenizer: Any, seed: int) -> Iterator[Write]:
        """Hands out what adds a batch's updates, and copies the weights back afterwards."""
        layers = edited_layers(model)
        if model not in self._away:
            found = covariances(model, tokenizer, layers)
            self._away[model] = {layer: self.away_from(found[layer]) for layer in layers}
        away = dict(self._away[model])
        projections = {layer: output_projection(model, layer) for layer in layers}
        last = decoder_layers(model)[layers[-1]]

        def write(requests: Sequence[Request]) -> None:
            asked = [Asked(model, tokenizer, one, layers[0], kl_at_subject=True) for one in some(requests)]
            wanted = torch.stack([self._wanted(one, last) for one in asked])
            for number, layer in enumerate(layers):
                keys, values = _met(asked, projections[layer], last)
                read = gains(keys, away[layer], self.known)
                add_values(projections[layer], (wanted - values) / (len(layers) - number), read)
                away[layer] = self.away_after(away[layer], keys, read)

        with weights_restored([projection.weight for projection in projections.values()]):
            yield write

    def _wanted(self, asked: Asked, last: nn.Module) -> Float[Tensor, " model"]:
        """What the last layer should give at a subject for its new answer to follow."""
        value = asked.at_subject(last)[0][1][0]
        return value + asked.delta(last, value, Objective(self.learning_rate))

    def away_from(self, covariance: Matrix) -> Matrix:
        """What turns a key away from common ones: C⁻¹."""
        inverse: Tensor = torch.linalg.inv(with_ridge(covariance, self.ridge))
        return inverse

    def away_after(self, away: Matrix, keys: Float[Tensor, "request neuron"], read: Tensor) -> Matrix:
        """What turns later batches' keys away, once these have been written: the same."""
        return away

    def recipe(self, model: Any) -> dict[str, Any]:
        """How δ is sought, what the covariances are of, and the layers."""
        return {**Objective().recipe(), "texts": list(TEXTS), "window": WINDOW, "layers": edited_layers(model)}


def _met(
    asked: Sequence[Asked], projection: nn.Module, last: nn.Module
) -> tuple[Float[Tensor, "request neuron"], Float[Tensor, "request model"]]:
    """Each request's key in a projection, and the last layer's output at its bare prompt, as the weights are now."""
    keys, values = [], []
    for one in asked:
        (entering, _), (_, leaving) = one.at_subject(projection, last)
        keys.append((entering[0] + entering[1:].mean(0)) / 2 if len(entering) > 1 else entering[0])
        values.append(leaving[0])
    return torch.stack(keys), torch.stack(values)
