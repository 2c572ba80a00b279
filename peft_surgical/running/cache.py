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

import hashlib
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
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from ..adapters.scale_files import read_tensors, tensor_bytes
from ..errors import AdapterError
from ..writing.files import read_json, write_bytes, write_text
from .modes import base_model_of, learns_prompts
from .replicas import in_a_mode, is_alone, is_plain
from .sharing import by_main

FOLDER = ".peft_surgical"
"""What the folder is called that stands beside an edit's output."""

# To be raised when answers or tensors come about in another way, since files of an older package stay.
_FORMAT = 6
_PACKAGES = ("torch", "transformers", "peft")
# Files of tensors are large, and whoever changes the seed or the scales leaves one behind.
_TENSOR_FILES = 4
# Where a model came from and what last wrote its file do not change what it says.
_NOT_CONTENT = ("_name_or_path", "transformers_version")
# Of the table that a tensor's bytes are summed in.
_COLUMNS = 1024
_NOT_COMPUTED_WITH = ("training", "gradient_checkpointing")


@dataclass
class _Kept:
    """Where answers are kept, and the hashes of tensors that were met, each with what tells that it was written to."""

    folder: Path
    hashes: WeakIdKeyDictionary = field(default_factory=WeakIdKeyDictionary)

    def hash_of(self, tensor: Tensor) -> bytes:
        # A tensor of inference mode does not count what is written to it.
        if tensor.is_inference():
            return _content(tensor)
        written = (tensor._version, tensor.data_ptr(), _sums_of(tensor))
        known: tuple[tuple[int, int, bytes], bytes] | None = self.hashes.get(tensor)
        if known is None or known[0] != written:
            known = self.hashes[tensor] = (written, _content(tensor))
        return known[1]


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
    if path is None:
        return answer()
    kept = by_main(lambda: _read(path, len(prompts)))
    if kept is not None:
        return kept
    answers = answer()
    by_main(lambda: _write(path, json.dumps({"digest": _digest(answers), "answers": answers}).encode()))
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
    if path is None:
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
    found = None if kept is None else weights_digest(model, kept.hash_of)
    if kept is None or found is None:
        return None
    key = {"format": _FORMAT, "model": found, **asked, "arithmetic": _arithmetic()}
    return kept.folder / f"{what}-{_digest(key)[:32]}{suffix}"


