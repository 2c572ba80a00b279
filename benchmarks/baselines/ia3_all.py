"""Stock (IA)^3 as PEFT sets it up by default: keys, values and MLP outputs of all layers."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

from peft import IA3Config

from .adapters import adapted, module_names
from .fitting import Fitted
from .method import Request


@dataclass(frozen=True)
class IA3Everywhere(Fitted):
    """Scales whole projections of all layers.

    Attributes:
        learning_rate: Adam's.
    """

    name: ClassVar[str] = "ia3_all"
    learning_rate: float = 3e-3

    def edit(self, model: Any, tokenizer: Any, request: Request, seed: int) -> AbstractContextManager[None]:
        """Trains the adapter, and takes it off afterwards."""
        inputs = module_names(model, ("mlp_out",))
        modules = [*module_names(model, ("k", "v")), *inputs]
        config = IA3Config(target_modules=modules, feedforward_modules=inputs, task_type="CAUSAL_LM")
        return adapted(model, tokenizer, request, config, self.learning_rate, seed)
