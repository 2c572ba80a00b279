"""What the tests of interrupted and full outputs share: whether each file that is there is whole."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from peft_surgical.adapters.edits import Edit
from peft_surgical.localizing.results import Localization
from peft_surgical.report import Report

KEPT = ".peft_surgical"
ADAPTERS = ("unlearn", "learn", "edit")
# In the order in which an edit writes them.
WRITTEN = [
    "localization.json",
    *(["localization.png"] if find_spec("matplotlib") else []),
    *ADAPTERS,
    "report.json",
    "report.html",
]


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Writing more than this into one file fails, whoever writes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def contents(out: Path) -> dict[str, bytes]:
    """Each file in an output folder, by its path in there."""
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def complete(out: Path) -> list[str]:
    """The names in an output folder, partial files and what they replace aside, each checked to be whole."""
    if not out.exists():
        return []
    names = sorted(
        path.name
        for path in out.iterdir()
        if not path.name.endswith(".partial") and not path.name.startswith(".replaced.")
    )
    assert set(names) <= set(WRITTEN)
    for name in names:
        match name:
            case "localization.json":
                Localization.load(out / name).top(1)
            case "localization.png":
                assert (out / name).read_bytes()[-8:-4] == b"IEND"
            case "report.json":
                Report.load(out / name).verdict()
            case "report.html":
                assert (out / name).read_text().rstrip().endswith("</html>")
            case _:
                assert Edit.load(out / name).n_scales
    return names


def leftovers(folder: Path) -> list[str]:
    """Hidden files and folders, at any depth; the answers that `edit` keeps beside its output are none."""
    return sorted(path.name for path in folder.rglob(".*") if KEPT not in path.parts)
