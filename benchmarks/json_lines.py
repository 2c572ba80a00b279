"""Files of JSON lines that benchmarks read: each line checked, and the whole file told by its hash."""

from __future__ import annotations

import hashlib
import json
import os
from codecs import BOM_UTF8
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
        FactError: If the file cannot be read, or a line is not UTF-8, no JSON object or no such record; names the
            line.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise FactError(f"cannot read {path}: {error.strerror or error}.") from error
    found = []
    for number, line in enumerate(content.removeprefix(BOM_UTF8).split(b"\n"), 1):
        if not line.strip():
            continue
        if number == 1 and line.lstrip().startswith(b"["):
            raise FactError(f"{path} is a JSON array; write one object a line.")
        try:
            value = json.loads(line.decode("utf-8"))
            if not isinstance(value, dict):
                raise FactError(f"a line must be a JSON object, not {value!r}.")
            found.append((number, read(value)))
        except UnicodeDecodeError as error:
            raise FactError(f"{path}, line {number}: it is not UTF-8.") from error
        except ValueError as error:
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
