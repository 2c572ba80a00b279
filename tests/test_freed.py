from peft_surgical.running import freed

from .resident import glibc, measured, reads_proc

# What is freed below something that stays is not given back by itself.
HELD = """
import torch
from peft_surgical.running.freed import release_freed

torch.ones(8 * 2**18), torch.ones(8 * 2**18)  # glibc's own bound moves
before = resident()
large, kept = zip(*[(torch.ones(2**18), torch.ones(2**10)) for _ in range(200)])
del large
held = resident() - before
assert release_freed()
print(held, resident() - before)
"""


@glibc
@reads_proc
def test_what_was_freed_goes_back():
    held, left = measured(HELD)
    # 200 MiB in blocks of 1.
    assert held > 150
    assert left < 50


def test_another_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(freed, "glibc", lambda: None)
    assert not freed.release_freed()


def test_the_library_is_looked_up_by_its_name(monkeypatch):
    monkeypatch.setattr("platform.libc_ver", lambda: ("", ""))
    assert freed.glibc.__wrapped__() is None
