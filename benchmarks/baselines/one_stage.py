"""Our method without unlearning: one stage that learns the new answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from peft_surgical.retained import Retained
from peft_surgical.stages import LEARN

from .method import Request
from .surgical import Surgical, default_components, train


@dataclass(frozen=True)
class OneStage(Surgical):
    """As [`Surgical`], learning only."""

    name: ClassVar[str] = "one_stage"

    def trained(self, model: Any, tokenizer: Any, request: Request, seed: int, retained: Retained | None) -> Retained:
        """Leaves the trained adapter acting on the model, and returns what it keeps."""
        components = default_components(model)
        return train(model, tokenizer, request, components, seed, stages=(LEARN,), retained=retained)
