"""Our method from one sentence by updates of rank one that are keyed to the subject."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import peft_surgical as ps
from peft_surgical.staging.stage import LEARN

from .method import Request
from .staged import Staged, as_json


@dataclass(frozen=True)
class SurgicalKeyed(Staged):
    """Learns by the subject, as `surgical`; told from others by its key and not by scales."""

    name: ClassVar[str] = "surgical_keyed"

    def recipe(self, model: Any) -> dict[str, Any]:
        """That of its one stage."""
        return {LEARN: as_json(ps.KeyedSubjectRecipe(), model)}

    def train(self, model: Any, tokenizer: Any, request: Request, seed: int) -> None:
        """Leaves the trained adapter acting on the model."""
        ps.learn_keyed_by_subject(model, tokenizer, request.fact, seed=seed, progress=False)
