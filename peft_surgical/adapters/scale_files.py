"""An adapter's tensors on disk: safetensors, with a digest that tells when a bit of them has changed.

The format itself refuses a file that is cut short, but takes any numbers for the numbers. So the digest of all names,
shapes and values stands in the file's metadata, which other readers pass over; a file without one is read as well.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..dtypes import dtype_name
from ..errors import AdapterError

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
OWN = "peft_surgical."
DIGEST = f"{OWN}sha256"
_SCALES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Refuses to write what would not be read back.

    Raises:
        AdapterError: If a tensor has a value that is not finite.
    """
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise AdapterError(f"{name} has a value that is not finite, so the adapter is not written.")


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], notes: Mapping[str, str] | None = None
) -> None:
    """Writes tensors, the same bytes for the same tensors.

    Args:
        path: The file.
        tensors: By name.
        notes: What else its metadata says.

    Raises:
        OSError: If the file cannot be written.
    """
    Path(path).write_bytes(tensor_bytes(tensors, notes))


def tensor_bytes(tensors: Mapping[str, Tensor], notes: Mapping[str, str] | None = None) -> bytes:
    """What a file of tensors holds, see [`write_tensors`]."""
    kept = {key: tensor.contiguous() for key, tensor in sorted(tensors.items())}
    raw: bytes = save(kept, {**(notes or {}), "format": "pt", DIGEST: digest_of(kept)})
    # The library puts the metadata in an order that changes from process to process.
    size = int.from_bytes(raw[:8], "little")
    header = json.dumps(json.loads(raw[8 : 8 + size]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return b"".join([len(header).to_bytes(8, "little"), header, raw[8 + size :]])


def read_tensors(path: str | os.PathLike[str], *, any_program: bool = True) -> dict[str, Tensor]:
    """Reads tensors as they are.

    Args:
        path: The file.
        any_program: Also read a file without a digest, which another program has written.

    Raises:
        AdapterError: If the file cannot be read, is no safetensors file, or does not hold what its digest says.
    """
    try:
        with safe_open(path, "pt") as file:
            tensors: dict[str, Tensor] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            said = (file.metadata() or {}).get(DIGEST)
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise AdapterError(f"{path} cannot be read: {error}.") from error
    if not (said is None and any_program) and said != digest_of(tensors):
        raise AdapterError(f"{path} is damaged: it does not hold what was written to it (its sha256 differs).")
    return tensors


def read_scales(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Reads tensors of scales, in float32.

    Raises:
        AdapterError: As [`read_tensors`], or if a tensor is empty, not of floating point, or not finite in float32.
    """
    scales = {}
    for key, tensor in read_tensors(path).items():
        if tensor.dtype not in _SCALES:
            kind = dtype_name(tensor.dtype)
            raise AdapterError(f"{path} holds {key} as {kind}; scales are float32, float16, bfloat16 or float64.")
        if not tensor.numel():
            raise AdapterError(f"{path} holds an empty tensor {key}.")
        # A copy: what is read stays mapped to the file, which may be written anew.
        scales[key] = tensor.to(torch.float32, copy=True)
        if not torch.isfinite(scales[key]).all():
            raise AdapterError(f"{path} has a value in {key} that is not finite.")
    return scales


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """The SHA-256 of tensors' names, dtypes, shapes and values."""
    digest = hashlib.sha256()
    for key, tensor in sorted(tensors.items()):
        digest.update(f"{key}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
