"""Adapter folders on disk, surgical and plain (IA)^3. Only safetensors are read or written, never a pickle.

A folder holds `adapter_config.json` and `adapter_model.safetensors`. In a surgical one, a module has the tensor
`base_model.model.<module>.surgical_ia3_delta` with one float32 per selected coordinate. In a plain one it has
`base_model.model.<module>.ia3_l`, of shape (1, in) when the input is scaled and (out, 1) when the output is.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from peft import IA3Config, PeftConfig, TaskType
from torch import Tensor

from ..errors import AdapterError, SelectionError, brief
from ..tuner.config import SurgicalIA3Config, SurgicalPeftType
from ..tuner.coordinates import Coordinates, Side
from ..writing.files import ADAPTER, atomic_directory, read_json, why_unread, write_json, write_text
from .edits import Edit, ModuleScale
from .fitting import check_targeted
from .halves import halved
from .lineage import Lineage
from .scale_files import PREFIX, WEIGHTS, check_finite, digest_of, read_scales, write_tensors

CONFIG = ADAPTER.file
PICKLE = "adapter_model.bin"
# What is read of a configuration besides the selections, and what it may be.
_KINDS = {
    "base_model_name_or_path": (str, type(None)),
    "revision": (str, type(None)),
    "task_type": (str, type(None)),
    "auto_mapping": (dict, type(None)),
    "fan_in_fan_out": (bool, type(None)),
}


def read_edit(path: str | os.PathLike[str]) -> Edit:
    """Reads an adapter folder, surgical or plain (IA)^3.

    Args:
        path: The folder.

    Returns:
        Its scales in float32.

    Raises:
        AdapterError: If the folder is missing or damaged, holds another kind of adapter, or only a pickle.

    Warns:
        UserWarning: If the configuration has set something that is not known here.
    """
    path = Path(path)
    config, tensors = read_config(path), read_weights(path)
    kind = config.get("peft_type")
    if kind == SurgicalPeftType.SURGICAL_IA3.value:
        return _surgical(path, config, tensors)
    if kind == "IA3":
        return _plain(path, config, tensors)
    what = kind if isinstance(kind, str) else brief(kind)
    raise AdapterError(f"{path} holds a {what} adapter; expected SURGICAL_IA3 or IA3.")


def write_surgical(edit: Edit, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Writes a surgical adapter folder, see [`Edit.save`](edits.Edit.save)."""
    _tell_what_is_left_out(edit)
    config = edit.config()
    config.inference_mode = True
    with atomic_directory(path, overwrite=overwrite, content=ADAPTER) as folder:
        write_adapter(folder, config.to_dict(), surgical_tensors(edit), edit.lineage)


def surgical_tensors(edit: Edit) -> dict[str, Tensor]:
    """What a surgical adapter's file holds, by name."""
    return {f"{PREFIX}{name}.surgical_ia3_delta": module.scale - 1 for name, module in edit.modules.items()}


def write_plain(
    edit: Edit,
    path: str | os.PathLike[str],
    *,
    card: str | None = None,
    overwrite: bool = False,
) -> None:
    """Writes a plain (IA)^3 adapter folder that PEFT loads without this package.

    Args:
        edit: Its scales; the width of every module must be known.
        path: The folder.
        card: Text of the README; none is written by default.
        overwrite: Replace the folder if it holds an adapter.

    Raises:
        AdapterError: If a width is not known, or PEFT would confuse two module names.

    Warns:
        UserWarning: If the file that the edit was read from holds weights of the base, which are left out.
    """
    _tell_what_is_left_out(edit)
    tensors, inputs = {}, []
    for name, module in edit.modules.items():
        if module.width is None:
            raise AdapterError(
                f"the width of {name} is not known, so its scales cannot be written in full; put {edit.name} on its"
                " model once and save it again."
            )
        dense, is_input = module.dense(module.width), module.coordinates.side == "input"
        tensors[f"{PREFIX}{name}.ia3_l"] = dense.view(1, -1) if is_input else dense.view(-1, 1)
        if is_input:
            inputs.append(name)
    # PEFT takes a module's input to be scaled when its name merely ends like one that is.
    for name in edit.modules:
        if name not in inputs and (clash := next((i for i in inputs if name.endswith(i)), None)):
            raise AdapterError(
                f"PEFT would take {name} for {clash}, whose name it ends in; these two cannot be exported."
            )
    # As PEFT makes (IA)^3's scales in float32 and loads into them, they come back as they were.
    tensors = halved(tensors)
    config = IA3Config(
        target_modules=list(edit.modules),
        feedforward_modules=inputs,
        fan_in_fan_out=edit.fan_in_fan_out,
        base_model_name_or_path=edit.base_model,
        revision=edit.revision,
        task_type=edit.task_type,
        auto_mapping=edit.auto_mapping,
        inference_mode=True,
    ).to_dict()
    with atomic_directory(path, overwrite=overwrite, content=ADAPTER) as folder:
        config |= {"target_modules": target_names(edit.modules), "feedforward_modules": sorted(inputs)}
        write_adapter(folder, config, tensors, edit.lineage)
        if card is not None:
            write_text(folder / "README.md", card)


