"""Our method on components that nothing but chance selects: as many MLPs, and the same training."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, ClassVar

from peft_surgical.retained import Retained

from .fitting import decoder_layers
from .method import Request
from .surgical import Surgical, default_components, train


@dataclass(frozen=True)
class RandomComponents(Surgical):
    """As [`Surgical`], on MLPs drawn anew for each seed and subject."""

    name: ClassVar[str] = "random"

    def trained(self, model: Any, tokenizer: Any, request: Request, seed: int, retained: Retained | None) -> Retained:
        """Leaves the trained adapters acting on the model, and returns what they keep."""
        layers = len(decoder_layers(model))
        drawn = random.Random(f"{seed} {request.subject}").sample(range(layers), len(default_components(model)))
        components = [f"L{layer}.mlp" for layer in sorted(drawn)]
        return train(model, tokenizer, request, components, seed, retained=retained)
