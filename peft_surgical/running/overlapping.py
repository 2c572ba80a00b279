"""What is one for the whole process, changed while any of several threads is within a block."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any


class Overlapping:
    """A context that several threads may be within at once: the first enters it, and whichever is last leaves it.

    Each by itself would put back what it found, and that may be what another has changed.

    Args:
        make: Makes the context anew, for each time that nobody is within it.
    """

    def __init__(self, make: Callable[[], AbstractContextManager[Any]]) -> None:
        self._make, self._lock, self._within, self._entered = make, threading.Lock(), 0, ExitStack()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Is within the context while a block runs."""
        with self._lock:
            if not self._within:
                self._entered.enter_context(self._make())
            self._within += 1
        try:
            yield
        finally:
            with self._lock:
                self._within -= 1
                if not self._within:
                    self._entered.close()
