"""The precision that numbers are computed in: float32 on half-precision weights, and nobody's autocast.

bfloat16 ranks exact patching effects badly: an effect is the small difference of two large logits (figures are in
docs/measurements/speed.md). Under [`exact_arithmetic`] each operation sees its half-precision tensors as float32,
one weight matrix at a time. It is for forward passes without a graph, since a graph would keep every widened weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from types import MethodType
from typing import Any

import torch
from accelerate.utils.operations import ConvertOutputsToFp32
from torch import nn
from torch.overrides import TorchFunctionMode

from .overlapping import Changes
from .products import unrounded

_HALF = (torch.bfloat16, torch.float16)

_UNWRAPPED = Changes()


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
def exact_arithmetic(dtype: torch.dtype) -> Iterator[None]:
    """Compute in float32 inside the block: where `dtype`, the model's, is a half precision, and where products are
    told to round what enters them, by `torch.set_float32_matmul_precision` or by TF32's own names."""
    with unrounded(), ExitStack() as stack:
        if dtype in _HALF:
            stack.enter_context(torch.no_grad())
            stack.enter_context(_Widen())
        yield


@contextmanager
def without_autocast(model: nn.Module) -> Iterator[None]:
    """Sets the caller's autocast aside, on each kind of device that the model is on and on the processor, and
    accelerate's ([`own_forwards`]): what is said to be computed in float32 would be in half precision."""
    kinds = {"cpu", *(parameter.device.type for parameter in model.parameters())}
    with ExitStack() as stack:
        for kind in filter(torch.amp.is_autocast_available, kinds - {"meta"}):
            stack.enter_context(torch.autocast(kind, enabled=False))
        stack.enter_context(own_forwards(model))
        yield


@contextmanager
def own_forwards(model: nn.Module) -> Iterator[None]:
    """Lets modules run in a block by the forwards that they had before accelerate wrapped them for mixed precision.

    `Trainer(bf16=True)` leaves such a wrapper on what it trained, and that turns autocast on wherever it is off. A
    forward that somebody else put on a module stays. Where blocks of several threads overlap, the last of them puts
    the wrappers back.
    """
    with ExitStack() as within:
        for module in model.modules():
            if _UNWRAPPED.enter(module, partial(_unwrap, module)):
                within.callback(_UNWRAPPED.leave, module)
        yield


def _unwrap(module: nn.Module) -> Callable[[], None] | None:
    """Takes accelerate's wrapper off a module; returns what puts it back, or None where there is none."""
    wrapper = vars(module).get("forward")
    own = _own_forward(wrapper)
    if own is wrapper:
        return None
    # Its class's forward on the module itself would pass for one of somebody's.
    if getattr(own, "__func__", None) is type(module).forward:
        del vars(module)["forward"]
    else:
        module.forward = own
    return partial(setattr, module, "forward", wrapper)


def _own_forward(forward: Any) -> Any:
    """What is below accelerate's wrappers, which convert what autocast gives; a forward without one is given back."""
    function = getattr(forward, "__func__", forward)
    converting = getattr(function, "__wrapped__", None)
    cast: Any = getattr(converting, "model_forward", None)
    by_torch = getattr(cast, "__globals__", None) is vars(torch.amp.autocast_mode)
    if not (isinstance(converting, ConvertOutputsToFp32) and by_torch):
        return forward
    own = cast.__wrapped__
    return _own_forward(own if function is forward else MethodType(own, forward.__self__))
