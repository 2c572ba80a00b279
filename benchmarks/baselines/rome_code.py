"""ROME as its authors' code runs it, which is not quite the paper's formula.

There the update is scaled so that the prompt alone, not the mean of its keys behind all contexts, gets the whole δ,

    W ← W + δ (C⁻¹ k)ᵀ / (k₀ᵀ C⁻¹ k),    k₀ the key of the prompt alone,

and what else the subject is, is kept by what follows its last token in "{subject} is a", not by what follows the "a"
(`rome_main.py`, `compute_u.py` and `compute_v.py` of Meng et al., 2022).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .rome import Rome


@dataclass(frozen=True)
class RomeAsInCode(Rome):
    """Writes one key and value into an MLP, all of the value for the prompt alone."""

    name: ClassVar[str] = "rome_code"
    as_in_code: ClassVar[bool] = True
