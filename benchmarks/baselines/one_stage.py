"""The stages of `edit` without unlearning: one that learns the new answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from peft_surgical.staging.stage import LEARN, UNLEARN

from .method import Request
from .staged import Staged, default_components, train


@dataclass(frozen=True)
class OneStage(Staged):
    """As [`Staged`], learning only."""

    name: ClassVar[str] = "one_stage"

    def recipe(self, model: Any) -> dict[str, Any]:
        """As of [`Staged`], without unlearning."""
        return {name: own for name, own in super().recipe(model).items() if name != UNLEARN}

    def train(self, model: Any, tokenizer: Any, request: Request, seed: int) -> None:
        """Leaves the trained adapter acting on the model."""
        train(model, tokenizer, request, default_components(model), seed, stages=(LEARN,))
