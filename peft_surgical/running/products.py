"""How torch rounds what enters products of float32: by `torch.set_float32_matmul_precision`, or by TF32's own names.

It is one for the whole process, so that blocks of several threads are counted: while any of them is within one that
rounds nothing, nothing is rounded, and the last of them puts back what was there before the first.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeAlias

import torch

# What the older name says, None where torch cannot tell it, and what the newer ones say of each place.
Precisions: TypeAlias = tuple[str | None, tuple[str, ...]]

# Where torch's newer names for it are, from 2.9 on; unless it is set there, a place takes what stands above it.
_PLACES: tuple[Any, ...] = tuple(
    backend.matmul
    for backend in (torch.backends.cuda, torch.backends.mkldnn)
    if hasattr(getattr(backend, "matmul", None), "fp32_precision")
)
_EXACT = ("none", "ieee")

_LOCK = threading.Lock()
# How many blocks round nothing now, and what was there before the first of them.
_BLOCKS: list[Precisions] = []


@contextmanager
def unrounded() -> Iterator[None]:
    """Rounds nothing within a block."""
    with _LOCK:
        _BLOCKS.append(_BLOCKS[0] if _BLOCKS else _read())
    try:
        with _LOCK:
            # By the name that the caller used: torch takes a mixture of both for a mistake.
            if _older() not in (None, "highest"):
                torch.set_float32_matmul_precision("highest")
            for place in _PLACES:
                if place.fp32_precision not in _EXACT:
                    place.fp32_precision = "ieee"
        yield
    finally:
        with _LOCK:
            before = _BLOCKS.pop()
            if not _BLOCKS:
                _write(before)


@contextmanager
def rounding_as_found() -> Iterator[None]:
    """Puts back, behind a block, what was set when it began, whatever the code within has set."""
    before = rounding()
    try:
        yield
    finally:
        with _LOCK:
            if _BLOCKS:
                _BLOCKS[:] = [before] * len(_BLOCKS)
            else:
                _write(before)


def rounding() -> Precisions:
    """What is set, but for what [`unrounded`] does."""
    with _LOCK:
        return _BLOCKS[0] if _BLOCKS else _read()


def on_processor() -> str:
    """In what the processor multiplies matrices of float32, by whichever of the two it was said."""
    place = getattr(torch.backends.mkldnn, "matmul", None)
    # The older one cannot be read where the newer one was used.
    return str(torch.get_float32_matmul_precision() if place is None else place.fp32_precision)


def is_unrounded(found: Precisions) -> bool:
    """Whether nothing is rounded by that."""
    return found[0] == "highest" and all(precision in _EXACT for precision in found[1])


def _read() -> Precisions:
    # A place that takes what stands above it says that, and is to go on doing so.
    above = getattr(torch.backends, "fp32_precision", "none")
    own = (place.fp32_precision for place in _PLACES)
    return _older(), tuple("none" if precision == above else precision for precision in own)


def _write(wanted: Precisions) -> None:
    older, newer = wanted
    if older not in (None, _older()):
        torch.set_float32_matmul_precision(older)
    for place, precision, now in zip(_PLACES, newer, _read()[1], strict=True):
        if precision != now:
            place.fp32_precision = precision


def _older() -> str | None:
    # Who set it by the newer names cannot be asked by the older.
    with suppress(RuntimeError):
        return torch.get_float32_matmul_precision()
    return None
