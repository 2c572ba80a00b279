"""An edited checkpoint beside its base, as a state of the base: the same report, whoever made the edit.

The weights of the base that the checkpoint has otherwise give way to the checkpoint's while the state holds. Those of
a folder are mapped from its files, so that there are no two copies of a model in memory; in the end the base has its
very own tensors again, and no bit of them was written to.

```py
>>> edited = edited_checkpoint(model, tokenizer, "./merged")
>>> evaluate(model, tokenizer, fact, states=edited.states, settings=edited.settings)
```
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming

from ..adapters.merged_edits import edits_in, read_edits
from ..adapters.scale_files import digest_of
from ..dtypes import dtype_name
from ..errors import ModelError, SurgicalError, brief, first_line
from ..folding import check_rewritable
from ..loading.pickles import no_pickles
from ..loading.stored import stored_tensors
from ..models import checkpoint_folder, load_alone, load_model
from .comparable import check_same_config, check_same_tokenizer
from .states import State

EditedModel: TypeAlias = str | os.PathLike[str] | PreTrainedModel
"""An edited checkpoint: a folder, a hub id or a `.gguf` file as [`load_model`] takes, or a model in memory."""

WiderDtype: TypeAlias = Literal["refuse", "widen", "round"]
"""What becomes of a checkpoint whose dtype the base's does not hold: it is refused, the base becomes as wide, or the
checkpoint is rounded to the base's, as both are where somebody asks for a dtype."""

_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# Buffers that transformers once stored and now computes, whatever a model's class says that it leaves out.
_COMPUTED = (r"rotary_emb\.inv_freq$", r"(^|\.)position_ids$")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt")


@dataclass(frozen=True)
class EditedCheckpoint:
    """What [`edited_checkpoint`] returns.

    Attributes:
        state: What brings the base into the state `edited`.
        record: What a report tells of the checkpoint, as JSON: its `name`, the `dtype` that it is stored in, the
            `sha256` of the tensors that differ from the base's, how many `tensors` there are, which of them `changed`,
            in how many of these the difference is `only_rounding` to that dtype, and the `edits` that the folder it
            was read from says it carries.
    """

    state: State
    record: dict[str, Any]

    @property
    def states(self) -> dict[str, State]:
        """The base as it is and the checkpoint, by the names that a report has for them."""
        return {"base": nullcontext, "edited": self.state}

    @property
    def settings(self) -> dict[str, Any]:
        """What a report's settings say of it."""
        return {"edited": self.record}


@dataclass(frozen=True)
class _Found:
    """An edited checkpoint as it was read: what is missing of the base's tensors is tied to one of those."""

    name: str
    tensors: Mapping[str, Tensor]
    edits: Sequence[Mapping[str, Any]] = ()


def check_edited(edited: EditedModel) -> None:
    """Refuses, before a model is loaded, what can be no edited checkpoint.

    Raises:
        ModelError: If it is neither a name nor a model, there is no such folder or file, or it is an adapter.
    """
    if isinstance(edited, str | os.PathLike):
        path = Path(os.path.expanduser(edited))
        if str(edited) != "demo" and os.path.isfile(path / "adapter_config.json"):
            raise ModelError(
                f"the folder {path} holds an adapter and no edited checkpoint; give it as an adapter (--adapter)."
            )
        checkpoint_folder(edited)
        return
    if not isinstance(edited, PreTrainedModel):
        raise ModelError(
            f"an edited checkpoint is a folder, a hub id, a .gguf file or a transformers model, not {brief(edited)};"
            " of a PEFT model give what merge_and_unload() returns, or its states."
        )
    if hasattr(edited, "peft_config"):
        raise ModelError("the edited model has adapters on it; give it merged, or their states.")


