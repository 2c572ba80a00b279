"""The precision that numbers are computed in: float32 on half-precision weights, and no caller's autocast.

bfloat16 ranks exact patching effects badly: an effect is the small difference of two large logits (figures are in
docs/measurements/speed.md). Under [`float32_arithmetic`] each operation sees its half-precision tensors as float32,
one weight matrix at a time. It is for forward passes without a graph, since a graph would keep every widened weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

_HALF = (torch.bfloat16, torch.float16)


class _Widen(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        # Reading `weight.dtype` needs no cast of the weight.
        if getattr(func, "__name__", "") in ("__get__", "size", "dim", "is_floating_point"):
            return _widen_dtype(func(*args, **kwargs))
        # It copies rows; no need to widen the largest matrix for them.
        if func is torch.nn.functional.embedding:
            return _widen(func(*args, **kwargs))
        named = {key: _widen(value) for key, value in kwargs.items()}
        return func(*(_widen(value) for value in args), **named)


def _widen(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(torch.float32) if value.dtype in _HALF else value
    if type(value) in (tuple, list):
        return type(value)(_widen(item) for item in value)
    return _widen_dtype(value)


def _widen_dtype(value: Any) -> Any:
    # "Cast to the weight's dtype" must not narrow what has just been widened.
    return torch.float32 if isinstance(value, torch.dtype) and value in _HALF else value


@contextmanager
def float32_arithmetic(dtype: torch.dtype) -> Iterator[None]:
    """Compute in float32 inside the block when `dtype`, the model's, is a half precision; do nothing otherwise."""
    if dtype in _HALF:
        with torch.no_grad(), _Widen():
            yield
    else:
        yield


@contextmanager
def without_autocast(model: nn.Module) -> Iterator[None]:
    """Sets the caller's autocast aside, on each kind of device that the model is on and on the processor: what is said
    to be computed in float32 would be in half precision."""
    kinds = {"cpu", *(parameter.device.type for parameter in model.parameters())}
    with ExitStack() as stack:
        for kind in filter(torch.amp.is_autocast_available, kinds - {"meta"}):
            stack.enter_context(torch.autocast(kind, enabled=False))
        yield
