"""Models in evaluation mode for a while."""

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
