"""AlphaEdit (Fang et al., "Null-Space Constrained Knowledge Editing for Language Models", arXiv 2410.02355).

As [MEMIT][benchmarks.baselines.memit] for one fact, but an update may only read what no common key
has: with P the projection onto the eigenvectors of C whose eigenvalues are small,

    W ← W + r (P k)ᵀ / (α + kᵀ P k)

which for one fact, the first, is the paper's R Kᵀ P (K Kᵀ P + α I)⁻¹. Its constants are EasyEdit's for Qwen 2.5; those
for Llama 3, where δ is shorter, did worse on development cases.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .memit import Matrix, Memit


@dataclass(frozen=True)
class AlphaEdit(Memit):
    """Writes a key and a share of the value into each of several MLPs, where common keys are not read.

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
