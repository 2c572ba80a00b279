"""Folding adapters into a copy of the base weights, on disk.

The model that is given stays as it was: only the weights that an adapter touches are copied and changed, on their way
into the checkpoint. Several adapters are multiplied first and rounded once, which is more exact than merging one after
the other.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from .adapters.algebra import product
from .adapters.bases import folder_of, may_be_read_from, source_of, warn_of_another_base
from .adapters.edits import Edit, ModuleScale, several
from .adapters.fitting import check_same_weights
from .adapters.lineage import warn_of_lineage
from .adapters.low_rank import LowRank, is_low_rank
from .adapters.merged_edits import edit_record, edits_in, write_edits
from .errors import AdapterError, ModelError, OutputError
from .loading.padding import as_it_came
from .running.sharing import is_sharded
from .tuner.fold import Rounding, check_foldable, fold, is_wrapper, scaled_tensors
from .tuner.kinds import ADAPTED_ATTENTION, has_adapters
from .tuner.mergeable import Place, places_of, shared_with
from .tuner.targets import check_target, find_module
from .wrapped import check_module, check_uncompiled, check_unwrapped
from .writing.carried import carry
from .writing.files import CHECKPOINT, as_output_error, atomic_directory, check_output, write_json
from .writing.inputs import check_inputs_stay

Mergeable: TypeAlias = Edit | LowRank | str | os.PathLike[str]
"""What [`merge`] folds: an (IA)³ edit in memory, a LoRA adapter that was read, or the folder of either."""

# By it transformers knows that it put an adapter on a model.
_FLAG = "_hf_peft_config_loaded"


def merge(
    model: PreTrainedModel,
    adapters: Mergeable | Iterable[Mergeable],
    out: str | os.PathLike[str],
    dtype: torch.dtype | str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    overwrite: bool = False,
) -> None:
    """Writes a checkpoint of the model with adapters folded into its weights, for `from_pretrained`.

    What stands beside the base's weights goes with them where the base is a folder here or in the hub's cache:
    `tokenizer.model`, the configurations of processors, and the files `LICENSE*` and `NOTICE*`. `peft_surgical.json`
    says which edits are in the weights, those of a base that was merged into before first, and so does a section of
    `README.md`, below what the base's card says.

    Args:
        model: The unedited base model; not changed.
        adapters: Folders of surgical or plain (IA)^3 adapters, or edits, in the order in which they were trained; or
            one LoRA adapter, as a keyed edit is.
        out: The folder to write; it appears whole or not at all.
        dtype: Of the checkpoint, such as `"float32"`; the model's by default. A half-precision merge that rounds a
            part of the edit away warns.
        tokenizer: Saved beside the weights if given; without the token to pad with that [`load_model`] lent it.
        overwrite: Replace the folder if it holds a checkpoint.

    Raises:
        AdapterError: If an adapter cannot be read, they cannot be multiplied, one of them touches a weight that is
            tied to another or computed from other parameters, a merged weight does not fit into `dtype`, or the file
            of an adapter holds other weights of an output head than the model has.
        SelectionError: If the model does not have a module of the adapter, or has it in another width.
        ModelError: If the model has adapters on it, is quantized, has weights that are not in memory or spread over
            processes, or has a configuration that transformers does not save, or `dtype` is none of float32, bfloat16
            and float16.
        OutputError: If `out` cannot be written, is or holds the model's folder or one of the adapters, holds something
            else than a checkpoint, or a checkpoint that the model may have been loaded from: transformers keeps the
            name that was given, which is relative to another folder by now, or leaves out a `subfolder`.

    Warns:
        UserWarning: If an adapter was trained on top of another, which is not given, or acts twice, if it was made for
            a model of another name or revision, if the dtype rounds a part of the edit away, or if what the base says
            of the edits in it cannot be read.
    """
    target = _dtype(dtype)
    _check_model(model)
    given: list[Mergeable] = several(adapters, (Edit, LowRank))
    # A folder of that name is what would be loaded by it, be it also a hub id.
    check_inputs_stay(out, [*given, model.name_or_path or "", source_of(model)])
    check_output(out, overwrite=overwrite, content=CHECKPOINT)
    if os.path.isdir(out) and any(os.scandir(out)) and may_be_read_from(model, out):
        raise OutputError(
            f"the output {out} may be the base itself, which was loaded as {model.name_or_path}; name another folder,"
            " or load the base with load_model, which notes where it is."
        )
    edit = read_mergeable(given)
    warn_of_lineage(given)
    first = given[0] if isinstance(given[0], str | os.PathLike) else given[0].name
    warn_of_another_base(model, first, edit.base_model, edit.revision)
    state: dict[str, Tensor] = model.state_dict()
    if isinstance(edit, Edit):
        check_same_weights(edit.name, edit.base_weights, state, "this model")
    found = _added(model, edit, state, target) if isinstance(edit, LowRank) else _scaled(model, edit, state, target)
    for key, (values, _) in found.items():
        _check_finite(key, values, state[key])
        state[key] = values
    rounding = Rounding.total(rounding for _, rounding in found.values())
    rounding.warn(target or model.dtype, stacklevel=3)
    edits = [*edits_in(model), edit_record(given, model, target or model.dtype, rounding)]
    if target is not None:
        state = _cast(state, target)
    with atomic_directory(out, overwrite=overwrite, content=CHECKPOINT) as folder:
        config = model.config
        # save_pretrained notes the dtype and the class in the configuration of the model that it saves.
        model.config = copy.deepcopy(config)
        # And by that flag it would save adapters, of which there are none.
        flag = vars(model).pop(_FLAG, None)
        try:
            model.save_pretrained(folder, state_dict=state)
        except ValueError as error:
            # Such as one about a generation_config that was changed, which transformers looks at here only.
            raise ModelError(f"the model cannot be saved: {' '.join(str(error).split())}") from error
        finally:
            model.config = config
            if flag is not None:
                setattr(model, _FLAG, flag)
        if target is not None:
            path = folder / "config.json"
            write_json(path, _with_dtype(json.loads(path.read_text(encoding="utf-8")), target))
        if tokenizer is not None:
            as_it_came(tokenizer).save_pretrained(folder)
        source = folder_of(model)
        with as_output_error(out):
            if source is not None:
                carry(source, folder)
            write_edits(folder, source, edits)


def read_mergeable(adapters: Sequence[Mergeable]) -> Edit | LowRank:
    """What merging some adapters comes to: the product of scales, or what one LoRA adapter adds.

    Raises:
        AdapterError: If an adapter cannot be read, or they are of both kinds or several LoRA adapters.
    """
    low_rank = [
        adapter
        for adapter in adapters
        if isinstance(adapter, LowRank) or (not isinstance(adapter, Edit) and is_low_rank(adapter))
    ]
    if not low_rank:
        return product([adapter for adapter in adapters if not isinstance(adapter, LowRank)])
    if len(adapters) > 1:
        raise AdapterError(
            f"a LoRA adapter is merged alone, and there are {len(adapters)} adapters; merge them one after the other,"
            " each made on the model that the last was merged into."
        )
    return low_rank[0] if isinstance(low_rank[0], LowRank) else LowRank.load(low_rank[0])


def _scaled(
    model: nn.Module, edit: Edit, state: dict[str, Tensor], dtype: torch.dtype | None
) -> dict[str, tuple[Tensor, Rounding]]:
    """All new tensors of scaled modules, by their key in the state."""
    found: dict[str, tuple[Tensor, Rounding]] = {}
    places = places_of(state)
    for name, scale in edit.modules.items():
        module = find_module(model, name)
        check_target(name, module, scale.coordinates, scale.width)
        check_foldable(module, scale.coordinates.side)
        found |= _folded(name, module, scale, state, places, dtype)
    return found


def _added(
    model: nn.Module, update: LowRank, state: dict[str, Tensor], dtype: torch.dtype | None
) -> dict[str, tuple[Tensor, Rounding]]:
    """The new weights of modules that something is added to, by their key in the state."""
    found, places = {}, places_of(state)
    for name in update.factors:
        module, key = find_module(model, name), f"{name}.weight"
        if isinstance(module, (nn.Linear, Conv1D)):
            check_foldable(module, "input")
        added, old = update.added(name), state.get(key)
        added = added.T if isinstance(module, Conv1D) else added
        if old is None or old.shape != added.shape:
            there = "no weight" if old is None else f"a weight of shape {tuple(old.shape)}"
            raise AdapterError(f"the adapter adds {tuple(added.shape)} to {name}, and this model has {there} there.")
        _check_untied(key, old, places)
        exact = old.to(torch.promote_types(old.dtype, torch.float32))
        new = (exact + added.to(old.device)).to(dtype or old.dtype)
        moved = added.to(old.device) != 0
        found[key] = (new, Rounding(int(moved.sum()), int((moved & (new == old.to(new.dtype))).sum())))
    return found


def _check_untied(key: str, tensor: Tensor, places: Mapping[int, Sequence[Place]]) -> None:
    if other := shared_with(places, key, tensor):
        raise AdapterError(f"{key} is tied to another weight, {other}, so an edit of it cannot be merged.")


def _folded(
    name: str,
    module: nn.Module,
    scale: ModuleScale,
    state: dict[str, Tensor],
    places: Mapping[int, Sequence[Place]],
    dtype: torch.dtype | None,
) -> dict[str, tuple[Tensor, Rounding]]:
    """The module's new tensors, by their key in the state."""
    found = {}
    for part, axis in scaled_tensors(module, scale.coordinates.side).items():
        key = f"{name}.{part}"
        old = state[key]
        _check_untied(key, old, places)
        index = scale.coordinates.index(old.device)
        _, values, rounding = fold(old, index, scale.scale, axis, dtype)
        new = old.to(values.dtype, copy=True)
        found[key] = (new.index_copy_(axis, index, values), rounding)
    return found


