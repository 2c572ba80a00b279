import errno
import json
import os
import re
import stat
import time
from pathlib import Path

import pytest

from peft_surgical.errors import OutputError
from peft_surgical.writing import files
from peft_surgical.writing.files import atomic_directory, check_output, write_json, write_text


@pytest.fixture
def umask(request):
    before = os.umask(getattr(request, "param", 0o027))
    yield
    os.umask(before)


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_write_text_replaces(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    write_text(path, "né\n")
    assert path.read_bytes() == "né\n".encode()
    assert names(tmp_path) == ["a.txt"]


def test_half_a_text_is_never_seen(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "x" * 100_000 + "\ud800")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OutputError, match=rf"cannot write {path}: No space left on device\."):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize(("umask", "file", "held"), [(0o027, 0o640, 0o750), (0o002, 0o664, 0o775)], indirect=["umask"])
def test_permissions_are_the_usual_ones(tmp_path, umask, file, held):
    write_text(tmp_path / "a", "")
    with atomic_directory(tmp_path / "d") as folder:
        (inner := folder / "inner").mkdir(mode=0o700)
        # Safetensors makes private files.
        (inner / "private").touch(mode=0o600)
    assert mode(tmp_path / "a") == mode(tmp_path / "d" / "inner" / "private") == file
    assert mode(tmp_path / "d") == mode(tmp_path / "d" / "inner") == held
    assert os.umask(0o777 - held) == 0o777 - held


def test_a_folder_has_the_bit_that_hands_a_group_on_as_any_other_has(tmp_path, umask):
    tmp_path.chmod(0o2770)
    (tmp_path / "any").mkdir()
    with atomic_directory(tmp_path / "d") as folder:
        (folder / "inner").mkdir()
    assert mode(tmp_path / "d") == mode(tmp_path / "d" / "inner") == mode(tmp_path / "any")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such pipes")
@pytest.mark.parametrize("link", [False, True])
def test_what_is_no_regular_file_stays(tmp_path, link):
    os.mkfifo(pipe := tmp_path / "pipe")
    path = tmp_path / "link" if link else pipe
    if link:
        path.symlink_to(pipe)
    with pytest.raises(OutputError, match=rf"^cannot write {path}: it is there and is no regular file; .*\.$"):
        write_text(path, "x")
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert path.is_symlink() == link
    assert names(tmp_path) == (["link", "pipe"] if link else ["pipe"])


def test_a_private_file_stays_private_and_a_link_is_replaced(tmp_path, umask):
    private, link = tmp_path / "private", tmp_path / "link"
    private.write_text("old")
    private.chmod(0o600)
    link.symlink_to(private)
    write_text(link, "new")
    assert not link.is_symlink()
    assert (link.read_text(), private.read_text()) == ("new", "old")
    write_text(tmp_path / "usual", "new")
    assert link.stat().st_mode == (tmp_path / "usual").stat().st_mode != private.stat().st_mode
    write_text(private, "new")
    assert private.stat().st_mode & 0o777 == 0o600


def test_what_a_link_in_a_folder_leads_to_stays_private(tmp_path):
    private = tmp_path / "private"
    private.write_text("mine")
    private.chmod(0o600)
    with atomic_directory(tmp_path / "out") as folder:
        (folder / "link").symlink_to(private)
    assert (tmp_path / "out" / "link").read_text() == "mine"
    assert private.stat().st_mode & 0o777 == 0o600


def test_where_text_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "none" / "a", tmp_path / "file" / "a", tmp_path / "folder"):
        with pytest.raises(OutputError, match=rf"^cannot write {path}: .*\.$"):
            write_text(path, "x")
    assert names(tmp_path) == ["file", "folder"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS])
def test_a_disk_that_fills_within_a_folder_is_told_of_by_the_outputs_name(number, tmp_path):
    full = OSError(number, os.strerror(number))
    with pytest.raises(OutputError, match=f"^{re.escape(f'cannot write {tmp_path}/out: {full.strerror}.')}$"):
        with atomic_directory(tmp_path / "out") as folder:
            raise OutputError(f"cannot write {folder / 'a'}: {full}.") from full


def test_json_has_no_nan(tmp_path):
    write_json(tmp_path / "a.json", {"é": [1, 0.1]})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"é": [1, 0.1]}
    assert "é" in (tmp_path / "a.json").read_text(encoding="utf-8")
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="JSON compliant"):
            write_json(tmp_path / "b.json", value)
    assert names(tmp_path) == ["a.json"]


