"""Progress bars on standard error that are silent when it is neither a terminal nor a notebook's, or nobody asked."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from tqdm.auto import tqdm

from .running.sharing import is_main

T = TypeVar("T")


def progress_bar(total: int, description: str, *, enabled: bool) -> Any:
    """A tqdm bar; `disable=None` is tqdm's own "only on a terminal", which a notebook's stream denies to be."""
    # A program without a console may have no such stream, to which tqdm would write all the same.
    shown = enabled and is_main() and sys.stderr is not None
    disable = None if shown and not _in_notebook() else not shown
    return tqdm(total=total, desc=description, disable=disable, leave=False, dynamic_ncols=True)


def tracked(items: Iterable[T], total: int, description: str, *, enabled: bool) -> Iterator[T]:
    """The same items, counted on such a bar as they are done."""
    with progress_bar(total, description, enabled=enabled) as bar:
        for item in items:
            yield item
            bar.update()


def _in_notebook() -> bool:
    return type(sys.stderr).__module__.partition(".")[0] == "ipykernel"
