"""Which file of a checkpoint is damaged, once it could not be loaded: what libraries say then often names none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ..errors import first_line

# Beside the first, which transformers takes then, the second may be a stale one.
WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
# What transformers reads of any checkpoint; others that lie in the folder may hold what they like.
_OBJECTS = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    INDEX,
)


def damaged(folder: Path) -> str | None:
    """The first file in a checkpoint's folder that cannot be read, and why; None where all can."""
    held: dict[str, Any] = {}
    whole = (folder / WHOLE).exists()
    checks: dict[str, Callable[[Path], Any]] = {name: _object for name in _OBJECTS if not (name == INDEX and whole)}
    checks |= {"generation_config.json": _settings, "chat_template.jinja": _text}
    for name, read in checks.items():
        if (folder / name).exists():
            try:
                held[name] = read(folder / name)
            except (OSError, ValueError) as error:
                return _told(name, error)
    if INDEX in held:
        weights = held[INDEX].get("weight_map")
        if not isinstance(weights, dict):
            return f"its {INDEX} holds no weight_map, which says in what file each weight is."
        # One that is no safetensors file is refused elsewhere.
        names = sorted({str(name) for name in weights.values() if str(name).endswith(".safetensors")})
    else:
        names = [WHOLE] if whole else []
    for name in names:
        try:
            # What safetensors says of a file that nobody may read is that there is none.
            (folder / name).open("rb").close()
            with safe_open(folder / name, framework="pt"):
                pass
        except (OSError, SafetensorError) as error:
            return _told(name, error)
    return None


def _told(name: str, error: Exception) -> str:
    reason = (error.strerror if isinstance(error, OSError) else None) or first_line(error)
    return f"its {name} cannot be read: {reason}."


def _object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON, or only a part of it ({error})") from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError("it holds no JSON object")
    return value


def _settings(path: Path) -> dict[str, Any] | None:
    try:
        json.loads(path.read_bytes())
    except ValueError:
        return None  # transformers passes over it
    return _object(path)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError("it is not UTF-8 text") from error
