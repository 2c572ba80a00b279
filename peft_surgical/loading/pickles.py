"""No pickle is opened while a checkpoint or an adapter is read.

What a checkpoint's own files name as its weights is for others to resolve: an index of safetensors may name a `.bin`
file as a shard, and transformers opens that with `torch.load`. A restricted one, but a pickle all the same, so it is
refused where it would be opened, whichever file led there.

>>> with no_pickles():
...     torch.load("evil.bin")
Traceback (most recent call last):
    ...
peft_surgical.errors.ModelError: evil.bin is read as a pickle, which can run code; save the weights as safetensors.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..errors import ModelError, brief

# Blocks of several threads overlap in any order.
_lock = threading.Lock()
_blocks = 0
_before: Any = torch.load


@contextmanager
def no_pickles() -> Iterator[None]:
    """Refuses `torch.load` in this process while the block runs.

    Raises:
        ModelError: In place of opening a pickle.
    """
    global _before, _blocks
    with _lock:
        if not _blocks:
            _before, torch.load = torch.load, _refuse  # type: ignore[assignment]
        _blocks += 1
    try:
        yield
    finally:
        with _lock:
            _blocks -= 1
            if not _blocks:
                torch.load = _before


def _refuse(file: Any, *_: Any, **__: Any) -> Any:
    name = os.path.basename(file) if isinstance(file, (str, os.PathLike)) else brief(file)
    raise ModelError(f"{name} is read as a pickle, which can run code; save the weights as safetensors.")
