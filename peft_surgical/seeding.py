"""Random numbers that a seed decides, drawn without a trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

# What draws with the processor's generator, and what draws nothing.
_WITHOUT_ITS_OWN = ("cpu", "meta")


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seeds torch's random numbers; leaving puts their states back, of the processor and of an accelerator."""
    with forked(device):
        torch.default_generator.manual_seed(seed)
        if device.type not in _WITHOUT_ITS_OWN:
            module: Any = torch.get_device_module(device.type)
            if hasattr(module, "device"):
                with module.device(device):
                    module.manual_seed(seed)
            else:  # there is only one of Apple's
                module.manual_seed(seed)
        yield


@contextmanager
def forked(device: torch.device) -> Iterator[None]:
    """Puts the states of torch's random numbers back on leaving, of the processor and of an accelerator."""
    with torch.random.fork_rng(devices=[]):
        if device.type in _WITHOUT_ITS_OWN:
            yield
            return
        module: Any = torch.get_device_module(device.type)
        # Of Apple's, which takes no device in every version of torch, there is only one.
        which = () if device.type == "mps" else (device,)
        state = module.get_rng_state(*which)
        try:
            yield
        finally:
            module.set_rng_state(state, *which)
