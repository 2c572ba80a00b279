import platform
import subprocess
import sys

import pytest

from peft_surgical.running import freed

# What is freed below something that stays is not given back by itself.
HELD = """
import torch
from peft_surgical.running.freed import release_freed

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 // 2**20

torch.ones(8 * 2**18), torch.ones(8 * 2**18)  # glibc's own bound moves
before = resident()
large, kept = zip(*[(torch.ones(2**18), torch.ones(2**10)) for _ in range(200)])
del large
held = resident() - before
assert release_freed()
print(held, resident() - before)
"""


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or not sys.platform.startswith("linux"), reason="another C library, or no /proc"
)
def test_what_was_freed_goes_back():
    run = subprocess.run([sys.executable, "-c", HELD], capture_output=True, text=True, check=True)
    held, left = map(int, run.stdout.split())
    # 200 MiB in blocks of 1.
    assert held > 150
    assert left < 50


def test_another_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(freed, "glibc", lambda: None)
    assert not freed.release_freed()


def test_the_library_is_looked_up_by_its_name(monkeypatch):
    monkeypatch.setattr("platform.libc_ver", lambda: ("", ""))
    assert freed.glibc.__wrapped__() is None
