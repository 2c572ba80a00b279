"""Adapters of any kind on a model, and the states of the model with the first of them, the first two, and so on."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any, TypeAlias

from peft import PeftModel
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from torch import Tensor

from ..adapters.adapter_files import check_has_weights, read_config
from ..adapters.algebra import power, product
from ..adapters.bases import warn_of_another_base
from ..adapters.edits import Edit
from ..adapters.fitting import check_all_acts, check_beginning, check_leaves_base, check_same_weights
from ..adapters.lineage import Lineage, check_once, warn_of_lineage
from ..adapters.low_rank import KIND as LORA
from ..adapters.low_rank import LowRank
from ..adapters.merged_edits import edits_in, lineages_of
from ..adapters.scale_files import WEIGHTS, read_scales, read_tensors
from ..errors import AdapterError, SurgicalError, brief, first_line
from ..loading.pickles import no_pickles
from .states import State, adapter_state

SCALES = ("SURGICAL_IA3", "IA3")
"""The kinds of adapters that hold scales: ours, and PEFT's own (IA)^3."""

TURNED = (*SCALES, LORA)
"""The kinds of adapters that a dial turns."""

# What the first of an edit's two stages is called, which the second notes.
_UNLEARN = "unlearn"
# What libraries are loaded under, for one who keeps what they print to himself.
_Quiet: TypeAlias = Callable[[], AbstractContextManager[None]]


def check_together(folders: Sequence[Path]) -> list[str]:
    """The kinds (PEFT types) of adapter folders, without reading their weights.

    Raises:
        AdapterError: If a folder is missing, damaged, holds only a pickle or is given twice, or if the adapters cannot
            act together.
    """
    kinds = [_kind(folder) for folder in folders]
    check_once(folders)
    if len(set(kinds)) > 1 and set(kinds) != {*SCALES}:
        raise AdapterError(
            f"adapters of the kinds {' and '.join(sorted(set(kinds)))} cannot be active at once; merge one of them "
            "into the weights first."
        )
    return kinds


def attach(model: Any, folders: Sequence[Path], quiet: _Quiet = nullcontext) -> tuple[Any, dict[str, State]]:
    """Loads adapters onto a model.

    Args:
        model: The base model; becomes part of the returned one.
        folders: Adapter folders, in the order of training.
        quiet: The context that PEFT reads them in.

    Returns:
        The PEFT model, and name to state: `base`; `after 1`, `after 2`, … with the first ones, which is `unlearned`
        where the two are an edit's stages; `edited` with all of them.

    Raises:
        AdapterError: If an adapter cannot be read or does not fit the model.

    Warns:
        UserWarning: Of what is only a part of an edit, or acts twice.
    """
    kinds = check_together(folders)
    if not folders:
        return model, {"base": nullcontext}
    warn_of_lineage(folders, lineages_of(edits_in(model)))
    configs = [read_config(folder) for folder in folders]
    own = dict(model.named_parameters(remove_duplicate=False))
    for folder, kind, config in zip(folders, kinds, configs, strict=True):
        _check_weights(folder, kind, config, own)
    for folder, config in zip(folders, configs, strict=True):
        warn_of_another_base(model, folder, config.get("base_model_name_or_path"), config.get("revision"))
    names = [f"adapter_{number}" for number in range(1, len(folders) + 1)]
    with tempfile.TemporaryDirectory() as scratch:
        paths = list(folders)
        if len(set(kinds)) > 1:
            paths = [_as_ours(path, Path(scratch) / name) for path, name in zip(paths, names, strict=True)]
        for path, name in zip(paths, names, strict=True):
            model = _load(model, path, name, quiet)
    model.eval()
    states = {label: adapter_state(model, names[:count]) for label, count in _labels(folders).items()}
    with states["edited"]():  # Adapters that cannot act at once are told before anything is measured.
        return model, states


def attach_dials(
    model: Any, folders: Sequence[Path], dials: Sequence[float], quiet: _Quiet = nullcontext
) -> tuple[Any, dict[str, State]]:
    """Loads adapters once for each position of a dial, scales as their product: 0 is the base, 1 the edit as it is.

    Raises:
        AdapterError: If an adapter is neither one of scales nor a plain LoRA adapter, has no such power, or was made
            on a base with another output head that its file holds.

    Warns:
        UserWarning: As [`attach`].
    """
    warn_of_lineage(folders, lineages_of(edits_in(model)))
    whole = _turned(model, folders)
    acting: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for number, dial in enumerate(dict.fromkeys(dials), 1):
            label = f"dial {dial!r}".removesuffix(".0")
            acting[label] = [f"dial_{number}_{part}" for part in range(1, len(whole) + 1)]
            for name, part in zip(acting[label], whole, strict=True):
                power(part, dial).save(Path(scratch) / name)
                model = _load(model, Path(scratch) / name, name, quiet)
    model.eval()
    return model, {"base": adapter_state(model, []), **{at: adapter_state(model, own) for at, own in acting.items()}}


