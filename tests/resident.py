"""Memory that a process of its own holds, with glibc's allocator as it is set up by default."""

import os
import platform
import subprocess
import sys

import pytest

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
reads_proc = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")

RESIDENT = """
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 // 2**20
"""


def measured(script: str, *arguments: str) -> list[int]:
    """The numbers that a script prints, which may call `resident` for the MiB that its process holds."""
    unset = ("MALLOC_", "GLIBC_TUNABLES")
    run = subprocess.run(
        [sys.executable, "-c", RESIDENT + script, *arguments],
        env={name: value for name, value in os.environ.items() if not name.startswith(unset)},
        capture_output=True,
        text=True,
        check=True,
    )
    return [int(number) for number in run.stdout.split()]