def _sums_of(tensor: Tensor) -> bytes:
    """What tells that a tensor was written to, be it one column or two rows swapped, several times as fast as a hash.

    Its bytes as 64-bit integers in a table, and of this a hash of the sums of each row and of each column.
    """
    content = _bytes_of(tensor)
    words = content[: len(content) // 8 * 8].view(torch.int64)
    table = words[: len(words) // _COLUMNS * _COLUMNS].view(-1, _COLUMNS)
    digest = hashlib.blake2b(content[table.numel() * 8 :].numpy().data, digest_size=32)
    for along in (0, 1):
        digest.update(table.sum(along).view(torch.uint8).numpy().data)
    return digest.digest()


def _bytes_of(tensor: Tensor) -> Tensor:
    """A tensor's bytes, which begin where they can be read as words of eight."""
    content = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    return content if content.storage_offset() % 8 == 0 else content.clone()


def _content(tensor: Tensor) -> bytes:
    """A hash of a tensor's bytes."""
    return hashlib.blake2b(_bytes_of(tensor).numpy().data, digest_size=32).digest()


def weights_digest(model: Any, hash_of: Callable[[Tensor], bytes] = _content) -> str | None:
    """A hash of all that a bare model computes with; of a model with adapters, of the base below them.

    Args:
        model: The model.
        hash_of: Gives the hash of a tensor's bytes.

    Returns:
        The hash; `None` where the base does not answer alone or its content cannot be told: an adapter acts or is
        merged, weights are quantized or not on the processor, a module's forward is hooked, or its code is somebody's
        own.
    """
    if learns_prompts(model):
        return None
    base = base_model_of(model)
    modules = list(_modules(base, ""))
    acting = (BaseTunerLayer, AuxiliaryTrainingWrapper)
    if any(isinstance(module, acting) or not is_plain(module) or not _is_known(module) for _, module in modules):
        return None
    digest = hashlib.blake2b(digest_size=32)
    config = {key: value for key, value in base.config.to_dict().items() if key not in _NOT_CONTENT}
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    for kind in ("attn", "experts"):
        digest.update(str(getattr(base.config, f"_{kind}_implementation", "")).encode())
    met: dict[int, str] = {}
    for name, module in modules:
        digest.update(f"{name}:{type(module).__module__}.{type(module).__qualname__}:{_settings(module)}\n".encode())
        tensors: list[tuple[str, Tensor]] = [
            *module.named_parameters(recurse=False, remove_duplicate=False),
            *module.named_buffers(recurse=False, remove_duplicate=False),
        ]
        for own, tensor in tensors:
            digest.update(f"{own}:{tensor.dtype}:{tuple(tensor.shape)}:{met.get(id(tensor))}\n".encode())
            if id(tensor) not in met:
                met[id(tensor)] = f"{name}.{own}"
                digest.update(hash_of(tensor))
    return digest.hexdigest()


def _is_known(module: nn.Module) -> bool:
    """Whether what a module does is the code of a package whose version is a part of the key."""
    places = (type(module).__module__, getattr(type(module).forward, "__module__", None) or "")
    return all(place.partition(".")[0] in _PACKAGES for place in places)


def _settings(module: nn.Module) -> str:
    """What else a module computes with: numbers such as an epsilon or a slope."""
    plain = {
        key: value
        for key, value in vars(module).items()
        if type(value) in (bool, int, float, str) and not key.startswith("_") and key not in _NOT_COMPUTED_WITH
    }
    return str(sorted(plain.items()))


def _modules(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """A model's modules as they were before adapters were put on; what acts on one is given as it is."""
    if isinstance(module, BaseTunerLayer) and module.disable_adapters and not module.merged:
        module = module.get_base_layer()
    yield name, module
    for child, inside in module.named_children():
        yield from _modules(inside, f"{name}.{child}")


def _arithmetic() -> dict[str, Any]:
    return {
        **{name: metadata.version(name) for name in _PACKAGES},
        "threads": torch.get_num_threads(),
        "alone": is_alone(),
        "processor": torch.backends.cpu.get_cpu_capability(),
        "precision": _matmul_precision(),
        "mkldnn": torch.backends.mkldnn.enabled,
    }


def _matmul_precision() -> str:
    """In what float32 matrices are multiplied on the processor, by whichever of torch's two settings it was said."""
    backend = getattr(torch.backends.mkldnn, "matmul", None)
    # The older setting cannot be read where the newer one, which torch has had since 2.9, was used.
    return str(torch.get_float32_matmul_precision() if backend is None else backend.fp32_precision)


def _digest(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=32).hexdigest()


def _read(path: Path, count: int) -> list[list[int]] | None:
    try:
        found = read_json(path)
        answers: list[list[int]] = found["answers"]
        whole = found["digest"] == _digest(answers) and len(answers) == count
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return answers if whole else None


def _read_tensors(path: Path) -> dict[str, Tensor] | None:
    try:
        found = read_tensors(path)
    except AdapterError:
        return None
    with suppress(OSError):
        path.touch()
    return found


def _write(path: Path, content: bytes, at_most: int | None = None) -> None:
    """Writes a file; of those of its kind only so many stay, the ones last used."""
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
        if at_most is not None:
            kind = path.name.partition("-")[0]
            used = sorted(path.parent.glob(f"{kind}-*{path.suffix}"), key=lambda file: -file.stat().st_mtime_ns)
            for file in used[at_most:]:
                file.unlink()
