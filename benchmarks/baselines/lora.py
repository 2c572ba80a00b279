"""LoRA (Hu et al. 2021) of rank 8 on all attention and MLP projections."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

from peft import LoraConfig

from .adapters import adapted, module_names
from .fitting import Fitted
from .method import Request

KINDS = ("q", "k", "v", "attention_out", "gate", "up", "mlp_out")


@dataclass(frozen=True)
class Lora(Fitted):
    """Adds low-rank updates.

    Attributes:
        learning_rate: Adam's.
        rank: Of the updates; their factor, alpha, is twice as large.
    """

    name: ClassVar[str] = "lora"
    learning_rate: float = 2e-4
    rank: int = 8

    def edit(self, model: Any, tokenizer: Any, request: Request, seed: int) -> AbstractContextManager[None]:
        """Trains the adapter, and takes it off afterwards."""
        return adapted(model, tokenizer, request, self.config(model), self.learning_rate, seed)

    def config(self, model: Any) -> LoraConfig:
        """PEFT's configuration of the adapter."""
        return LoraConfig(
            r=self.rank,
            lora_alpha=2 * self.rank,
            target_modules=module_names(model, KINDS),
            task_type="CAUSAL_LM",
        )
