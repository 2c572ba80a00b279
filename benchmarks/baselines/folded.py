"""Edits that stay: what a method does for the length of a block, left in the weights for the next edit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn


class Weights:
    """A copy of weights, and which they are of.

    Args:
        parameters: Those of a bare model; adapters are put around modules, whose parameters stay the same objects.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self._held = [(parameter, parameter.detach().clone()) for parameter in parameters]

    def of_now(self) -> Weights:
        """A copy of what the same weights are now."""
        return Weights(parameter for parameter, _ in self._held)

    @torch.no_grad()
    def put_back(self) -> None:
        """Writes the copies to the model that they are of."""
        for parameter, values in self._held:
            parameter.copy_(values)

    @contextmanager
    def put_back_after(self) -> Iterator[None]:
        """A block after which the copies are in the model."""
        try:
            yield
        finally:
            self.put_back()

    @contextmanager
    def acting(self) -> Iterator[None]:
        """Has the copies in the model for the length of a block."""
        now = self.of_now()
        try:
            self.put_back()
            yield
        finally:
            now.put_back()


def keep(model: Any, edit: AbstractContextManager[None]) -> None:
    """Makes an edit and leaves it in the weights: of adapters what they amount to, merged as PEFT merges them.

    Args:
        model: The bare model; every bit of it is as it was if the edit is refused.
        edit: From a method, not yet entered; it puts the model back as it was.
    """
    before = Weights(model.parameters())
    with edit:
        for module in model.modules():
            if isinstance(module, BaseTunerLayer):
                module.merge()
        after = before.of_now()
        before.put_back()
    after.put_back()
