"""The stages of `edit` on heads and MLPs that chance selects, of as many scales, with the same training."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, ClassVar

from peft_surgical.choice import EDIT_PROJECTIONS
from peft_surgical.selection import n_scales
from peft_surgical.sites import ModelShape, components

from .method import Request
from .staged import Staged, default_components, train


@dataclass(frozen=True)
class RandomComponents(Staged):
    """As [`Staged`], on components drawn anew for each seed and subject."""

    name: ClassVar[str] = "random"

    def train(self, model: Any, tokenizer: Any, request: Request, seed: int) -> None:
        """Leaves the trained adapters acting on the model."""
        shape = ModelShape.from_config(model.config)
        budget = len(default_components(model)) * n_scales(shape, "mlp", EDIT_PROJECTIONS)
        drawn = draw_components(shape, budget, f"{seed} {request.subject}")
        train(model, tokenizer, request, drawn, seed)


def draw_components(shape: ModelShape, budget: int, seed: str) -> list[str]:
    """Heads and MLPs in an order drawn by `seed`, each as long as the scales of all stay within the budget."""
    order = list(components(shape))
    random.Random(seed).shuffle(order)
    chosen = []
    for component in order:
        cost = n_scales(shape, component.kind, EDIT_PROJECTIONS)
        if cost <= budget:
            chosen.append(str(component))
            budget -= cost
    return chosen
