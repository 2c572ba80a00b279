"""Stock (IA)^3 (Liu et al. 2022) on ten modules as in arXiv 2508.07075: three MLPs and two attention blocks, whole.

The paper's layers are of Phi-3-mini's 32; these stand at the same relative depth. Where an architecture has separate
projections for what Phi-3 has fused, each of them is scaled, and there are more than ten.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

from peft import IA3Config

from .adapters import adapted, module_names
from .fitting import Fitted
from .method import Request

MLPS, ATTENTIONS, LAYERS = (16, 18, 23), (20, 22), 32
MLP_KINDS, ATTENTION_KINDS = ("gate", "up", "mlp_out"), ("q", "k", "v", "attention_out")


@dataclass(frozen=True)
class StockIA3(Fitted):
    """Scales the outputs of these projections, and the input of the MLPs' last one.

    Attributes:
        learning_rate: Adam's.
    """

    name: ClassVar[str] = "ia3_stock"
    learning_rate: float = 5e-3

    def edit(self, model: Any, tokenizer: Any, request: Request, seed: int) -> AbstractContextManager[None]:
        """Trains the adapter, and takes it off afterwards."""
        mlps, attentions = (same_depth(model, layers) for layers in (MLPS, ATTENTIONS))
        modules = [*module_names(model, MLP_KINDS, mlps), *module_names(model, ATTENTION_KINDS, attentions)]
        inputs = module_names(model, ("mlp_out",), mlps)
        config = IA3Config(target_modules=modules, feedforward_modules=inputs, task_type="CAUSAL_LM")
        return adapted(model, tokenizer, request, config, self.learning_rate, seed)


def same_depth(model: Any, layers: Iterable[int], of: int = LAYERS) -> list[int]:
    """A paper's layers, in a model of so many, as deep in this model, each once."""
    return sorted({layer * model.config.num_hidden_layers // of for layer in layers})
