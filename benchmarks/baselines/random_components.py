"""Our method on heads and MLPs that nothing but chance selects, of as many scales, with the same training."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, ClassVar

from peft_surgical.retained import Retained
from peft_surgical.sites import ModelShape, components

from .method import Request
from .surgical import Surgical, default_components, train


@dataclass(frozen=True)
class RandomComponents(Surgical):
    """As [`Surgical`], on components drawn anew for each seed and subject."""

    name: ClassVar[str] = "random"

    def trained(self, model: Any, tokenizer: Any, request: Request, seed: int, retained: Retained | None) -> Retained:
        """Leaves the trained adapters acting on the model, and returns what they keep."""
        shape = ModelShape.from_config(model.config)
        drawn = draw_components(shape, len(default_components(model)) * shape.d_model, f"{seed} {request.subject}")
        return train(model, tokenizer, request, drawn, seed, retained=retained)


def draw_components(shape: ModelShape, budget: int, seed: str) -> list[str]:
    """Heads and MLPs in an order drawn by `seed`, each as long as the scales of all stay within the budget."""
    order = list(components(shape))
    random.Random(seed).shuffle(order)
    chosen = []
    for component in order:
        cost = shape.d_head if component.kind == "head" else shape.d_model
        if cost <= budget:
            chosen.append(str(component))
            budget -= cost
    return chosen
