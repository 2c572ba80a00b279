"""Full fine-tuning: Adam on every parameter of the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from .fitting import Fitted, fit
from .method import Request
from .restoring import weights_restored


@dataclass(frozen=True)
class FineTuning(Fitted):
    """Trains the whole model.

    Attributes:
        learning_rate: Adam's.
    """

    name: ClassVar[str] = "ft"
    learning_rate: float = 3e-6

    @contextmanager
    def edit(self, model: Any, tokenizer: Any, request: Request, seed: int) -> Iterator[None]:
        """Trains, and copies all weights back afterwards."""
        with weights_restored(model.parameters()) as parameters:
            fit(model, tokenizer, request, parameters, self.learning_rate)
            yield
