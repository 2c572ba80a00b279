"""What is changed while any of several threads is within a block, and put back by whichever is last.

Each by itself would put back what it found, and that may be what another has changed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any


class Changes:
    """How many blocks each thing that was changed is in, and what puts it back."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._within: dict[Hashable, tuple[int, Callable[[], None]]] = {}

    def enter(self, key: Hashable, change: Callable[[], Callable[[], None] | None]) -> bool:
        """Changes something unless it is changed already.

        Args:
            key: What.
            change: Changes it, and returns what puts it back; None where there is nothing to change.

        Returns:
            Whether it is in one more block now, which is to be left.
        """
        with self._lock:
            count, put_back = self._within[key] if key in self._within else (0, change())
            if put_back is None:
                return False
            self._within[key] = count + 1, put_back
            return True

    def leave(self, key: Hashable) -> None:
        """Puts something back if this was the last block that it is in."""
        with self._lock:
            count, put_back = self._within.pop(key)
            if count > 1:
                self._within[key] = count - 1, put_back
            else:
                put_back()


class Overlapping:
    """A context for the whole process that several threads may be within at once: the first enters it, and whichever
    is last leaves it.

    Args:
        make: Makes the context anew, for each time that nobody is within it.
    """

    def __init__(self, make: Callable[[], AbstractContextManager[Any]]) -> None:
        self._make, self._changes = make, Changes()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Is within the context while a block runs."""
        self._changes.enter(None, self._enter)
        try:
            yield
        finally:
            self._changes.leave(None)

    def _enter(self) -> Callable[[], None]:
        with ExitStack() as entering:
            entering.enter_context(self._make())
            return entering.pop_all().close
