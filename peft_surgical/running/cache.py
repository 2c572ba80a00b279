"""What a base says, kept on disk between runs: another edit need not ask the base the same again.

```py
>>> with answers_kept("out/.peft_surgical"):
...     edit(model, tokenizer, fact, out="out/seed1", seed=1)
```

Greedy answers are a function of the weights and of the arithmetic, and so is what a backward pass from them gives.
They are kept under a hash of both: every byte of every parameter and buffer, the configuration, the prompts' token
ids, and the versions and settings that decide how sums are rounded. Under autocast and torch's other modes, which
round as they like, nothing is kept. A file that is damaged or cannot be written costs time and nothing else.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..adapters.scale_files import read_tensors, tensor_bytes
from ..errors import AdapterError
from ..writing.files import read_json, remove_abandoned, write_bytes, write_text
from .identity import PACKAGES, Hashes, json_hash, weights_digest
from .products import on_processor
from .replicas import in_a_mode, is_alone
from .sharing import by_main, from_all

FOLDER = ".peft_surgical"
"""What the folder is called that stands beside an edit's output."""

# To be raised when answers or tensors come about in another way, since files of an older package stay.
_FORMAT = 6
# Files of tensors are large, and whoever changes the seed or the scales leaves one behind.
_TENSOR_FILES = 4


@dataclass
class _Kept:
    """Where answers are kept, and the hashes of the tensors that were met."""

    folder: Path
    hashes: Hashes = field(default_factory=Hashes)


_WHERE: ContextVar[_Kept | None] = ContextVar("answers", default=None)


def beside(out: str | os.PathLike[str]) -> Path:
    """The folder in which answers are kept for an edit's output: in its parent, be the output called `.` or `x/..`."""
    return Path(os.path.abspath(out)).parent / FOLDER


@contextmanager
def answers_kept(folder: str | Path) -> Iterator[None]:
    """Keeps what bare models answer, and what models with all adapters switched off do, in a folder.

    Within the block a tensor's bytes are hashed once, and again after it was written to in place. What torch does not
    count, as when PEFT merges through `weight.data`, is told by sums of all of them.
    """
    token = _WHERE.set(_Kept(Path(folder)))
    try:
        yield
    finally:
        _WHERE.reset(token)


@contextmanager
def kept_beside(out: str | os.PathLike[str]) -> Iterator[None]:
    """As [`answers_kept`] in the folder [`beside`] an output, unless answers are kept elsewhere already."""
    with nullcontext() if _WHERE.get() is not None else answers_kept(beside(out)):
        yield


def kept_answers(
    model: Any, prompts: Sequence[Sequence[int]], settings: dict[str, Any], answer: Callable[[], list[list[int]]]
) -> list[list[int]]:
    """Answers from disk, or new ones, which are then kept there.

    Args:
        model: What answers.
        prompts: Token ids.
        settings: All else that decides the answers, as JSON.
        answer: Gives the answers, one for each prompt, as token ids.

    Returns:
        What `answer` returns, or has returned for the same content.
    """
    asked = {"prompts": [list(prompt) for prompt in prompts], "settings": settings}
    path = _path("answers", model, asked, ".json") if prompts else None
    # One process's model may be hooked, and the others' not.
    if not all(from_all(path is not None)) or path is None:
        return answer()
    kept = by_main(lambda: _read(path))
    if kept is not None:
        return kept
    answers = answer()
    by_main(lambda: _write(path, json.dumps({"digest": json_hash(answers), "answers": answers}).encode()))
    return answers


def kept_tensors(
    model: Any,
    what: str,
    asked: dict[str, Any],
    measure: Callable[[], dict[str, Tensor]],
    *,
    alone: Callable[[Any], AbstractContextManager[Any]],
) -> dict[str, Tensor]:
    """Tensors from disk, on the processor, or new ones, which are then kept there.

    Args:
        model: What is measured; adapters that act change nothing.
        what: The beginning of the file's name.
        asked: All else that decides the tensors, as JSON.
        measure: Gives the tensors.
        alone: Switches such adapters off, so that the content of the model can be told.

    Returns:
        What `measure` returns, or has returned for the same content.
    """
    with alone(model):
        path = _path(what, model, asked, ".safetensors")
    if not all(from_all(path is not None)) or path is None:
        return measure()
    kept = by_main(lambda: _read_tensors(path))
    if kept is not None:
        return kept
    tensors = measure()
    by_main(lambda: _write(path, tensor_bytes(tensors), at_most=_TENSOR_FILES))
    return tensors


def _path(what: str, model: Any, asked: dict[str, Any], suffix: str) -> Path | None:
    """Where something is kept; None where nothing is, or the model's content or arithmetic cannot be told."""
    kept = None if in_a_mode() else _WHERE.get()
    found = None if kept is None else weights_digest(model, kept.hashes.of)
    if kept is None or found is None:
        return None
    key = {"format": _FORMAT, "model": found, **asked, "arithmetic": _arithmetic()}
    return kept.folder / f"{what}-{json_hash(key)[:32]}{suffix}"


def _arithmetic() -> dict[str, Any]:
    return {
        **{name: metadata.version(name) for name in PACKAGES},
        "threads": torch.get_num_threads(),
        "alone": is_alone(),
        "processor": torch.backends.cpu.get_cpu_capability(),
        "precision": on_processor(),
        "mkldnn": torch.backends.mkldnn.enabled,
        # Which kernel computes attention on a processor, too, for all that these are called.
        "flash": torch.backends.cuda.flash_sdp_enabled(),
        "math": torch.backends.cuda.math_sdp_enabled(),
    }


def _read(path: Path) -> list[list[int]] | None:
    try:
        found = read_json(path)
        answers: list[list[int]] = found["answers"]
        whole = found["digest"] == json_hash(answers)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return answers if whole else None


def _read_tensors(path: Path) -> dict[str, Tensor] | None:
    try:
        found = read_tensors(path, any_program=False)
    except AdapterError:
        return None
    with suppress(OSError):
        path.touch()
    return found


def _write(path: Path, content: bytes, at_most: int | None = None) -> None:
    """Writes a file; of those of its kind only so many stay, the ones last used, and none that killed runs left."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write_bytes(path, content)
        except OSError:
            # Where there is no room, no empty folder stays behind.
            with suppress(OSError):
                path.parent.rmdir()
            raise
        # The folder stands in a person's own, which may be under version control.
        write_text(path.parent / ".gitignore", "*\n")
        remove_abandoned(path.parent, shared=True)
        if at_most is not None:
            kind = path.name.partition("-")[0]
            used = sorted(path.parent.glob(f"{kind}-*{path.suffix}"), key=lambda file: -file.stat().st_mtime_ns)
            for file in used[at_most:]:
                file.unlink()