def target_names(names: Iterable[str]) -> list[str] | str:
    """Modules as PEFT takes them: from a list also those whose name ends in a dot and one of it, as may be where a
    module of the model itself is meant; a pattern has to match whole names."""
    listed = sorted(names)
    return listed if all("." in name for name in listed) else "|".join(re.escape(name) for name in listed)


def write_adapter(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor], lineage: Lineage) -> None:
    """Writes the two files of an adapter of any kind.

    Raises:
        AdapterError: If a value is not finite.
    """
    check_finite(tensors)
    write_json(folder / CONFIG, dict(sorted(config.items())))
    write_tensors(folder / WEIGHTS, tensors, lineage.notes(digest_of(tensors)))


def read_config(path: Path) -> dict[str, Any]:
    """The configuration in an adapter folder of any kind.

    Raises:
        AdapterError: If the folder is missing, or the configuration is damaged.
    """
    if not path.is_dir():
        raise AdapterError(f"there is no adapter folder {path}.")
    try:
        config = read_json(path / CONFIG)
        # JSON can spell half of a surrogate pair, and no file with it could be written.
        json.dumps(config, ensure_ascii=False).encode()
    except FileNotFoundError:
        raise AdapterError(f"{path} is not an adapter folder: it has no {CONFIG}.") from None
    except (OSError, ValueError) as error:
        raise AdapterError(f"{path / CONFIG} cannot be read: {why_unread(error)}.") from error
    if not isinstance(config, dict):
        raise AdapterError(f"{path / CONFIG} must hold a JSON object.")
    for key, kinds in _KINDS.items():
        if not isinstance(config.get(key), kinds):
            raise AdapterError(f"{key} in {path / CONFIG} cannot be {brief(config[key])}.")
    if (task := config.get("task_type")) not in (None, *(kind.value for kind in TaskType)):
        raise AdapterError(f"task_type in {path / CONFIG} cannot be {brief(task)}.")
    return config


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors in an adapter folder of any kind, in float32.

    Raises:
        AdapterError: If they are missing or damaged, or there is only a pickle.
    """
    check_has_weights(path)
    return read_scales(path / WEIGHTS)


def check_has_weights(path: Path) -> None:
    """Refuses an adapter folder of any kind without a file of weights that can be read safely.

    Raises:
        AdapterError: If there is none, or only a pickle.
    """
    if not (path / WEIGHTS).is_file():
        if (path / PICKLE).exists():
            raise AdapterError(f"{path} holds only a pickle ({PICKLE}), which can run code; save it as safetensors.")
        raise AdapterError(f"{path} has no {WEIGHTS}.")


def warn_of_unknown(path: Path, config: dict[str, Any], kind: type[PeftConfig]) -> None:
    """Warns of what a configuration has set and its kind does not have here: a newer version may mean something by it.

    Args:
        path: The adapter's folder.
        config: Its configuration.
        kind: What PEFT makes of it here, which warns, too, and leaves it out.
    """
    if unknown := sorted(name for name in config if config[name] and name not in kind.__dataclass_fields__):
        warnings.warn(
            f"{path / CONFIG} has {', '.join(map(brief, unknown))}, which is not known here and is left out; if a"
            " newer version wrote it, upgrade peft and peft-surgical to have it count.",
            stacklevel=2,
        )


def _surgical(path: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> Edit:
    warn_of_unknown(path, config, SurgicalIA3Config)
    known = {name: config[name] for name in SurgicalIA3Config.__dataclass_fields__ if name in config}
    try:
        parsed = SurgicalIA3Config(**known)
    except (SelectionError, ValueError) as error:
        raise AdapterError(f"{path / CONFIG} is not usable: {error}") from error
    if parsed.selections is None:
        raise AdapterError(
            f"{path / CONFIG} names components only; put the adapter on its model once and save it again."
        )
    modules = {}
    for name, coordinates in parsed.coordinates.items():
        delta = _take(path, tensors, name)
        if delta.shape != (coordinates.n,):
            raise AdapterError(f"{path} selects {coordinates.n} coordinates of {name} but holds {tuple(delta.shape)}.")
        modules[name] = ModuleScale(coordinates, delta + 1, (parsed.features or {}).get(name))
    return _edit(path, config, modules, tensors)


def _plain(path: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> Edit:
    modules = {}
    for key in [key for key in tensors if key.endswith(".ia3_l")]:
        name = key.removeprefix(PREFIX).removesuffix(".ia3_l")
        if name in modules:
            raise AdapterError(f"{path} scales {name} twice.")
        scale = tensors.pop(key)
        if scale.ndim != 2 or 1 not in scale.shape:
            raise AdapterError(
                f"{path} scales {name} with a tensor of shape {tuple(scale.shape)}; expected a linear module."
            )
        side = _side(name, scale, config.get("feedforward_modules"))
        coordinates = Coordinates(side, ((0, scale.numel()),))
        modules[name] = ModuleScale(coordinates, scale.flatten(), scale.numel())
    check_targeted(path, config, modules)
    warn_of_unknown(path, config, IA3Config)
    return _edit(path, config, modules, tensors)


def _side(name: str, scale: Tensor, feedforward: Any) -> Side:
    if scale.numel() > 1:
        return "input" if scale.shape[0] == 1 else "output"
    # A single scale has the same shape on both sides.
    given = [feedforward] if isinstance(feedforward, str) else feedforward
    endings = tuple(ending for ending in given or () if isinstance(ending, str)) if isinstance(given, list) else ()
    return "input" if name.endswith(endings) else "output"


def _take(path: Path, tensors: dict[str, Tensor], module: str) -> Tensor:
    for key in (f"{PREFIX}{module}.surgical_ia3_delta", f"{module}.surgical_ia3_delta"):
        if key in tensors:
            return tensors.pop(key)
    raise AdapterError(f"{path} selects {module} but its {WEIGHTS} holds no scales for it.")


def _edit(path: Path, config: dict[str, Any], modules: dict[str, ModuleScale], tensors: dict[str, Tensor]) -> Edit:
    # PEFT also writes the weights of an embedding or output head that an adapter is on: frozen, but not always those
    # of the base on disk.
    frozen = tuple(f"{prefix}{name}.base_layer." for name in modules for prefix in (PREFIX, ""))
    if rest := [key for key in tensors if not key.startswith(frozen)]:
        raise AdapterError(f"{path} also holds {sorted(rest)[0]}; only scales can be read, not modules saved whole.")
    if not modules:
        raise AdapterError(f"{path} holds no scales.")
    beside = {key.removeprefix(PREFIX).replace(".base_layer.", "."): tensor for key, tensor in tensors.items()}
    return Edit(
        modules,
        base_model=config.get("base_model_name_or_path") or None,
        revision=config.get("revision"),
        fan_in_fan_out=bool(config.get("fan_in_fan_out")),
        task_type=config.get("task_type"),
        auto_mapping=config.get("auto_mapping"),
        name=str(path),
        lineage=Lineage.of(path),
        base_weights=beside,
    )


def _tell_what_is_left_out(edit: Edit) -> None:
    if edit.base_weights:
        warnings.warn(
            f"{edit.name} also holds {min(edit.base_weights)} of the base that it was made on, which is left out here;"
            " put what is written on a base with these weights.",
            stacklevel=4,
        )
