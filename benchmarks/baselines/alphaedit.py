"""AlphaEdit (Fang et al., "Null-Space Constrained Knowledge Editing for Language Models", arXiv 2410.02355).

As [MEMIT][benchmarks.baselines.memit], but an update may only read what no common key has: with P the projection onto
the eigenvectors of C whose eigenvalues are small, and K_p the keys of all batches before,

    W ← W + R Kᵀ P (K Kᵀ P + K_p K_pᵀ P + α I)⁻¹

K_p K_pᵀ is not kept, but what turns keys away from the earlier ones, too: A = α P (P K_p K_pᵀ P + α I)⁻¹, at first P,
in the place of P in the formula for a first batch, R (α I + Kᵀ A K)⁻¹ (A K)ᵀ. By Woodbury's identity, after a batch
it is A − A K (α I + Kᵀ A K)⁻¹ (A K)ᵀ. Constants are EasyEdit's for Qwen 2.5; those for Llama 3, where δ is shorter,
did worse on development cases, edited singly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from .memit import Matrix, Memit


@dataclass(frozen=True)
class AlphaEdit(Memit):
    """Writes keys and shares of their values into each of several MLPs, where common keys are not read.

    Attributes:
        known: α.
        small: Eigenvalues below this are those of keys that are not common.
    """

    name: ClassVar[str] = "alphaedit"
    known: float = 1.0
    ridge: float = 0.0
    small: float = 2e-2

    def away_from(self, covariance: Matrix) -> Matrix:
        """What turns a key away from common ones: P."""
        values, vectors = torch.linalg.eigh(covariance)
        kept: Tensor = vectors[:, values < self.small]
        return kept @ kept.T

    def away_after(self, away: Matrix, keys: Float[Tensor, "request neuron"], read: Tensor) -> Matrix:
        """What turns later batches' keys away from these, too."""
        after: Tensor = away - away @ keys.to(away).T @ read
        return after
