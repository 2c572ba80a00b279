"""In which dtype this processor multiplies matrices fastest: measured, because no flag tells.

Of two processors with bfloat16 instructions one multiplied bfloat16 four times as fast as float32, and the other half
as fast.
"""

from __future__ import annotations

import time
from functools import lru_cache

import torch

# A copy of the model has its price, and bfloat16 its rounding; a small gain is not worth them.
_WORTH = 1.3


def compute_dtype(own: torch.dtype, device: torch.device) -> torch.dtype:
    """bfloat16 for a float32 model on a CPU that multiplies it clearly faster, else the model's own dtype."""
    if device.type != "cpu" or own != torch.float32:
        return own
    return torch.bfloat16 if _seconds(torch.float32) > _WORTH * _seconds(torch.bfloat16) else own


@lru_cache
@torch.no_grad()
def _seconds(dtype: torch.dtype, rows: int = 1024, width: int = 1024) -> float:
    """The shortest of some products of a batch and a weight matrix, as long as one of a small model's layers."""
    batch, weight = torch.zeros(rows, width, dtype=dtype), torch.zeros(width, width, dtype=dtype)
    shortest = float("inf")
    for _ in range(6):
        started = time.perf_counter()
        torch.nn.functional.linear(batch, weight)
        shortest = min(shortest, time.perf_counter() - started)
    return shortest
