"""Writing files so that a reader never sees half of one.

Everything is written beside its destination, under a name that ends in `.partial`, and renamed into place, which is
atomic on one file system.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError

from ..errors import OutputError, brief
from .locks import lock

PARTIAL = ".partial"
# Seconds after which a half-written folder that no process holds is nobody's; one that is being made has no lock yet.
_ABANDONED = 60.0
# What `tempfile` makes of the name of an output.
_TEMPORARY = re.compile(rf"\..+\.[a-z0-9_]{{8}}{re.escape(PARTIAL)}", re.S)

# Bytes; with what stands around it, it is a name on any file system.
_SHORT_NAME = 64

# A full disk, a quota, the largest file allowed, and a file system without writing.
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}


class Content(NamedTuple):
    """What a folder that is written as a whole holds, and a pattern of a file's name that tells so."""

    name: str
    file: str


ADAPTER = Content("adapter", "adapter_config.json")
CHECKPOINT = Content("checkpoint", "model*.safetensors")


@contextmanager
def as_output_error(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turns what the system says while a block writes to `path` into an `OutputError` that names the path.

    Raises:
        OutputError: In place of any other OSError.
    """
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}.") from error


def whole_path(path: str | os.PathLike[str]) -> Path:
    """The whole path of an output.

    Raises:
        OutputError: If it begins at the current folder, and that was removed.
    """
    try:
        return Path(os.path.abspath(path))
    except FileNotFoundError as error:
        raise OutputError("the current folder is gone; name the output by its whole path.") from error


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes `text` as UTF-8 to `path`, see [`write_bytes`]."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes `content` to `path`, all of it or nothing.

    Raises:
        OutputError: If the folder does not exist or cannot be written, or if `path` is there and is no regular file,
            such as a pipe or a device.
    """
    path = Path(path)
    with as_output_error(path):
        # Renaming replaces whatever is there, and says so of a folder only.
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise OutputError(f"cannot write {path}: it is there and is no regular file; name another one.")
        # A file that somebody made private stays so.
        there = path.is_file() and not path.is_symlink()
        mode = stat.S_IMODE(path.stat().st_mode) if there else 0o666 & ~_umask()
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=_beside(path), suffix=PARTIAL)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            # mkstemp makes private files; what a person publishes should have the usual permissions.
            os.chmod(temporary, mode)
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes `value` as indented JSON to `path`; NaN and infinity are refused, since JSON has neither."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Parses a JSON file.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is not JSON in UTF-8, holds NaN or infinity, has a key twice, or is nested deeper than Python
            can follow.
    """

    def refuse(constant: str) -> Any:
        raise ValueError(f"it holds {constant}, which JSON does not have")

    try:
        # Editors of Windows begin a file with a byte order mark.
        text = Path(path).read_text(encoding="utf-8-sig")
        return json.loads(text, parse_constant=refuse, object_pairs_hook=no_key_twice)
    except UnicodeDecodeError as error:
        raise ValueError("it is not UTF-8 text") from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


class KeyTwiceError(ValueError):
    """A JSON object has a key twice."""


def no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of some pairs, as `object_pairs_hook` for Python's reader, which would keep the last of a key.

    Raises:
        KeyTwiceError: If a key stands twice.
    """
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise KeyTwiceError(f"the key {brief(key)} stands twice")
        found[key] = value
    return found


