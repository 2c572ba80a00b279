"""Where accelerate brings offloaded weights."""

from __future__ import annotations

from typing import Any

import torch


def execution_device(module: Any) -> torch.device | None:
    """Where a module's weights are in a pass if they are offloaded between passes; None if no hook says so."""
    hook = getattr(module, "_hf_hook", None)
    for own in getattr(hook, "hooks", [hook]):
        device = getattr(own, "execution_device", None)
        if device is not None and getattr(own, "offload", False):
            return torch.device(device)
    return None
