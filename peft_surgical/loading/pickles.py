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
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

from ..errors import ModelError, brief
from ..running.overlapping import Overlapping


@contextmanager
def _refused() -> Iterator[None]:
    before, torch.load = torch.load, _refuse  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.load = before


_REFUSED = Overlapping(_refused)


def no_pickles() -> AbstractContextManager[None]:
    """Refuses `torch.load` in this process while the block runs.

    Raises:
        ModelError: In place of opening a pickle.
    """
    return _REFUSED()


def _refuse(file: Any, *_: Any, **__: Any) -> Any:
    name = os.path.basename(file) if isinstance(file, (str, os.PathLike)) else brief(file)
    raise ModelError(f"{name} is read as a pickle, which can run code; save the weights as safetensors.")