def test_a_folder_appears_whole_and_is_held_open_no_longer(tmp_path, monkeypatch):
    out, held, locked = tmp_path / "new" / "out", [], files._locked
    monkeypatch.setattr(files, "_locked", lambda folder: held.append(locked(folder)) or held[-1])
    with atomic_directory(out) as temporary:
        (temporary / "a").write_text("1")
        assert not out.exists()
        assert temporary.parent == out.parent
        os.fstat(held[0])
    assert (out / "a").read_text() == "1"
    assert names(out.parent) == ["out"]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(held[0])


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_leaves_the_old_folder(tmp_path, error):
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("1")

    def broken(path):
        with atomic_directory(path, overwrite=True) as temporary:
            (temporary / "new").write_text("2")
            raise error

    for path in (out, tmp_path / "other"):
        with pytest.raises(error):
            broken(path)
    assert names(tmp_path) == ["out"]
    assert names(out) == ["old"]


def test_overwriting_leaves_nothing_of_the_old_folder(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("1")
    with atomic_directory(out, overwrite=True) as temporary:
        (temporary / "new").write_text("2")
        assert names(out) == ["old"]
    assert names(out) == ["new"]
    assert names(tmp_path) == ["out"]


def test_a_failing_rename_puts_the_old_folder_back(tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("1")
    rename = os.rename

    def failing(source, target):
        if "old" not in str(source) and Path(target) == out:
            raise OSError(5, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(OutputError, match=r"Input/output error\.$"), atomic_directory(out, overwrite=True):
        pass
    assert names(out) == ["old"]
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("link", [False, True])
@pytest.mark.parametrize("renamed", [0, 1])
@pytest.mark.parametrize("call", [1, 2])
def test_an_interrupted_rename_loses_nothing(call, renamed, link, tmp_path, monkeypatch):
    place, real = tmp_path / "place", tmp_path / "real"
    place.mkdir()
    out = place / "out"
    (real if link else out).mkdir()
    if link:
        out.symlink_to(Path("..", "real"))
    (out / "old").write_text("1")
    rename, calls = os.rename, []

    def interrupted(source, target):
        calls.append(source)
        if len(calls) != call or renamed:
            rename(source, target)
        if len(calls) == call:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), atomic_directory(out, overwrite=True) as temporary:
        (temporary / "new").write_text("2")
    assert names(out) == ["new" if (call, renamed) == (2, 1) else "old"]
    assert names(place) == ["out"]


def test_an_empty_folder_is_taken_but_not_one_filled_meanwhile(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with atomic_directory(out) as temporary:
        (temporary / "a").write_text("1")
    assert names(out) == ["a"]
    other = tmp_path / "other"

    def raced():
        with atomic_directory(other):
            other.mkdir()
            (other / "theirs").write_text("1")

    with pytest.raises(OutputError, match=r"other: another run has filled it meanwhile\.$"):
        raced()
    assert names(other) == ["theirs"]


def test_what_a_killed_run_left_of_a_folder_with_brackets_is_removed(tmp_path):
    for name in (".a[b].x.partial", ".ab.x.partial"):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (time.time() - 600,) * 2)
    with atomic_directory(tmp_path / "a[b]"):
        pass
    assert names(tmp_path) == [".ab.x.partial", "a[b]"]


@pytest.mark.parametrize("name", ["x" * 255, "é" * 120, "é" * 33, "\U0001d11e" * 60])
def test_a_long_name_is_written(name, tmp_path):
    write_text(tmp_path / name, "1")
    assert (tmp_path / name).read_text() == "1"
    os.remove(tmp_path / name)
    for content in ("1", "2"):
        with atomic_directory(tmp_path / name, overwrite=True) as folder:
            (folder / content).touch()
        assert names(tmp_path) == [name]
        assert names(tmp_path / name) == [content]


@pytest.mark.parametrize("name", ["out", "x" * 240])
def test_what_is_left_of_another_output_stays(name, tmp_path):
    left = []
    for other in (name, f"{name}.more", f"{name}y"):
        with atomic_directory(tmp_path / other) as folder:
            left.append(folder.name)
    for folder in left:
        (tmp_path / folder).mkdir()
        os.utime(tmp_path / folder, (time.time() - 600,) * 2)
    with atomic_directory(tmp_path / name):
        pass
    assert not (tmp_path / left[0]).exists()
    assert all((tmp_path / other).is_dir() for other in left[1:])


def test_an_empty_folder_is_taken_where_nothing_is_renamed_over_another(tmp_path, monkeypatch):
    rename = os.rename

    def as_on_windows(source, target):
        if os.path.lexists(target):
            raise FileExistsError(17, "File exists")
        rename(source, target)

    monkeypatch.setattr(os, "rename", as_on_windows)
    test_an_empty_folder_is_taken_but_not_one_filled_meanwhile(tmp_path)


def test_what_a_killed_run_left_half_written_is_removed(tmp_path):
    out, minutes_ago = tmp_path / "out", time.time() - 600

    def half(name, when=minutes_ago):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "half").write_text("x")
        os.utime(folder, (when, when))

    for name in (".out.a.partial", ".other.a.partial", ".out.a.old"):
        half(name)
    half(".out.new.partial", time.time())
    (tmp_path / ".out.file.partial").write_text("")
    with atomic_directory(out) as running:
        os.utime(running, (minutes_ago, minutes_ago))
        # A run that goes on for long is not one that was killed.
        with atomic_directory(out):
            assert running.is_dir()
        out.rmdir()
    assert names(tmp_path) == [".other.a.partial", ".out.a.old", ".out.file.partial", ".out.new.partial", "out"]


def test_a_link_is_replaced_and_not_what_it_leads_to(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a").write_text("1")
    (tmp_path / "link").symlink_to("real")
    with atomic_directory(tmp_path / "link", overwrite=True) as temporary:
        (temporary / "b").write_text("2")
    assert names(tmp_path / "link") == ["b"]
    assert names(tmp_path / "real") == ["a"]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("there", [False, True])
def test_a_link_to_nothing_yet_leads_to_the_new_folder(tmp_path, there, overwrite):
    (tmp_path / "disk").mkdir()
    if there:
        (tmp_path / "disk" / "real").mkdir()
    (tmp_path / "link").symlink_to(Path("disk", "real"))
    with atomic_directory(tmp_path / "link", overwrite=overwrite) as temporary:
        (temporary / "a").write_text("1")
    assert (tmp_path / "link").is_symlink()
    assert names(tmp_path / "disk" / "real") == ["a"]
    assert names(tmp_path / "disk") == ["real"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_folder_one_works_in_is_not_replaced(tmp_path, monkeypatch, overwrite):
    inner = tmp_path / "inner"
    inner.mkdir()
    monkeypatch.chdir(inner)
    for path in (".", inner, *([".."] if overwrite else [])):
        with pytest.raises(OutputError, match="holds the current or the home folder"):
            with atomic_directory(path, overwrite=overwrite):
                pass
    with atomic_directory("here") as temporary:
        assert temporary.parent == inner
    assert names(inner) == ["here"]


def test_the_home_folder_is_not_replaced(tmp_path, monkeypatch):
    home = tmp_path / "people" / "home"
    home.mkdir(parents=True)
    (home / "mine").write_text("1")
    monkeypatch.setenv("HOME", str(home))
    for path in (home, home.parent):
        with pytest.raises(OutputError, match="holds the current or the home folder"):
            with atomic_directory(path, overwrite=True):
                pytest.fail("the block ran")
    assert names(home) == ["mine"]


def test_outputs_that_are_refused(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    full = tmp_path / "full"
    full.mkdir()
    (full / "a").write_text("")
    for path in (tmp_path, tmp_path / "none" / "deeper"):
        check_output(path, overwrite=True)
    with pytest.raises(OutputError, match=r"the output .*file is a file; name a folder\."):
        check_output(tmp_path / "file", overwrite=True)
    with pytest.raises(OutputError, match=r"cannot write .*file/x: .*file is a file\."):
        check_output(tmp_path / "file" / "x")
    with pytest.raises(OutputError, match=r"the output folder .*full is not empty; name another one or allow"):
        check_output(full)
    check_output(full, overwrite=True)
    with pytest.raises(OutputError, match="File name too long"):
        check_output(tmp_path / ("x" * 300))
    monkeypatch.setattr(os, "access", lambda path, _: Path(path) != tmp_path)
    with pytest.raises(OutputError, match=rf"cannot write {tmp_path}/none: {tmp_path} is not writable\."):
        check_output(tmp_path / "none")
    with pytest.raises(OutputError), atomic_directory(tmp_path / "none"):
        pytest.fail("the block ran")
    assert names(tmp_path) == ["file", "full"]


def test_a_folder_that_cannot_be_looked_into(tmp_path, monkeypatch):
    def denied(_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", denied)
    with pytest.raises(OutputError, match=rf"cannot write {tmp_path}: Permission denied\."):
        check_output(tmp_path)
