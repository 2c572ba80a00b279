"""Mass-editing memory (MEMIT; Meng et al., "Mass-Editing Memory in a Transformer", arXiv 2210.07229), for one fact.

As [ROME][benchmarks.baselines.rome], with the value spread over the MLPs of several layers. δ is sought for the output
of the last of them, as a whole layer. Then, layer after layer, what the value still lacks is shared out among the
layers that are left: with r that share, and k the mean of the key of the prompt alone and the mean key behind the
contexts, both as the layers before have been changed,

    W ← W + r (C⁻¹ k)ᵀ / (λ + kᵀ C⁻¹ k)

which for one fact is the paper's R Kᵀ (λ C + K Kᵀ)⁻¹. λ weighs what is known against what is new. Layers and
constants are EasyEdit's for Llama models, and what else the subject is, is kept by what follows its last token, as
there. C is of the text that the package carries, where EasyEdit reads 100,000 samples of Wikipedia, and needs a ridge;
so EasyEdit's λ, 15,000, was not taken but one with which development cases prefer the new answer by more.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor

from peft_surgical.architectures import decoder_layers

from .covariances import TEXTS, WINDOW, covariances, with_ridge
from .method import Request
from .mlps import edited_layers, output_projection
from .restoring import weights_restored
from .rome import add_rank_one
from .values import Asked, Objective

Matrix = Float[Tensor, "neuron neuron"]


@dataclass(frozen=True)
class Memit:
    """Writes a key and a share of the value into each of several MLPs.

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
    def edit(self, model: Any, tokenizer: Any, request: Request, seed: int) -> Iterator[None]:
        """Adds the updates, and copies the weights back afterwards."""
        layers = edited_layers(model)
        if model not in self._away:
            found = covariances(model, tokenizer, layers)
            self._away[model] = {layer: self.away_from(found[layer]) for layer in layers}
        projections = [output_projection(model, layer) for layer in layers]
        asked = Asked(model, tokenizer, request, layers[0], kl_at_subject=True)
        last = decoder_layers(model)[layers[-1]]
        value = asked.at_subject(last)[0][1][0]
        wanted = value + asked.delta(last, value, Objective(self.learning_rate))
        with weights_restored([projection.weight for projection in projections]):
            for number, (layer, projection) in enumerate(zip(layers, projections, strict=True)):
                (keys, _), (_, values) = asked.at_subject(projection, last)
                key = (keys[0] + keys[1:].mean(0)) / 2 if len(keys) > 1 else keys[0]
                away = self._away[model][layer]
                share = (wanted - values[0]) / (len(layers) - number)
                add_rank_one(projection, share, key, (away @ key.to(away)).to(key), self.known)
            yield

    def away_from(self, covariance: Matrix) -> Matrix:
        """What turns a key away from common ones: C⁻¹."""
        inverse: Tensor = torch.linalg.inv(with_ridge(covariance, self.ridge))
        return inverse

    def recipe(self, model: Any) -> dict[str, Any]:
        """How δ is sought, what the covariances are of, and the layers."""
        return {**Objective().recipe(), "texts": list(TEXTS), "window": WINDOW, "layers": edited_layers(model)}
