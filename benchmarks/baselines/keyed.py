"""Neurons that fire at the subject, trained as the stages of `edit` are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import peft_surgical as ps
from peft_surgical.staging.stage import LEARN

from .method import Request
from .staged import Staged, as_json


@dataclass(frozen=True)
class Keyed(Staged):
    """One stage.

    Attributes:
        layers: In whose MLPs a neuron is rewritten; the default ones when None.
    """

    name: ClassVar[str] = "keyed"
    layers: tuple[int, ...] | None = None

    def recipe(self, model: Any) -> dict[str, Any]:
        """That of its one stage."""
        return {LEARN: as_json(ps.KeyedRecipe(), model)}

    def train(self, model: Any, tokenizer: Any, request: Request, seed: int) -> None:
        """Leaves the trained adapter acting on the model."""
        ps.learn_keyed(model, tokenizer, request.fact, layers=self.layers, seed=seed, progress=False)
