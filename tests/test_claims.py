import errno
import os
import subprocess
import sys
from contextlib import ExitStack
from importlib import import_module

import pytest

from peft_surgical.errors import OutputError
from peft_surgical.writing.claims import claimed
from peft_surgical.writing.files import atomic_directory
from peft_surgical.writing.inputs import check_inputs_stay

from .command_line import written


def test_a_claim_makes_folders_and_takes_back_those_that_stay_empty(tmp_path):
    deep = tmp_path / "a" / "b" / "out"
    with claimed(deep) as folder:
        assert folder == deep
        assert deep.is_dir()
    assert written(tmp_path) == []

    def fail():
        with claimed(deep):
            (deep / "kept").write_text("1")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert written(deep) == ["kept"]
    with pytest.raises(OutputError, match="is not empty"), claimed(deep):
        pytest.fail("the block ran")
    with claimed(deep, overwrite=True), pytest.raises(OutputError, match="another run"), claimed(deep, overwrite=True):
        pytest.fail("the block ran")
    assert written(deep) == ["kept"]


def test_a_link_to_nothing_yet_is_claimed_where_it_leads(tmp_path):
    (tmp_path / "link").symlink_to("real")
    with claimed(tmp_path / "link") as folder:
        (folder / "a").write_text("1")
    assert (tmp_path / "real" / "a").read_text() == "1"
    assert (tmp_path / "link").is_symlink()


def test_a_claim_of_a_folder_that_was_filled_before_it_was_locked(tmp_path, monkeypatch):
    claims = import_module("peft_surgical.writing.claims")
    lock = claims._lock

    def filled(path):
        path.mkdir()
        (path / "theirs").write_text("1")
        return lock(path)

    monkeypatch.setattr(claims, "_lock", filled)
    with pytest.raises(OutputError, match="is not empty"), claimed(tmp_path / "out"):
        pytest.fail("the block ran")
    assert written(tmp_path / "out") == ["theirs"]


def test_who_comes_too_late_leaves_the_folder_to_who_has_claimed_it(tmp_path, monkeypatch):
    claims = import_module("peft_surgical.writing.claims")
    lock, out, first = claims._lock, tmp_path / "a" / "out", ExitStack()

    def overtaken(path):
        # The other run makes and locks the folder after this one has seen that there is none.
        monkeypatch.setattr(claims, "_lock", lock)
        first.enter_context(claimed(out))
        return lock(path)

    monkeypatch.setattr(claims, "_lock", overtaken)
    with first:
        with pytest.raises(OutputError, match="another run"), claimed(out):
            pytest.fail("the block ran")
        assert out.is_dir()
        (out / "mine").write_text("1")
    assert written(out) == ["mine"]


def test_a_folder_that_is_removed_before_it_is_locked_is_made_and_locked_anew(tmp_path, monkeypatch):
    claims = import_module("peft_surgical.writing.claims")
    lock, out = claims.lock, tmp_path / "out"

    def overtaken(path):
        # The other run, which leaves nothing there, ends after this one has opened the folder.
        monkeypatch.setattr(claims, "lock", lock)
        handle = lock(path)
        path.rmdir()
        return handle

    monkeypatch.setattr(claims, "lock", overtaken)
    with claimed(out):
        assert out.is_dir()
        with pytest.raises(OutputError, match="another run"), claimed(out):
            pytest.fail("the block ran")


def test_the_claim_of_a_killed_run_is_gone(tmp_path):
    code = "import fcntl, os, sys; fcntl.flock(os.open(sys.argv[1], 0), fcntl.LOCK_EX); print(1, flush=True); input()"
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        with pytest.raises(OutputError, match="another run"), claimed(tmp_path):
            pytest.fail("the block ran")
        holder.kill()
        holder.wait()
    with claimed(tmp_path):
        pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_no_obstacle(number, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refuse)
    with claimed(tmp_path / "out") as folder:
        (folder / "a").write_text("1")
    monkeypatch.setattr("peft_surgical.writing.locks.fcntl", None)
    with claimed(tmp_path / "out", overwrite=True):
        pass
    assert written(tmp_path / "out") == ["a"]


def test_what_a_killed_run_left_is_removed_when_overwriting_is_allowed(tmp_path):
    for name in (
        ".learn.abcdefgh.partial",
        ".mine.partial",
        ".report.json.ijklmnop.partial",
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").write_text("")
    (tmp_path / ".page.html.abcdefgh.partial").write_text("")
    (tmp_path / ".mine").write_text("")
    with pytest.raises(OutputError), claimed(tmp_path):
        pytest.fail("the block ran")
    assert len(written(tmp_path)) == 5
    with claimed(tmp_path, overwrite=True):
        assert written(tmp_path) == [".mine", ".mine.partial"]


@pytest.mark.parametrize("entered", [claimed, atomic_directory])
@pytest.mark.skipif(sys.platform == "win32", reason="Windows keeps the folder that a process works in")
def test_the_current_folder_may_be_gone(entered, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "here").rmdir()
    with entered(tmp_path / "there") as folder:
        (folder / "kept").write_text("1")
    assert written(tmp_path / "there") == ["kept"]
    with pytest.raises(OutputError, match=r"^the current folder is gone; name the output by its whole path\.$"):
        entered("out").__enter__()
    with pytest.raises(OutputError, match=r"^the current folder is gone; name the output by its whole path\.$"):
        check_inputs_stay("out", [tmp_path])


def test_what_another_run_is_writing_inside_stays_when_overwriting_is_allowed(tmp_path):
    with atomic_directory(tmp_path / "merged") as folder:
        (folder / "weights").write_text("all")
        with claimed(tmp_path, overwrite=True):
            pass
    assert (tmp_path / "merged" / "weights").read_text() == "all"


def test_what_is_read_by_way_of_a_link_is_not_replaced(tmp_path):
    (tmp_path / "real" / "a").mkdir(parents=True)
    (tmp_path / "out").symlink_to("real")
    (tmp_path / "real" / "to nothing").symlink_to("none")
    check_inputs_stay(tmp_path / "out", [tmp_path, "none", None])
    for given in (tmp_path / "real" / "a", tmp_path / "out" / "to nothing"):
        with pytest.raises(OutputError, match=f"would replace {given}, which is read for it"):
            check_inputs_stay(tmp_path / "out", [given])
