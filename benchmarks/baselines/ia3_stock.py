"""Stock (IA)^3 (Liu et al. 2022) on the kinds of modules and the region of the paper: values and MLP outputs above the
middle.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

from peft import IA3Config

from .adapters import adapted, module_names
from .method import Request

LAYERS = 5
STRIDE = 2


@dataclass(frozen=True)
class StockIA3:
    """Scales whole projections of five layers, every other one from the middle up.

    Attributes:
        learning_rate: Adam's.
    """

    name: ClassVar[str] = "ia3_stock"
    learning_rate: float = 5e-3

    def edit(self, model: Any, tokenizer: Any, request: Request, seed: int) -> AbstractContextManager[None]:
        """Trains the adapter, and takes it off afterwards."""
        middle = model.config.num_hidden_layers // 2
        layers = range(middle, middle + STRIDE * LAYERS, STRIDE)
        return adapted(model, tokenizer, request, ia3_config(model, ("v",), layers), self.learning_rate, seed)


def ia3_config(model: Any, attention: tuple[str, ...], layers: range | None = None) -> IA3Config:
    """Scales on the output of attention projections and on the input of the MLPs' output projection."""
    mlps = module_names(model, ("mlp_out",), layers)
    modules = [*module_names(model, attention, layers), *mlps]
    return IA3Config(target_modules=modules, feedforward_modules=mlps, task_type="CAUSAL_LM")
