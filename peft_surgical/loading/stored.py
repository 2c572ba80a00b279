"""A checkpoint's tensors as its files hold them: mapped, so that only what is read of them takes memory."""

from __future__ import annotations

import os
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import ModelError, first_line
from ..writing.files import read_json
from .damage import INDEX, WHOLE, damaged


def stored_tensors(folder: Path) -> dict[str, Tensor] | None:
    """The tensors of a checkpoint's safetensors files, by the names and in the dtypes that they have there.

    They are mapped: what is written into one reaches no file.

    Args:
        folder: The checkpoint's.

    Returns:
        The tensors on the processor; None where the files have other names than transformers gives them.

    Raises:
        ModelError: If a file of the checkpoint cannot be read.
    """
    if (reason := damaged(folder)) is not None:
        raise ModelError(f"the checkpoint {os.fspath(folder)} cannot be read: {reason}")
    if (folder / WHOLE).exists():
        names = [WHOLE]
    elif (folder / INDEX).exists():
        names = sorted({str(name) for name in read_json(folder / INDEX)["weight_map"].values()})
    else:
        return None
    if not all(name.endswith(".safetensors") for name in names):
        return None
    found: dict[str, Tensor] = {}
    try:
        for name in names:
            with safe_open(folder / name, "pt") as file:
                found |= {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, TypeError, RuntimeError) as error:
        raise ModelError(f"the checkpoint {os.fspath(folder)} cannot be read: {first_line(error)}.") from error
    return found
