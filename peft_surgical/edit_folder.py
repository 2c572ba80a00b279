"""The folder that an edit writes: what stands in it, and that no other run and nothing of anybody's gets lost."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .adapters.adapter_files import CONFIG
from .errors import ModelError, OutputError, brief
from .report import Report
from .reporting.page import render_page
from .staging.stage import LEARN, UNLEARN
from .writing.claims import claimed
from .writing.files import as_output_error, read_json, write_text

EDIT = "edit"
"""The folder of the adapter that is the whole edit, beside those of its stages."""

TABLE, PICTURE = "localization.json", "localization.png"
REPORT, PAGE = "report.json", "report.html"
_FOLDERS = (UNLEARN, LEARN, EDIT)
# What tells a file of ours from one of anybody's by the same name.
_OURS = {TABLE: {"format", "scorers", "scores"}, REPORT: {"fact", "stages", "answers"}}
_WRITTEN = (TABLE, PICTURE, *_FOLDERS, REPORT, PAGE)


@contextmanager
def claimed_for_edit(out: str | os.PathLike[str], overwrite: bool) -> Iterator[Path]:
    """Claims the folder of an edit, see [`claimed`].

    Raises:
        OutputError: As for [`claimed`] and [`check_edit_folder`].
    """
    with claimed(out, overwrite=overwrite) as folder:
        check_edit_folder(folder)
        yield folder


def check_command(command: object) -> None:
    """Refuses what cannot stand in a report as the command that made it.

    Raises:
        ModelError: If it is no text.
    """
    if command is not None and not isinstance(command, str):
        raise ModelError(f"the command, which the report is to tell, must be text, not {brief(command)}.")


def check_edit_folder(out: Path) -> None:
    """Refuses a folder from which removing an earlier edit would take something else of the same name.

    Raises:
        OutputError: If one of an edit's folders is there and is a file, or holds something, but no adapter; or if its
            report or localization is there and is another kind of file.
    """
    for name in _FOLDERS:
        path = out / name
        if path.is_dir() and any(path.iterdir()) and not (path / CONFIG).is_file():
            raise OutputError(f"{path} holds no adapter, so it is not replaced; name another output folder.")
        if path.exists() and not path.is_dir():
            raise OutputError(f"{path} is a file and no adapter, so it is not replaced; name another output folder.")
    for name in _OURS:
        check_replaced(out / name)


def check_replaced(path: Path) -> None:
    """Refuses to replace a report or a localization of somebody else's.

    Args:
        path: A file that is called [`TABLE`] or [`REPORT`].

    Raises:
        OutputError: If it is there and is another kind of file.
    """
    if path.exists() and not _holds(path, _OURS[path.name]):
        kind = path.stem
        raise OutputError(f"{path} is no {kind} of an edit, so it is not replaced; name another output folder.")


def _holds(path: Path, keys: set[str]) -> bool:
    """Whether a file holds a JSON object with some keys."""
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and keys <= found.keys()


def remove_edit(out: Path) -> None:
    """Removes what an edit writes, and nothing else, from its folder.

    Raises:
        OutputError: If something cannot be removed, or as [`check_edit_folder`].
    """
    check_edit_folder(out)
    with as_output_error(out):
        for name in _WRITTEN:
            path = out / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def save_report(report: Report, out: Path, picture: bytes | None, command: str | None) -> None:
    """Writes a report as JSON and as a page, with the picture of a localization if there is one."""
    page = render_page(report, picture=picture, command=command)
    report.save(out / REPORT)
    write_text(out / PAGE, page)
