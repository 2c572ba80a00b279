"""Giving back what one part of the work has freed before the next one begins.

glibc keeps what is freed for the thread that freed it. What localization held then stays with the main thread while
training allocates the same again in threads of its own, and the process holds both.
"""

from __future__ import annotations

import ctypes
import platform
from functools import cache
from typing import Any


def release_freed() -> bool:
    """Gives freed memory back to the system, which takes some hundredths of a second.

    Returns:
        Whether there was any; false, too, where another C library than glibc is used.
    """
    library = glibc()
    return library is not None and bool(library.malloc_trim(0))


@cache
def glibc() -> Any:
    """The C library, to call its functions; None where it is another one."""
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
