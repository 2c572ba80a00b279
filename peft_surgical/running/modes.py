"""What a model is beside its weights: in a mode, with adapters put on or none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Evaluation mode in a block; afterwards each module has its own mode again, which need not be its parent's."""
    before = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        # Parents come first, so what they tell their children is put right after.
        for module, training in before:
            if module.training != training:
                module.train(training)


def base_model_of(model: Any) -> Any:
    """The model below PEFT's adapters, or the model itself where PEFT has put none on it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def learns_prompts(model: Any) -> bool:
    """Whether an adapter puts learned tokens before each row, which a cache of the row's own tokens does not hold."""
    return any(config.is_prompt_learning for config in getattr(model, "peft_config", {}).values())
