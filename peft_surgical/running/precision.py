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

# By the names that a user gives; what `auto` is depends on where it is asked for.
DTYPES: dict[str, str | torch.dtype] = {
    "auto": "auto",
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

_HALF = (torch.bfloat16, torch.float16)

# Where torch's newer names for it are, from 2.9 on; unless it is set there, a place takes what stands above it.
_PRODUCTS: tuple[Any, ...] = tuple(
    backend.matmul
    for backend in (torch.backends.cuda, torch.backends.mkldnn)
    if hasattr(getattr(backend, "matmul", None), "fp32_precision")
)
_EXACT = ("none", "ieee")

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
    with products_as_found(), ExitStack() as stack:
        if dtype in _HALF:
            stack.enter_context(torch.no_grad())
            stack.enter_context(_Widen())
        # By the name that the caller used: torch takes a mixture of both for a mistake.
        if _rounding() not in (None, "highest"):
            torch.set_float32_matmul_precision("highest")
        for place in _PRODUCTS:
            if place.fp32_precision not in _EXACT:
                place.fp32_precision = "ieee"
        yield


@contextmanager
def products_as_found() -> Iterator[None]:
    """Puts back, behind a block, how torch rounds what enters products of float32."""
    rounding, own = _rounding(), [place.fp32_precision for place in _PRODUCTS]
    try:
        yield
    finally:
        if rounding is not None and _rounding() != rounding:
            torch.set_float32_matmul_precision(rounding)
        for place, precision in zip(_PRODUCTS, own, strict=True):
            if place.fp32_precision != precision:
                place.fp32_precision = precision


def products_are_exact() -> bool:
    """Whether torch rounds nothing that enters products of float32."""
    return _rounding() == "highest" and all(place.fp32_precision in _EXACT for place in _PRODUCTS)


def _rounding() -> str | None:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # who set it by torch's newer names cannot be asked by the older
        return None


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
