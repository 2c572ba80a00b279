"""Putting a model back as it was, to the bit: values, gradients' flags, modules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn


@contextmanager
def weights_restored(parameters: Iterable[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Lets some parameters be trained or written to, and copies their values back afterwards."""
    parameters = list(parameters)
    before = [(parameter.detach().clone(), parameter.requires_grad) for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        yield parameters
    finally:
        with torch.no_grad():
            for parameter, (value, flag) in zip(parameters, before, strict=True):
                parameter.copy_(value)
                parameter.requires_grad_(flag)
                parameter.grad = None


def unwrap(model: Any) -> None:
    """Puts the modules that adapters are on back in the place of PEFT's."""
    for name, module in [*model.named_modules()]:
        if isinstance(module, BaseTunerLayer):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module.get_base_layer())


@contextmanager
def adapters_taken_off(model: Any) -> Iterator[None]:
    """Lets PEFT adapters of any kind be put on a bare model, and takes them off afterwards, even half-made ones."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    attributes = set(vars(model))
    try:
        yield
    finally:
        unwrap(model)
        # PEFT leaves its configuration on the model, and would warn of it at the next edit.
        for attribute in set(vars(model)) - attributes:
            delattr(model, attribute)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
            parameter.grad = None
