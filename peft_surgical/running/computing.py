"""What the arithmetic of training runs on: a copy of the model in the dtype that this processor multiplies fastest.

That is measured, because no flag tells: of two processors with bfloat16 instructions one multiplied bfloat16 four
times as fast as float32, and the other half as fast.
"""

from __future__ import annotations

import copy
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from ..dtypes import DTYPES
from ..errors import ModelError, said
from .at_once import flushes_denormals
from .attention import GROUPED, has_plain_attention
from .freed import release_freed
from .sharing import by_main, is_sharded

# A copy of the model has its price, and bfloat16 its rounding; a small gain is not worth them.
_WORTH = 1.3

# The copies: they are used nowhere else, and may be set as suits a computation.
_COPIES: weakref.WeakSet[Any] = weakref.WeakSet()


def check_compute_dtype(name: str) -> None:
    """Refuses what a recipe cannot ask for.

    Raises:
        ModelError: If it is not one of those that `load_model` takes.
    """
    if name not in DTYPES:
        raise ModelError(f"unknown compute_dtype {name!r}; choose one of {', '.join(DTYPES)}.")


def compute_dtype(own: torch.dtype, device: torch.device) -> torch.dtype:
    """bfloat16 for a float32 model on a CPU that multiplies it clearly faster, else the model's own dtype."""
    if device.type != "cpu" or own != torch.float32:
        return own
    return torch.bfloat16 if _seconds(torch.float32) > _WORTH * _seconds(torch.bfloat16) else own


@lru_cache
@torch.no_grad()
def _seconds(dtype: torch.dtype, rows: int = 1024, width: int = 1024) -> float:
    """The shortest of some products of a batch and a weight matrix, as long as one of a small model's layers."""
    batch, weight = (torch.zeros(count, width, dtype=dtype, device="cpu") for count in (rows, width))
    shortest = float("inf")
    for _ in range(6):
        started = time.perf_counter()
        torch.nn.functional.linear(batch, weight)
        shortest = min(shortest, time.perf_counter() - started)
    return shortest


@contextmanager
def computing(peft_model: PeftModel, dtype: str) -> Iterator[Any]:
    """The transformers model to run while training: the peft model's own, or a copy in a faster dtype.

    The copy shares the adapters' float32 parameters, so that training it trains them; only frozen weights are copied.
    """
    base = peft_model.get_base_model()
    named = DTYPES[dtype]
    # Processes that each measure for themselves may choose unlike dtypes.
    wanted = named if isinstance(named, torch.dtype) else by_main(lambda: compute_dtype(base.dtype, base.device))
    if wanted == base.dtype or (named == "auto" and is_sharded(base)):
        yield base
        return
    if is_sharded(base):
        raise ModelError(f"a sharded model trains in its own dtype; load it in {dtype} rather than ask for it here.")
    prefix = peft_model.base_model.prefix
    adapter = {id(p) for name, p in base.named_parameters() if prefix in name}
    release_freed()
    memo: dict[int, Any] = {}
    for parameter in base.parameters():
        kept = id(parameter) in adapter or not parameter.is_floating_point()
        memo[id(parameter)] = parameter if kept else nn.Parameter(parameter.detach().to(wanted), requires_grad=False)
    for buffer in base.buffers():
        # Rotary frequencies are used in float32 whatever the weights are.
        memo[id(buffer)] = buffer
    try:
        working = copy.deepcopy(base, memo).eval()
    except Exception as error:  # of whatever a model holds, each kind says in its own way that it is not copied
        if named != "auto":
            raise ModelError(
                f"the model cannot be copied to train in {dtype} ({said(error)}); leave compute_dtype 'auto'."
            ) from error
        yield base
        return
    _COPIES.add(working)
    yield working


@contextmanager
def plain_attention(model: Any) -> Iterator[None]:
    """Lets a copy that [`computing`] made compute attention by plain products, for gradients on a processor.

    There the backward pass of the fused kernel takes longer than the products it saves. Its forward pass does not, and
    a model that is not a copy keeps what its owner chose.
    """
    if model not in _COPIES or model.device.type != "cpu":
        yield
        return
    own = model.config._attn_implementation
    model.set_attn_implementation(GROUPED if has_plain_attention(model) else "eager")
    try:
        yield
    finally:
        model.set_attn_implementation(own)


@contextmanager
def denormals_flushed() -> Iterator[None]:
    """Lets the processor treat denormal numbers as zero: they are slow, and small gradients are full of them."""
    before = flushes_denormals()
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)