def edited_checkpoint(
    model: Any,
    tokenizer: Any,
    edited: EditedModel,
    *,
    wider: WiderDtype = "refuse",
    trust_remote_code: bool = False,
    quiet: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> EditedCheckpoint:
    """The state of a base in which it has the weights of an edited checkpoint.

    Args:
        model: The base, without adapters. It becomes as wide as the checkpoint where `wider` says so.
        tokenizer: The base's.
        edited: The checkpoint.
        wider: What becomes of a checkpoint in a dtype that the base's does not hold.
        trust_remote_code: As for [`load_model`].
        quiet: The context in which libraries read it.

    Raises:
        ModelError: If the base has adapters on it, or weights that are quantized, offloaded or spread over processes;
            if the checkpoint cannot be read, is of another architecture or other sizes, has other tensors, ties them
            otherwise, reads text otherwise, or holds a dtype that the base's does not and that is refused.

    Warns:
        UserWarning: If the checkpoint is stored in a dtype that does not hold the base, or is rounded to the base's;
            if it does not differ from the base, or its tokenizer does a little.
    """
    check_edited(edited)
    check_rewritable(model, "an edited checkpoint beside its base", "measure an edited checkpoint beside it")
    if edited is model:
        raise ModelError("the edited model is the base itself; load the base anew, or give the edited one's folder.")
    found = _read(model, tokenizer, edited, trust_remote_code, quiet)
    own = _tensors(model)
    _check_names(found, own)
    # Tensor by tensor: some models keep a few of theirs in float32, whatever the others are in.
    narrower, base_dtypes = _hold_more(own, found.tensors), _dtypes({key: own[key] for key in found.tensors})
    _fit(model, found, wider)
    # Buffers that became wider are other tensors than before.
    own = _tensors(model)
    changed, only_rounded = _changed(found, own)
    record = {
        "name": found.name,
        "dtype": _dtypes(found.tensors),
        "sha256": digest_of({key: found.tensors[key] for key in changed}),
        "tensors": len({id(tensor) for tensor in own.values()}),
        "changed": sorted(changed),
        "only_rounding": only_rounded,
        **({"edits": [dict(edit) for edit in found.edits]} if found.edits else {}),
    }
    rounded = _hold_more(found.tensors, own)
    _warn(record, base_dtypes, model.dtype, narrower=narrower, rounded=rounded)
    pairs = [(own[key], found.tensors[key]) for key in changed]
    return EditedCheckpoint(lambda: _exchanged(pairs), record)


def _tensors(model: Any) -> dict[str, Tensor]:
    """The parameters and buffers that a checkpoint holds, by all their names; tied ones are one tensor."""
    found: dict[str, Tensor] = model.state_dict(keep_vars=True)
    return found


def _read(
    model: Any,
    tokenizer: Any,
    edited: EditedModel,
    trust_remote_code: bool,
    quiet: Callable[[], AbstractContextManager[None]],
) -> _Found:
    if isinstance(edited, PreTrainedModel):
        name = f"the edited model {edited.name_or_path}".rstrip()
        _check_base_like(name, edited)
        floating = all(parameter.is_floating_point() for parameter in edited.parameters())
        check_same_config(name, edited.config, model.config, floating=floating)
        return _Found(name, _tensors(edited), edits_in(edited))
    name, folder = os.fspath(edited), checkpoint_folder(edited)
    if folder is not None:
        config, own_tokenizer = _described(name, folder, trust_remote_code, quiet)
        check_same_config(name, config, model.config)
        if own_tokenizer is not None:
            check_same_tokenizer(name, own_tokenizer, tokenizer)
        edits = read_edits(folder)
        if (named := _by_own_names(model, stored_tensors(folder))) is not None:
            return _Found(name, named, edits)
        # What only transformers makes tensors of the model from is loaded once, and let go of where it is the base's.
        with quiet():
            loaded = load_alone(edited, trust_remote_code=trust_remote_code)
    else:
        with quiet():
            loaded, own_tokenizer = load_model(edited, trust_remote_code=trust_remote_code)
        edits = edits_in(loaded)
    check_same_config(name, loaded.config, model.config)
    if folder is None:
        check_same_tokenizer(name, own_tokenizer, tokenizer)
    return _Found(name, _tensors(loaded), edits)


def _check_base_like(name: str, model: PreTrainedModel) -> None:
    for key, tensor in model.state_dict().items():
        if not isinstance(tensor, Tensor) or tensor.device.type == "meta":
            raise ModelError(f"{name} has no weight {key} at hand; load it whole, in bfloat16, float16 or float32.")


def _described(
    name: str, folder: Path, trust_remote_code: bool, quiet: Callable[[], AbstractContextManager[None]]
) -> tuple[Any, Any]:
    """The configuration of a checkpoint and its tokenizer; None for the latter where it comes without."""
    try:
        with no_pickles(), quiet():
            config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
            if not any((folder / file).is_file() for file in _TOKENIZERS):
                return config, None
            return config, AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except SurgicalError:
        raise
    except Exception as error:  # as for load_model, transformers raises many kinds
        # Says which file is damaged, if one is.
        stored_tensors(folder)
        raise ModelError(f"cannot load the edited checkpoint {name!r}: {first_line(error)}.") from error


def _by_own_names(model: Any, stored: dict[str, Tensor] | None) -> dict[str, Tensor] | None:
    """A checkpoint's tensors by the model's names, less those that transformers leaves out without a word.

    None where tensors of the model are made of several, or are not all there.
    """
    changes = get_model_conversion_mapping(model)
    if stored is None or not all(isinstance(change, WeightRenaming) for change in changes):
        return None
    own, found = _tensors(model), {}
    left_out = re.compile("|".join([*(model._keys_to_ignore_on_load_unexpected or ()), *_COMPUTED]))
    for stored_key, tensor in stored.items():
        key = stored_key
        for change in changes:
            key, _ = change.rename_source_key(key)
        # A checkpoint of the model without its output head leaves out the first part of every name.
        name = key if key in own else f"{model.base_model_prefix}.{key}"
        if name in found or (name not in own and not left_out.search(key)):
            return None
        if name in own:
            found[name] = tensor
    held = {id(own[key]) for key in found}
    return found if all(id(tensor) in held for tensor in own.values()) else None


def _check_names(found: _Found, own: Mapping[str, Tensor]) -> None:
    held = {id(own[key]) for key in found.tensors.keys() & own.keys()}
    for where, keys in (
        ("the base", found.tensors.keys() - own.keys()),
        ("it", {key for key, tensor in own.items() if id(tensor) not in held}),
    ):
        if keys:
            more = f" and {len(keys) - 1:,} more" if len(keys) > 1 else ""
            raise ModelError(f"{found.name} has other tensors than the base: {where} has no {min(keys)}{more}.")
    met: dict[int, str] = {}
    for key, tensor in found.tensors.items():
        mine = own[key]
        if tensor.shape != mine.shape:
            raise ModelError(
                f"{found.name} is no edit of the base: {key} has the shape {tuple(tensor.shape)} there and"
                f" {tuple(mine.shape)} in the base."
            )
        if tensor.dtype != mine.dtype and not {tensor.dtype, mine.dtype} <= {*_FLOATS}:
            raise ModelError(
                f"{found.name} holds {key} as {dtype_name(tensor.dtype)} and the base as {dtype_name(mine.dtype)};"
                " give it in bfloat16, float16 or float32."
            )
        other = met.setdefault(id(mine), key)
        if other != key and not torch.equal(tensor, found.tensors[other]):
            raise ModelError(f"{found.name} has two tensors, {other} and {key}, where the base has one for both.")


def _fit(model: Any, found: _Found, wider: WiderDtype) -> None:
    """Sees to it that the base's tensors hold what the checkpoint's do, unless that is to be rounded."""
    own = _tensors(model)
    needed = {
        joint
        for key, tensor in found.tensors.items()
        if tensor.is_floating_point()
        and (joint := torch.promote_types(tensor.dtype, own[key].dtype)) != own[key].dtype
    }
    if not needed or wider == "round":
        return
    joint = reduce(torch.promote_types, needed)
    if wider == "refuse":
        raise ModelError(
            f"{found.name} is stored in {_dtypes(found.tensors)}, and this base in {dtype_name(model.dtype)} would"
            f" round the edit; load the base with dtype={dtype_name(joint)!r}, which holds both."
        )
    model.to(joint)


def _changed(found: _Found, own: Mapping[str, Tensor]) -> tuple[list[str], int]:
    """The names of the tensors that differ from the base's, and how many do only as the base rounded would."""
    changed, only_rounded, met = [], 0, set()
    for key, new in found.tensors.items():
        mine = own[key].detach()
        if id(own[key]) in met:
            continue
        met.add(id(own[key]))
        here = new.detach().to(mine.device)
        if torch.equal(mine, here.to(mine.dtype)):
            continue
        changed.append(key)
        only_rounded += torch.equal(mine.to(new.dtype), here)
    return changed, only_rounded


def _hold_more(some: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> bool:
    """Whether a tensor of some is of a dtype that the one of its name among others does not hold."""
    return any(
        some[key].is_floating_point() and torch.promote_types(some[key].dtype, others[key].dtype) != others[key].dtype
        for key in some.keys() & others.keys()
    )


def _warn(record: Mapping[str, Any], base: str, measured: torch.dtype, *, narrower: bool, rounded: bool) -> None:
    name, dtype = record["name"], record["dtype"]
    if rounded:
        warnings.warn(
            f"{name} is stored in {dtype} and rounded to {dtype_name(measured)}, as the base is, which may round a"
            " small edit away; float32 keeps it.",
            stacklevel=3,
        )
    elif record["changed"] and narrower:
        count, alone = len(record["changed"]), record["only_rounding"]
        warnings.warn(
            f"{name} is stored in {dtype} and the base in {base}; both are measured in {dtype_name(measured)}, so"
            f" the figures hold the edit and what storing it rounded: of {count:,} tensors that differ {alone:,} do"
            f" by rounding alone. A base in {dtype} (--dtype) is rounded alike, and leaves the edit.",
            stacklevel=3,
        )
    if not record["changed"]:
        warnings.warn(f"{name} has the very weights of the base, so base and edited are the same.", stacklevel=3)


@contextmanager
def _exchanged(pairs: Sequence[tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Lets tensors of a model be others for a while; its own are kept aside, and not written to.

    Off the processor its own wait on the processor, so that the device does not hold both.
    """
    kept: list[tuple[Tensor, torch.device, Tensor]] = []
    try:
        for own, new in pairs:
            kept.append((own, own.device, own.data.cpu()))
            own.data = new.detach().to(own.device, own.dtype)
        yield
    finally:
        for own, device, before in kept:
            own.data = before.to(device)


def _dtypes(tensors: Mapping[str, Tensor]) -> str:
    found = dict.fromkeys(dtype_name(tensor.dtype) for tensor in tensors.values() if tensor.is_floating_point())
    return " and ".join(found)
