"""Our method from one sentence: scales of early MLPs' neurons that act where the subject is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import peft_surgical as ps
from peft_surgical.staging.stage import LEARN

from .method import Request
from .staged import Staged, as_json


@dataclass(frozen=True)
class Surgical(Staged):
    """Learns by the subject; one stage, as it holds nothing to the base's answers that a second one could reuse."""

    name: ClassVar[str] = "surgical"

    def recipe(self, model: Any) -> dict[str, Any]:
        """That of its one stage."""
        return {LEARN: as_json(ps.SubjectRecipe(), model)}

    def train(self, model: Any, tokenizer: Any, request: Request, seed: int) -> None:
        """Leaves the trained adapter acting on the model."""
        ps.learn_by_subject(model, tokenizer, request.fact, seed=seed, progress=False)
