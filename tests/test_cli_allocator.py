import pytest

from peft_surgical.cli.allocator import give_back_freed

from .resident import glibc, measured, reads_proc

# Large blocks between small ones that stay, twice: what was freed the first time moves glibc's own bound.
# Both ways from the same beginning.
HOLES = """
import os
import torch
from peft_surgical.cli.allocator import give_back_freed

for given in (True, False):
    if os.fork():
        assert os.wait()[1] == 0
        continue
    if given:
        assert give_back_freed()
    kept, before = [], resident()
    for _ in range(2):
        large = []
        for _ in range(40):
            large.append(torch.ones(8 * 2**18))
            kept.append(torch.ones(2**14))
        del large
    print(resident() - before)
    break
"""


@glibc
@reads_proc
def test_what_is_freed_goes_back():
    given, as_it_is = measured(HOLES)
    # 320 MiB in blocks of 8 were freed, and 5 MiB kept.
    assert given < 64
    assert as_it_is > 256


@glibc
@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"])
def test_who_has_set_it_is_left_alone(monkeypatch, name):
    monkeypatch.setenv(name, "1")
    assert not give_back_freed()


def test_another_library_is_left_alone(monkeypatch):
    monkeypatch.setattr("peft_surgical.cli.allocator.glibc", lambda: None)
    assert not give_back_freed()
