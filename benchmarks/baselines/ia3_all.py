"""Stock (IA)^3 as PEFT sets it up by default: keys, values and MLP outputs of all layers."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

from .adapters import adapted
from .ia3_stock import ia3_config
from .method import Request


@dataclass(frozen=True)
class IA3Everywhere:
    """Scales whole projections of all layers.

    Attributes:
        learning_rate: Adam's.
    """

    name: ClassVar[str] = "ia3_all"
    learning_rate: float = 3e-3

    def edit(self, model: Any, tokenizer: Any, request: Request, seed: int) -> AbstractContextManager[None]:
        """Trains the adapter, and takes it off afterwards."""
        return adapted(model, tokenizer, request, ia3_config(model, ("k", "v")), self.learning_rate, seed)
