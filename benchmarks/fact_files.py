"""Fact files that a benchmark reads before it measures anything: a mistake in the last costs no other's time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import peft_surgical as ps


def read_facts(paths: Sequence[Path]) -> dict[Path, ps.Fact]:
    """The facts of some files, in order.

    Raises:
        SurgicalError: If one holds no fact, or two have one name, by which results are told apart.
    """
    if len({path.stem for path in paths}) < len(paths):
        raise ps.SurgicalError("two facts have files of one name, by which results are told apart; rename one.")
    return {path: ps.Fact.from_file(path) for path in paths}