def _cast(state: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    # Tied weights must stay one tensor, which is how they are recognized.
    seen: dict[tuple[int, torch.Size, tuple[int, ...]], Tensor] = {}
    cast = {}
    for key, tensor in state.items():
        if tensor.is_floating_point():
            # A square matrix and its transpose differ in their strides alone.
            place = (tensor.data_ptr(), tensor.shape, tensor.stride())
            if place not in seen:
                seen[place] = tensor.to(dtype)
                _check_finite(key, seen[place], tensor)
            tensor = seen[place]
        cast[key] = tensor
    return cast


def _check_finite(key: str, new: Tensor, old: Tensor) -> None:
    if not torch.isfinite(new).all() and torch.isfinite(old).all():
        dtype = str(new.dtype).removeprefix("torch.")
        raise AdapterError(f"the merged {key} does not fit into {dtype}; merge in float32, or edit less.")


def _with_dtype(config: Any, dtype: torch.dtype) -> Any:
    if not isinstance(config, dict):
        return config
    name = str(dtype).removeprefix("torch.")
    return {
        key: name if key in ("dtype", "torch_dtype") and isinstance(value, str) else _with_dtype(value, dtype)
        for key, value in config.items()
    }


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype is not None and found not in (torch.float32, torch.bfloat16, torch.float16):
        raise ModelError(f"the dtype of a merge must be float32, bfloat16 or float16, got {dtype}.")
    return found


def _check_model(model: PreTrainedModel) -> None:
    check_module(model)
    check_uncompiled(name for name, _ in model.named_modules())
    check_unwrapped(model)
    if not isinstance(model, PreTrainedModel):
        raise ModelError(
            f"merge needs the unedited base model, got a {type(model).__name__}; give its unload(), or load the base"
            " anew."
        )
    # Not by transformers' flag alone, which it leaves set where PEFT refused an adapter.
    if hasattr(model, "peft_config") or any(isinstance(module, ADAPTED_ATTENTION) for module in model.modules()):
        raise ModelError("the model has adapters on it; merge needs the unedited base model.")
    # Of an adapter that transformers deleted the layers stay.
    if has_adapters(model):
        raise ModelError("the model has layers of a deleted adapter on it; give what unload(model) returns.")
    if getattr(model, "is_quantized", False):
        raise ModelError("the model is quantized; load it in bfloat16 or float32 to merge.")
    if any(parameter.device.type == "meta" for parameter in model.parameters()):
        raise ModelError("some weights of the model are offloaded; load it whole to merge.")
    if is_sharded(model):
        raise ModelError("the model is sharded over processes; load it whole to merge.")
    # Of a model that was quantized after it was loaded, transformers does not know it.
    if kind := next((type(parameter).__name__ for parameter in model.parameters() if is_wrapper(parameter)), None):
        raise ModelError(
            f"the model has weights of a kind that cannot be rewritten, {kind}; load it in bfloat16 or float32 to"
            " merge."
        )
