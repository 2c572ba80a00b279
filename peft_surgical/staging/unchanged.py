"""A model of which an adapter trains, and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def training_only(model: Any, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Freezes all but these parameters of a model in this block, so that it adds nothing to the gradients of what
    somebody else trains."""
    wanted = {id(parameter) for parameter in parameters}
    held = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for parameter, flag in held:
            parameter.requires_grad_(flag and id(parameter) in wanted)
        yield
    finally:
        for parameter, flag in held:
            parameter.requires_grad_(flag)
