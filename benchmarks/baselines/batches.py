"""What the methods share that edit many requests at once: the contexts, and the solution for many keys and values.

MEMIT's and AlphaEdit's updates of a projection W are the same formula, of the keys K and of what their values lack R,
with A what turns keys away from those that shall keep their values, C⁻¹ or P:

    W ← W + R (λ I + Kᵀ A K)⁻¹ (A K)ᵀ

which is R Kᵀ (λ C + K Kᵀ)⁻¹ and R Kᵀ P (K Kᵀ P + λ I)⁻¹, with a matrix to solve by that has as many rows as there are
requests and not as neurons.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from peft_surgical.errors import SurgicalError

from .method import Request, Write


class InBatches:
    """The contexts of a [`Batched`][benchmarks.baselines.method.Batched] method that says how to write batches."""

    def sequence(self, model: Any, tokenizer: Any, seed: int) -> AbstractContextManager[Write]:
        """A context that hands out what writes a batch of requests on top of those before."""
        raise NotImplementedError

    @contextmanager
    def edit_batch(self, model: Any, tokenizer: Any, requests: Sequence[Request], seed: int) -> Iterator[None]:
        """Writes all requests at once, and copies the weights back afterwards."""
        with self.sequence(model, tokenizer, seed) as write:
            write(requests)
            yield

    def edit(self, model: Any, tokenizer: Any, request: Request, seed: int) -> AbstractContextManager[None]:
        """A batch of one."""
        return self.edit_batch(model, tokenizer, [request], seed)


def some(requests: Sequence[Request]) -> list[Request]:
    """The requests of a batch.

    Raises:
        SurgicalError: If there are none.
    """
    if not requests:
        raise SurgicalError("a batch of no requests edits nothing; give at least one.")
    return list(requests)


def gains(
    keys: Float[Tensor, "request neuron"], away: Float[Tensor, "neuron neuron"] | None, slack: float
) -> Float[Tensor, "request neuron"]:
    """What inputs are multiplied with so that each key has its own request's share: (λ I + Kᵀ A K)⁻¹ Kᵀ A, in float64.

    They are not numbers where keys leave nothing to solve by, as those of a model that is broken may.

    Args:
        keys: Of each request, a column of K.
        away: A, symmetric, in float64; the identity when None.
        slack: λ: how far from its value a key may end, for less change.
    """
    keys = keys.double()
    turned = keys if away is None else keys.to(away) @ away
    between = turned @ keys.to(turned).T
    between.diagonal().add_(slack)
    # Batches before may have broken the model, which is a finding and no error: keys may be too long to be told apart.
    found, singular = torch.linalg.solve_ex(between, turned)
    return found if not singular else torch.full_like(turned, torch.nan)


@torch.no_grad()
def add_values(projection: Any, values: Float[Tensor, "request model"], read: Float[Tensor, "request neuron"]) -> None:
    """Moves a projection's output at an input by so much of each request's value as its row of `read` makes of it."""
    update = values.to(read).T @ read
    projection.weight.add_((update.T if isinstance(projection, Conv1D) else update).to(projection.weight))
