"""AlphaEdit (Fang et al., "Null-Space Constrained Knowledge Editing for Language Models", arXiv 2410.02355).

As [MEMIT][benchmarks.baselines.memit] for one fact, but an update may only read what no common key
has: with P the projection onto the eigenvectors of C whose eigenvalues are small,

    W ← W + r (P k)ᵀ / (α + kᵀ P k)

which for one fact, the first, is the paper's R Kᵀ P (K Kᵀ P + α I)⁻¹. δ is sought as EasyEdit does for Llama 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .memit import Matrix, Memit
from .values import Objective


@dataclass(frozen=True)
class AlphaEdit(Memit):
    """Writes a key and a share of the value into each of several MLPs, where common keys are not read.

    Attributes:
        small: Eigenvalues below this are those of keys that are not common.
        decay: Of δ's length.
        longest: The bound on δ, as a multiple of the length of the value.
    """

    name: ClassVar[str] = "alphaedit"
    learning_rate: float = 0.1
    known: float = 1.0
    ridge: float = 0.0
    small: float = 2e-2
    decay: float = 0.5
    longest: float = 0.75

    @property
    def objective(self) -> Objective:
        """How δ is sought."""
        return Objective(self.learning_rate, decay=self.decay, longest=self.longest)

    def away_from(self, covariance: Matrix) -> Matrix:
        """What turns a key away from common ones: P."""
        values, vectors = torch.linalg.eigh(covariance)
        kept: Tensor = vectors[:, values < self.small]
        return kept @ kept.T
