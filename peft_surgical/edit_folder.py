"""The folder that an edit writes: what stands in it, and that no other run and nothing of anybody's gets lost."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from .adapters.adapter_files import CONFIG
from .errors import ModelError, OutputError, brief
from .report import Report
from .reporting.card import with_measured
from .reporting.page import render_page
from .staging.stage import LEARN, UNLEARN
from .writing.claims import claimed
from .writing.files import as_output_error, partial_directory, read_json, write_bytes, write_text

EDIT = "edit"
"""The folder of the adapter that is the whole edit, beside those of its stages."""

TABLE, PICTURE = "localization.json", "localization.png"
REPORT, PAGE = "report.json", "report.html"
MAP, MAP_PICTURE = "trace.json", "trace.png"
TOGETHER = "together.json"
"""Of several edits with all of them acting, beside the folder of each."""

LOCALIZATION, EVALUATION, TRACE = (TABLE, PICTURE), (REPORT, PAGE), (MAP, MAP_PICTURE)
_FOLDERS = (UNLEARN, LEARN, EDIT)
# What tells a file of ours from one of anybody's by the same name.
_OURS = {
    TABLE: {"format", "scorers", "scores"},
    REPORT: {"fact", "stages", "answers"},
    MAP: {"format", "direction", "values"},
    TOGETHER: {"facts", "pooled"},
}
WRITTEN = (*LOCALIZATION, *_FOLDERS, *EVALUATION)
_REPLACED = ".replaced."


@contextmanager
def claimed_for_edit(out: str | os.PathLike[str], overwrite: bool) -> Iterator[Path]:
    """Claims the folder of an edit, see [`claimed`]. A report in it that somebody made private stays so.

    Raises:
        OutputError: As for [`claimed`] and [`check_edit_folder`].
    """
    with claimed(out, overwrite=overwrite) as folder:
        check_edit_folder(folder)
        modes = {path: path.stat().st_mode for path in (folder / name for name in EVALUATION) if path.is_file()}
        yield folder
        for path, mode in modes.items():
            if path.is_file():
                path.chmod(stat.S_IMODE(mode))


def check_command(command: object) -> None:
    """Refuses what cannot stand in a report as the command that made it.

    Raises:
        ModelError: If it is no text.
    """
    if command is not None and not isinstance(command, str):
        raise ModelError(f"the command, which the report is to tell, must be text, not {brief(command)}.")


def check_edit_folder(out: Path, names: Sequence[str] = WRITTEN) -> None:
    """Refuses a folder from which removing an earlier edit would take something else of the same name.

    Args:
        out: The folder.
        names: What of an edit is to be removed; all of it by default.

    Raises:
        OutputError: If one of an edit's folders is there and is a file, or holds something, but no adapter; if one of
            its files is there and is no file, or its report or localization is another kind of file; or if its adapter
            is that of several edits, whose figures would stay behind.
    """
    if EDIT in names and TOGETHER not in names and is_ours(out / TOGETHER):
        raise OutputError(f"{out} is the folder of several edits; name another output folder.")
    for path in (out / name for name in names):
        if not path.exists():
            continue
        if path.name not in _FOLDERS:
            if not path.is_file() or (path.name in _OURS and not is_ours(path)):
                raise OutputError(
                    f"{path} is no {path.stem} of an edit, so it is not replaced; name another output folder."
                )
        elif not path.is_dir():
            raise OutputError(f"{path} is a file and no adapter, so it is not replaced; name another output folder.")
        elif any(path.iterdir()) and not (path / CONFIG).is_file():
            raise OutputError(f"{path} holds no adapter, so it is not replaced; name another output folder.")


def is_ours(path: Path) -> bool:
    """Whether a file that is called as one of ours holds what that does; not where there is none."""
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and _OURS[path.name] <= found.keys()


@contextmanager
def replacing(out: Path, overwrite: bool, names: Sequence[str] = WRITTEN) -> Iterator[Path]:
    """A folder for a result that, with `overwrite`, takes the place of an earlier one when the block ends.

    The earlier one stays as it was if the block fails or is interrupted. What cannot be put back, or is not because
    this process is killed, stays in a folder within `out`, whose name begins with `.replaced.`, until the next result
    has taken its place. Without `overwrite` nothing is in the way: the folder is `out` itself, where what is complete
    stays if the rest fails.

    Args:
        out: A folder that this run has claimed.
        overwrite: Whether there may be an earlier result.
        names: What is replaced; of these, what the new result does not have is removed.

    Yields:
        The folder to write into.

    Raises:
        OutputError: If something cannot be written or replaced, or as [`check_edit_folder`].
    """
    if not overwrite:
        yield out
        return
    with partial_directory(out, out) as folder:
        yield folder
        check_edit_folder(out, names)
        with as_output_error(out):
            new = [name for name in names if (folder / name).exists()]
            earlier = Path(tempfile.mkdtemp(dir=out, prefix=_REPLACED))
            for name in new:
                # A file that somebody made private stays so.
                if (out / name).is_file() and not (out / name).is_symlink():
                    shutil.copymode(out / name, folder / name)
            try:
                _move(names, out, earlier)
                _move(new, folder, out)
            except BaseException as error:
                try:
                    _move([name for name in new if not (folder / name).exists()], out, folder)
                    _move(names, earlier, out)
                    earlier.rmdir()
                except OSError as again:
                    kept = f"what it held is in {earlier}"
                    raise OutputError(f"cannot write {out}: {again.strerror}; {kept}.") from error
                raise
        # Also what a killed run could not put back.
        for left in out.glob(f"{_REPLACED}*"):
            shutil.rmtree(left, ignore_errors=True)


def _move(names: Sequence[str], source: Path, target: Path) -> None:
    """Moves what is there of some names from one folder into another one, which has none of it."""
    for name in names:
        if os.path.lexists(source / name):
            os.rename(source / name, target / name)


def save_report(report: Report, out: Path, picture: bytes | None) -> None:
    """Writes a report as JSON and as a page, with the picture of a localization if there is one."""
    page = render_page(report, picture=picture)
    report.save(out / REPORT)
    write_text(out / PAGE, page)


def tell_on_card(report: Report, out: Path) -> None:
    """Writes what was measured of an edit and its base into the model card of its adapter, beside what it holds.

    Raises:
        OutputError: If the card is gone, or cannot be read or written.
    """
    path = out / EDIT / "README.md"
    of_the_edit = replace(report, stages={name: report.stages[name] for name in ("base", "edited")})
    with as_output_error(path):
        card = path.read_bytes()
    write_bytes(path, with_measured(card, of_the_edit))
