"""What a GGUF file says of itself: whether it is whole, and what transformers leaves unread of it."""

from __future__ import annotations

import os
import re
from typing import Any

from ..errors import brief, first_line

_DAMAGED = "the file is damaged or only a part of it."
# Where a file names none, llama.cpp takes the first kind; the last kinds have their factors in tensors.
_LINEAR, _LONG = "linear", ("longrope", "su")
# What scales the turning of each dimension by itself.
_FACTORS = re.compile(r"rope_(freqs|factors_long|factors_short)\.weight")


class Header:
    """The metadata of a file and the names of its tensors.

    Args:
        path: The file.

    Raises:
        ImportError: If the package that reads it is not installed.
        ValueError: If it is no GGUF file, of an unknown version, or ends too early; other errors, too, as it is read
            by offsets that it holds.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        from gguf import GGUFReader

        self._reader = GGUFReader(path)

    def __contains__(self, name: str) -> bool:
        return name in self._reader.fields

    def field(self, name: str) -> Any:
        """The value of a field; None where there is none."""
        found = self._reader.fields.get(name)
        return None if found is None else found.contents()

    def of_architecture(self, name: str) -> Any:
        """A field that each architecture has by its own name; None where there is none."""
        return self.field(f"{self.field('general.architecture')}.{name}")

    @property
    def layers(self) -> dict[str, int]:
        """The tensors that belong to a layer, by name, with the number of that layer."""
        found = {tensor.name: re.match(r"blk\.(\d+)\.", tensor.name) for tensor in self._reader.tensors}
        return {name: int(match[1]) for name, match in found.items() if match}

    @property
    def predicting_layers(self) -> int:
        """How many layers behind the last predict further tokens."""
        count = self.of_architecture("nextn_predict_layers")
        return count if isinstance(count, int) else 0

    @property
    def scaled_by(self) -> str | None:
        """The tensor by which positions are scaled, dimension by dimension; None without one."""
        every = (tensor for tensor in self._reader.tensors if _FACTORS.fullmatch(tensor.name))
        return next((tensor.name for tensor in every if (tensor.data != 1).any()), None)


def fault(path: str | os.PathLike[str], *, tokenizer: bool) -> str | None:
    """Why a file could not be loaded; what libraries say then often names no damage.

    Args:
        path: The file.
        tokenizer: Whether its tokenizer could be read.

    Returns:
        A sentence, or None where the file shows nothing.
    """
    with open(path, "rb") as file:
        if not b"GGUF".startswith(file.read(4)):
            return "it is not a GGUF file."
    try:
        header = Header(path)
    except ImportError:  # transformers reads some kinds of model without it
        return None
    except Exception as error:  # whatever is read where another thing was to be
        version = re.search(r"version \d+", first_line(error))
        return f"it is a GGUF file of {version[0]}, which cannot be read." if version else _DAMAGED
    if tokenizer:
        return None
    lacks = [name for name in ("model", "tokens") if f"tokenizer.ggml.{name}" not in header]
    kind = header.field("tokenizer.ggml.model")
    # Merges are made of scores where there are none.
    if kind and "tokenizer.ggml.merges" not in header and "tokenizer.ggml.scores" not in header:
        lacks.append("merges" if kind in ("gpt2", "gemma4") else "scores")
    return f"its metadata lack {' and '.join(f'tokenizer.ggml.{name}' for name in lacks)}." if lacks else None


def lost_scaling(header: Header, config: Any) -> str | None:
    """How a file scales its positions, where the configuration that was made of it does not.

    Args:
        header: Of the file.
        config: The configuration of the text model.

    Returns:
        A sentence, or None where nothing is lost.
    """
    told = getattr(config, "rope_parameters", None) or {}
    kinds = {rope.get("rope_type", "default") for rope in (told, *told.values()) if isinstance(rope, dict)}
    if kinds != {"default"}:
        return None
    kind = header.of_architecture("rope.scaling.type") or _LINEAR
    # Older files have the second; 0 stands for none.
    factors = map(header.of_architecture, ("rope.scaling.factor", "rope.scale_linear"))
    factor = next((value for value in factors if isinstance(value, (int, float)) and value), 1)
    if kind in _LONG or (kind != "none" and factor != 1):
        how = f"{brief(kind).strip(chr(39))}, {factor:g}"
    elif name := header.scaled_by:
        how = f"by {name}"
    else:
        return None
    return (
        f"the file scales its positions ({how}), which transformers does not read from GGUF; use the safetensors"
        " checkpoint."
    )