def _turned(model: Any, folders: Sequence[Path]) -> Sequence[Edit | LowRank]:
    """What a dial turns: the product of scales, or each of several LoRA adapters, as sums have parts."""
    if set(check_together(folders)) == {LORA}:
        parts = [LowRank.load(folder) for folder in folders]
        for folder, part in zip(folders, parts, strict=True):
            warn_of_another_base(model, folder, part.base_model, part.revision)
        return parts
    whole = product(list(folders))
    own = dict(model.named_parameters(remove_duplicate=False))
    check_same_weights(whole.name, whole.base_weights, own, "this model")
    warn_of_another_base(model, folders[0], whole.base_model, whole.revision)
    return [replace(whole, base_weights={})]


def _labels(folders: Sequence[Path]) -> Mapping[str, int]:
    count = len(folders)
    between = {f"after {number}": number for number in range(1, count)}
    if count == 2 and _is_unlearned(*map(Lineage.of, folders)):
        between = {"unlearned": 1}
    return {"base": 0, **between, "edited": count}


def _is_unlearned(first: Lineage, second: Lineage) -> bool:
    """Whether the first of two adapters is the stage by which the second one's edit unlearned, be they (IA)^3 now."""
    below = dict(zip(second.after, second.below, strict=False)).get(_UNLEARN)
    return below is not None and all(digest == below for _, digest in first.acting(_UNLEARN))


def _kind(folder: Path) -> str:
    config = read_config(folder)
    kind, prompts, others = (config.get(key) for key in ("peft_type", "num_virtual_tokens", "adapters"))
    if not isinstance(kind, str) or kind not in PEFT_TYPE_TO_CONFIG_MAPPING:
        version = metadata.version("peft")
        raise AdapterError(f"{folder} holds an adapter of the kind {brief(kind)}, which PEFT {version} does not know.")
    check_has_weights(folder)
    if prompts:
        raise AdapterError(
            f"{folder} holds a {kind} adapter, which adds to the prompt; only those of weights are read."
        )
    if others:
        raise AdapterError(
            f"{folder} holds a {kind} adapter, which names further ones to load; only those that are whole are read."
        )
    if kind == LORA:
        check_beginning(folder, config)
    return kind


def _check_weights(folder: Path, kind: str, config: Mapping[str, Any], own: Mapping[str, Tensor]) -> None:
    """Reads an adapter's weights once before PEFT does, which takes any numbers and puts them anywhere."""
    file = folder / WEIGHTS
    if kind in SCALES:
        # PEFT puts an output head that stands beside scales onto the model.
        check_leaves_base(folder, config, read_scales(file), own)
        return
    try:
        tensors = read_tensors(file)
    except AdapterError as error:
        raise AdapterError(f"the adapter {folder} cannot be put on this model: {first_line(error)}.") from error
    for key, tensor in tensors.items():
        if not tensor.float().isfinite().all():
            raise AdapterError(f"{file} has a value in {key} that is not finite.")
    check_leaves_base(folder, config, tensors, own)


def _as_ours(path: Path, scratch: Path) -> Path:
    """The same scales as a surgical adapter: PEFT keeps adapters of two kinds apart."""
    # What else of the base the file holds has been compared with the model's own.
    replace(Edit.load(path), base_weights={}).save(scratch)
    return scratch


def _load(model: Any, path: Path, name: str, quiet: _Quiet) -> Any:
    try:
        with quiet(), warnings.catch_warnings(), no_pickles():
            # PEFT only warns of an adapter whose weights are not those that its configuration promises.
            warnings.filterwarnings("error", message="Found missing adapter keys")
            if not isinstance(model, PeftModel):
                model = PeftModel.from_pretrained(model, str(path), adapter_name=name)
            # Of the first adapter once more, as only this tells what was left out.
            check_all_acts(path, model.load_adapter(str(path), adapter_name=name))
            return model
    except SurgicalError:
        raise
    except Exception as error:  # PEFT, safetensors and torch each raise their own kinds for a file that does not fit
        raise AdapterError(f"the adapter {path} cannot be put on this model: {first_line(error)}.") from error
