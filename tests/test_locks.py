import os

import pytest

from peft_surgical.writing import locks
from peft_surgical.writing.locks import lock


def test_a_folder_is_held_until_the_handle_is_closed(tmp_path):
    handle = lock(tmp_path)
    with pytest.raises(BlockingIOError):
        lock(tmp_path)
    os.close(handle)
    os.close(lock(tmp_path))


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        lock(tmp_path / "none")


def test_where_folders_have_no_locks(tmp_path, monkeypatch):
    opened, flock = [], locks.fcntl.flock

    def refuse(handle, operation):
        opened.append(handle)
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    assert lock(tmp_path) is None
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(opened[0])
    monkeypatch.setattr(locks.fcntl, "flock", flock)
    os.close(lock(tmp_path))
    monkeypatch.setattr(locks, "fcntl", None)
    assert lock(tmp_path) is None
