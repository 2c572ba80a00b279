"""Progress bars on standard error that are silent when it is not a terminal or nobody asked."""

from __future__ import annotations

from typing import Any

from tqdm import tqdm

from .running.sharing import is_main


def progress_bar(total: int, description: str, *, enabled: bool) -> Any:
    """A tqdm bar; `disable=None` is tqdm's own "only on a terminal"."""
    shown = enabled and is_main()
    return tqdm(total=total, desc=description, disable=None if shown else True, leave=False, dynamic_ncols=True)
