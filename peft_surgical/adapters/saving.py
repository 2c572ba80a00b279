"""Saving one adapter of several straight into a folder."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from peft import PeftModel, get_peft_model_state_dict
from torch import Tensor

from ..errors import AdapterError, brief
from ..tuner.config import SurgicalIA3Config
from ..tuner.layer import own_names
from ..tuner.names import check_known
from ..wrapped import uncompiled
from ..writing.files import ADAPTER, atomic_directory, read_json, write_json, write_text
from .halves import halved
from .scale_files import WEIGHTS, check_finite, digest_of, read_tensors, write_tensors


def save_adapter(
    model: PeftModel,
    adapter: str,
    path: str | os.PathLike[str],
    *,
    card: str | None = None,
    notes: Mapping[str, str] | None = None,
) -> None:
    """Saves one adapter into `path` itself.

    `PeftModel.save_pretrained` puts every adapter but one named "default" into a folder of its name below the path.

    Args:
        model: The model.
        adapter: Which adapter.
        path: The folder.
        card: Text of the README; PEFT's own when None.
        notes: For the metadata of its weights.

    Raises:
        AdapterError: If the model has no such adapter, holds nothing of it any more, or its name would lead out of the
            folder.
        OutputError: If `path` cannot be written, or holds something.
    """
    if not adapter or adapter != os.path.basename(adapter) or adapter in (os.curdir, os.pardir):
        raise AdapterError(f"the adapter name {brief(adapter)} cannot be the name of a folder.")
    check_known([adapter], model.peft_config)
    with (
        atomic_directory(path, content=ADAPTER) as folder,
        tempfile.TemporaryDirectory(dir=folder) as scratch,
    ):
        # Scales are all there is to save; PEFT would add whole embeddings where the vocabulary was enlarged.
        model.save_pretrained(
            scratch, selected_adapters=[adapter], safe_serialization=True, save_embedding_layers=False
        )
        saved = Path(scratch) if adapter == "default" else Path(scratch) / adapter
        # PEFT's own kinds are made in float32 and loaded into, so they come back as they were.
        halve = not isinstance(model.peft_config[adapter], SurgicalIA3Config)
        if not _write_again(saved / WEIGHTS, folder / WEIGHTS, model, notes, halve=halve):
            raise nothing_left(adapter)
        config = read_json(saved / ADAPTER.file)
        # A set in PEFT, which would be written in another order by every process.
        if isinstance(config.get("target_modules"), list):
            config["target_modules"] = sorted(config["target_modules"])
        write_json(folder / ADAPTER.file, config)
        if card is None:
            # PEFT writes one for all that it saves.
            os.replace(Path(scratch) / "README.md", folder / "README.md")
        else:
            write_text(folder / "README.md", card)


def nothing_left(adapter: str) -> AdapterError:
    """What is raised where a model knows the name of an adapter, and has nothing of it on its modules."""
    return AdapterError(f"the model holds nothing of {adapter!r} any more: it was unloaded; save before that.")


def digest_to_save(model: PeftModel, adapter: str) -> str | None:
    """The digest of a surgical adapter as [`save_adapter`] writes it; None where the model has none of that name."""
    if adapter not in model.peft_config:
        return None
    tensors = get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)
    return digest_of(_by_own_names(tensors, model))


def _by_own_names(tensors: Mapping[str, Tensor], model: PeftModel) -> dict[str, Tensor]:
    called, found = own_names(model), {}
    for name, tensor in tensors.items():
        module, _, kind = name.rpartition(".")
        found[f"{called[module]}.{kind}" if module in called else uncompiled(name)] = tensor
    return found


def _write_again(file: Path, path: Path, model: PeftModel, notes: Mapping[str, str] | None, *, halve: bool) -> int:
    """Writes a file of tensors as files are written here, in half the bytes if it may be; returns how many tensors.

    None of them outlives the call: each maps the file that it was read from, which Windows then does not delete.
    """
    tensors = _by_own_names(read_tensors(file), model)
    check_finite(tensors)
    if halve:
        tensors = halved(tensors)
    write_tensors(path, tensors, notes)
    return len(tensors)
