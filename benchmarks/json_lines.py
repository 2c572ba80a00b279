"""Files of JSON lines that benchmarks read: each line checked, and the whole file told by its hash."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from peft_surgical.errors import FactError

Read = TypeVar("Read")


def read_lines(
    path: str | os.PathLike[str], read: Callable[[Mapping[str, Any]], Read]
) -> tuple[list[tuple[int, Read]], str]:
    """What the lines hold, each with its number, and the file's SHA-256; empty lines are passed over.

    Args:
        path: The file.
        read: Makes a record of a line's value.

    Raises:
        FactError: If the file cannot be read, or a line is no JSON or no such record; names the line.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise FactError(f"cannot read {path}: {error.strerror or error}.") from error
    found = []
    for number, line in enumerate(content.decode("utf-8", errors="replace").split("\n"), 1):
        if not line.strip():
            continue
        try:
            found.append((number, read(json.loads(line))))
        except (ValueError, AttributeError) as error:
            raise FactError(f"{path}, line {number}: {error}") from error
    return found, hashlib.sha256(content).hexdigest()


def check_texts(data: Mapping[str, Any], keys: tuple[str, ...]) -> None:
    """Checks that a line has text under each of some keys.

    Raises:
        FactError: Names the first key that is missing, of another type or empty.
    """
    for key in keys:
        if not isinstance(data.get(key), str) or not data[key].strip():
            raise FactError(f"{key!r} must be text, not {data.get(key)!r}.")
