"""Progress bars on standard error that are silent when it is not a terminal or nobody asked."""

from __future__ import annotations

from typing import Any

from tqdm import tqdm


def progress_bar(total: int, description: str, *, enabled: bool) -> Any:
    """A tqdm bar; `disable=None` is tqdm's own "only on a terminal"."""
    return tqdm(total=total, desc=description, disable=None if enabled else True, leave=False, dynamic_ncols=True)
