"""Random numbers that a seed decides, drawn without a trace."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

# Torch's generators are the process's: what two threads seed and put back at once, neither has as its seed says.
_ALONE = threading.RLock()

# What draws with the processor's generator, and what draws nothing.
_WITHOUT_ITS_OWN = ("cpu", "meta")


def drawing(seed: int) -> random.Random:
    """Python's random numbers that a seed decides.

    Python takes a seed without its sign; so a negative one is the number of 64 bits here that torch takes it for.
    """
    return random.Random(seed % 2**64)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seeds torch's random numbers; leaving puts their states back, of the processor and of an accelerator.

    One thread is in such a block, or in one of [`forked`], at a time; others wait.
    """
    with forked(device):
        torch.default_generator.manual_seed(seed)
        module = _module_of(device)
        if module is not None:
            # There is only one of Apple's.
            with module.device(device) if hasattr(module, "device") else nullcontext():
                module.manual_seed(seed)
        yield


@contextmanager
def forked(device: torch.device) -> Iterator[None]:
    """Puts the states of torch's random numbers back on leaving, of the processor and of an accelerator."""
    with _ALONE, torch.random.fork_rng(devices=[]):
        module = _module_of(device)
        if module is None:
            yield
            return
        # Of Apple's, which takes no device in every version of torch, there is only one.
        which = () if device.type == "mps" else (device,)
        state = module.get_rng_state(*which)
        try:
            yield
        finally:
            module.set_rng_state(state, *which)


def _module_of(device: torch.device) -> Any:
    """Torch's module for a kind of device, if that draws numbers of its own."""
    if device.type in _WITHOUT_ITS_OWN:
        return None
    try:
        module = torch.get_device_module(device.type)
    except RuntimeError:
        return None
    return module if hasattr(module, "get_rng_state") else None
