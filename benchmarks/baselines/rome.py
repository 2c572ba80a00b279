"""Rank-one model editing (ROME; Meng et al., "Locating and Editing Factual Associations in GPT", arXiv 2202.05262).

The output projection W of one MLP is read as a memory of keys and values. The *key* k is the projection's input at
the subject's last token, mean over the prompt alone and behind every context. The *value* v is what the projection
should give for it: its output there plus the δ that [`values`][benchmarks.baselines.values] seeks. With C the
uncentred covariance of keys, the least change of other keys' values that makes W k = v is

    W ← W + δ (C⁻¹ k)ᵀ / (kᵀ C⁻¹ k)

Here C is the identity, as EasyEdit runs ROME on Llama models, whose constants these are; `rome_cov` estimates it.
This is the paper's formula. Its authors' code does two things otherwise, and so does `rome_code`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from .method import Request
from .mlps import edited_layer, output_projection
from .restoring import weights_restored
from .values import Asked, Objective


class Written(NamedTuple):
    """What an edit writes, in float32.

    Attributes:
        key: Mean over the prompt alone and behind every context.
        bare: That of the prompt alone.
        delta: What is added to the value.
    """

    key: Float[Tensor, " neuron"]
    bare: Float[Tensor, " neuron"]
    delta: Float[Tensor, " model"]


@dataclass(frozen=True)
class Rome:
    """Writes one key and value into an MLP.

    Attributes:
        learning_rate: Adam's, for δ.
        layer: Which MLP; see [`edited_layer`] when None.
    """

    name: ClassVar[str] = "rome"
    as_in_code: ClassVar[bool] = False
    learning_rate: float = 0.5
    layer: int | None = None

    @contextmanager
    def edit(self, model: Any, tokenizer: Any, request: Request, seed: int) -> Iterator[None]:
        """Adds the rank-one update, and copies the weight back afterwards."""
        layer = edited_layer(model, self.layer)
        projection = output_projection(model, layer)
        found = key_and_delta(model, tokenizer, request, layer, self.learning_rate, kl_at_subject=self.as_in_code)
        exact = found.bare if self.as_in_code else found.key
        with weights_restored([projection.weight]):
            add_rank_one(projection, found.delta, exact, self.direction(model, tokenizer, layer, found.key))
            yield

    def recipe(self, model: Any) -> dict[str, Any]:
        """How δ is sought, and the layer."""
        return {**Objective().recipe(), "layer": edited_layer(model, self.layer)}

    def direction(self, model: Any, tokenizer: Any, layer: int, key: Float[Tensor, " neuron"]) -> Tensor:
        """C⁻¹ k, up to a factor."""
        return key


@torch.no_grad()
def add_rank_one(
    projection: Any,
    delta: Float[Tensor, " model"],
    key: Float[Tensor, " neuron"],
    direction: Float[Tensor, " neuron"],
) -> None:
    """Moves a projection's output at `key` by `delta`, and at others by so much of it as they point in `direction`.

    Args:
        projection: The module.
        delta: What it shall give more.
        key: Where.
        direction: What inputs are multiplied with.
    """
    update = torch.outer(delta, direction / (key @ direction))
    projection.weight.add_((update.T if isinstance(projection, Conv1D) else update).to(projection.weight.dtype))


def key_and_delta(
    model: Any, tokenizer: Any, request: Request, layer: int, learning_rate: float, *, kl_at_subject: bool = False
) -> Written:
    """The key of a request's subject, and what to add to its value.

    Args:
        model: The base.
        tokenizer: Without a chat template.
        request: What to say of which subject.
        layer: Which MLP.
        learning_rate: Adam's.
        kl_at_subject: Keep what follows the subject, and not what follows "{subject} is a".

    Raises:
        ModelError: If the tokenizer cannot say where in a text its tokens stand.
    """
    asked = Asked(model, tokenizer, request, layer, kl_at_subject=kl_at_subject)
    projection = output_projection(model, layer)
    [(keys, values)] = asked.at_subject(projection)
    return Written(keys.mean(0), keys[0], asked.delta(projection, values[0], Objective(learning_rate)))
