import os
import platform
import subprocess
import sys

import pytest

from peft_surgical.cli.allocator import give_back_freed

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")

# Large blocks between small ones that stay, twice: what was freed the first time moves glibc's own bound.
HOLES = """
import sys
import torch
from peft_surgical.cli.allocator import give_back_freed

if sys.argv[1] == "set":
    assert give_back_freed()

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 // 2**20

kept, before = [], resident()
for _ in range(2):
    large = []
    for _ in range(40):
        large.append(torch.ones(8 * 2**18))
        kept.append(torch.ones(2**14))
    del large
print(resident() - before)
"""


def environment():
    return {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}


@glibc
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_what_is_freed_goes_back():
    def held(how):
        command = [sys.executable, "-c", HOLES, how]
        run = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
        return int(run.stdout)

    # 320 MiB in blocks of 8 were freed, and 5 MiB kept.
    assert held("set") < 64
    assert held("as it is") > 256


@glibc
@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"])
def test_who_has_set_it_is_left_alone(monkeypatch, name):
    monkeypatch.setenv(name, "1")
    assert not give_back_freed()


def test_another_library_is_left_alone(monkeypatch):
    monkeypatch.setattr("peft_surgical.cli.allocator.glibc", lambda: None)
    assert not give_back_freed()
