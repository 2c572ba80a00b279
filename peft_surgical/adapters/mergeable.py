"""An adapter of either kind that is computed with: scales, which multiply, or LoRA, which adds."""

from __future__ import annotations

import os
from typing import TypeAlias

from .edits import Edit, as_edit
from .low_rank import LowRank, is_low_rank

Mergeable: TypeAlias = Edit | LowRank | str | os.PathLike[str]
"""What [`merge`] folds: an (IA)³ edit in memory, a LoRA adapter that was read, or the folder of either."""


def read_mergeable(adapter: Mergeable) -> Edit | LowRank:
    """An adapter of scales or of LoRA, read unless it is in memory.

    Raises:
        AdapterError: If it cannot be read, or is of neither kind.
    """
    if isinstance(adapter, LowRank):
        return adapter
    if isinstance(adapter, str | os.PathLike) and is_low_rank(adapter):
        return LowRank.load(adapter)
    return as_edit(adapter)