def why_unread(error: OSError | ValueError) -> str:
    """What [`read_json`] raised in words, without the number and the path that the system puts around them."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


@contextmanager
def atomic_directory(
    path: str | os.PathLike[str], *, overwrite: bool = False, content: Content | None = None
) -> Iterator[Path]:
    """A folder to fill that appears at `path` when the block ends without an error, and not at all otherwise.

    What killed runs left half written for the same `path` is removed. A link to an empty folder, or to none yet, stays
    one: the new folder is where it leads to.

    Args:
        path: Where the folder shall be.
        overwrite: Replace an existing folder; it stays as it was until the new one is complete.
        content: What a folder must hold to be replaced; anything when None.

    Yields:
        A temporary folder beside `path`.

    Raises:
        OutputError: If `path` is in the way or its parent cannot be written, or if replacing it would take away the
            folder somebody works in, or one that holds something else.
    """
    path = whole_path(path)
    check_output(path, overwrite=overwrite, content=content)
    if path.is_symlink() and not (path.is_dir() and any(path.iterdir())):
        path = Path(os.path.realpath(path))
    used = [Path(os.path.expanduser("~"))]
    # Somebody may have removed the folder that this process works in.
    with suppress(FileNotFoundError):
        used.append(Path.cwd())
    if path.is_dir() and any(place.is_relative_to(path.resolve()) for place in used):
        raise OutputError(f"the output {path} holds the current or the home folder; name a folder inside it.")
    with as_output_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with partial_directory(path, path.parent) as temporary:
        _remove_abandoned(path)
        yield temporary
        try:
            _make_usual(temporary)
            _swap(temporary, path, overwrite)
        except OSError as error:
            filled = error.errno in (errno.ENOTEMPTY, errno.EEXIST)
            reason = "another run has filled it meanwhile" if filled else error.strerror or error
            raise OutputError(f"cannot write {path}: {reason}.") from error


@contextmanager
def partial_directory(path: Path, parent: Path) -> Iterator[Path]:
    """A folder in `parent` for what will be renamed to `path` or into it; what is left in it at the end is removed.

    Raises:
        OutputError: If it cannot be made, or there is no room for what the block writes.
    """
    with as_output_error(path):
        temporary = Path(tempfile.mkdtemp(dir=parent, prefix=_beside(path), suffix=PARTIAL))
    handle = _locked(temporary)
    try:
        yield temporary
    except BaseException as error:
        if (room := _no_room(error)) is not None:
            raise OutputError(f"cannot write {path}: {room}.") from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if handle is not None:
            os.close(handle)


def _beside(path: Path) -> str:
    """What names of temporary files for `path` begin with: for a long one its hash, as there is no room behind it."""
    name = os.fsencode(path.name)
    return f".{path.name}." if len(name) <= _SHORT_NAME else f".{hashlib.sha256(name).hexdigest()}."


def _make_usual(folder: Path) -> None:
    """Gives a folder and what was written into it the usual permissions.

    mkdtemp makes private folders, and safetensors private files. What a folder has beside permissions, as the bit that
    hands its group on, it has from the one that it stands in.
    """
    mask = _umask()
    for place, _, names in os.walk(folder):
        os.chmod(place, stat.S_IMODE(os.stat(place).st_mode) & ~0o777 | 0o777 & ~mask)
        for name in names:
            if not os.path.islink(own := os.path.join(place, name)):
                os.chmod(own, 0o666 & ~mask)


def _locked(folder: Path) -> int | None:
    """A handle of the folder that keeps others from locking it; None where somebody has, or folders have no locks."""
    with suppress(OSError):
        return lock(folder)
    return None


def _remove_abandoned(path: Path) -> None:
    beside = _beside(path)
    for left in path.parent.glob(f"{glob.escape(beside)}*{PARTIAL}"):
        if "." in left.name.removeprefix(beside).removesuffix(PARTIAL):
            # Of an output whose name goes on behind this one's.
            continue
        with suppress(OSError):
            if left.is_dir() and _is_old(left):
                _remove_unlocked(left)


def remove_abandoned(folder: Path, *, shared: bool = False) -> None:
    """Removes what killed runs left half written in a folder that no other run has claimed.

    A folder within it that a run is writing all the same, as a merge into one of its own, stays.

    Args:
        folder: Where.
        shared: Other runs write there, too, so what was written to a short time ago stays.
    """
    for left in folder.glob(f".*{PARTIAL}"):
        if not _TEMPORARY.fullmatch(left.name) or (shared and not _is_old(left)):
            continue
        if left.is_dir():
            _remove_unlocked(left)
        else:
            left.unlink(missing_ok=True)


def _is_old(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime >= _ABANDONED
    except FileNotFoundError:
        # Another run has put it in its place meanwhile.
        return False


def _remove_unlocked(folder: Path) -> None:
    handle = _locked(folder)
    if handle is not None:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def _no_room(error: BaseException) -> str | None:
    """Why nothing more can be written, if that is what an error says."""
    # Of what a file within was called nobody knows.
    while isinstance(error, OutputError) and error.__cause__ is not None:
        error = error.__cause__
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, SafetensorError) and (found := re.search(r"\(os error (\d+)\)", str(error))):
        number = int(found[1])
    return os.strerror(number) if number in _NO_ROOM else None


def check_output(
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    content: Content | None = None,
    how: str = "allow overwriting it",
) -> None:
    """Refuses an output folder that would lose something.

    Args:
        path: The folder.
        overwrite: Allow it to hold something.
        content: What it must hold then, if it is not empty, since all of it will be replaced; anything when None.
        how: What a person is told to do to allow it.

    Raises:
        OutputError: If `path` is a file, or a folder that is not empty while `overwrite` is false or that holds
            something else.
    """
    path = Path(path)
    with as_output_error(path):
        if path.exists() and not path.is_dir():
            raise OutputError(f"the output {path} is a file; name a folder.")
        filled = path.is_dir() and any(path.iterdir())
        if filled and not overwrite:
            raise OutputError(f"the output folder {path} is not empty; name another one or {how}.")
        if filled and content is not None and not any(path.glob(content.file)):
            raise OutputError(f"{path} holds no {content.name}, so it is not replaced; name another output folder.")
        existing = next((p for p in (path, *path.parents) if p.exists()), None)
        if existing is not None and not existing.is_dir():
            raise OutputError(f"cannot write {path}: {existing} is a file.")
        if existing is not None and not os.access(existing, os.W_OK):
            raise OutputError(f"cannot write {path}: {existing} is not writable.")


def check_output_file(
    path: str | os.PathLike[str], *, overwrite: bool = False, how: str = "allow overwriting it"
) -> None:
    """Refuses an output file that would lose something.

    Args:
        path: The file.
        overwrite: Allow it to be there.
        how: What a person is told to do to allow it.

    Raises:
        OutputError: If `path` is there and is no file, such as a folder, a pipe, a device or a link to nothing; or is
            a file while `overwrite` is false.
    """
    path = Path(path)
    if path.is_dir():
        raise OutputError(f"the output {path} is a folder; name a file.")
    # A link that leads nowhere does not exist for `exists`.
    if os.path.lexists(path) and not path.is_file():
        raise OutputError(f"the output {path} is there and is no regular file; name another one.")
    if path.exists() and not overwrite:
        raise OutputError(f"the file {path} exists; name another one or {how}.")


def _swap(temporary: Path, path: Path, overwrite: bool) -> None:
    if not overwrite or not path.exists():
        try:
            # Takes the place of an empty folder too, and fails on one that somebody filled meanwhile.
            os.rename(temporary, path)
        except FileExistsError:
            # Windows renames over nothing that is there.
            os.rmdir(path)
            os.rename(temporary, path)
        return
    # A full folder cannot be renamed over: move the old one aside, and put it back if the new one does not arrive, be
    # it for an interrupt.
    aside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f"{_beside(path)}old."))
    old = aside / path.name
    try:
        os.rename(path, old)
        os.rename(temporary, path)
    finally:
        if os.path.lexists(old) and not os.path.lexists(path):
            os.rename(old, path)
        shutil.rmtree(aside, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
