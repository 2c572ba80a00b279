"""Folding adapters into a copy of the base weights, on disk.

The model that is given stays as it was: only the weights that an adapter touches are copied and changed, on their way
into the checkpoint. Several adapters are rounded once, which is more exact than merging one after the other.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .adapters.bases import folder_of, may_be_read_from, source_of, warn_of_another_base
from .adapters.edits import Edit, first_known, several
from .adapters.lineage import warn_of_lineage
from .adapters.low_rank import LowRank
from .adapters.mergeable import Mergeable, read_mergeable
from .adapters.merged_edits import edit_record, edits_in, lineages_of, write_edits
from .dtypes import dtype_name
from .errors import ModelError, OutputError
from .folding import check_finite, check_rewritable, folded_apart, steps_of
from .loading.padding import as_it_came
from .tuner.fold import Rounding
from .writing.carried import carry
from .writing.files import CHECKPOINT, as_output_error, atomic_directory, check_output, read_json, write_json
from .writing.inputs import check_inputs_stay

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
        adapters: Folders of surgical or plain (IA)^3 adapters or of LoRA, as a keyed edit is, or either in memory, in
            the order in which they were trained.
        out: The folder to write; it appears whole or not at all.
        dtype: Of the checkpoint, such as `"float32"`; the model's by default. A half-precision merge that rounds a
            part of the edit away warns.
        tokenizer: Saved beside the weights if given; without the token to pad with that [`load_model`] lent it.
        overwrite: Replace the folder if it holds a checkpoint.

    Raises:
        AdapterError: If an adapter cannot be read, they do not go together, one of them touches a weight that is
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
        UserWarning: If an adapter was trained on top of another, which is neither given nor in the base by what that
            says of the edits in it, or acts twice, if it was made for a model of another name or revision, if the
            dtype rounds a part of the edit away, or if what the base says of the edits in it cannot be read.
    """
    target = _dtype(dtype)
    check_rewritable(model)
    given: list[Mergeable] = several(adapters, (Edit, LowRank))
    # A folder of that name is what would be loaded by it, be it also a hub id.
    check_inputs_stay(out, [*given, model.name_or_path or "", source_of(model)])
    check_output(out, overwrite=overwrite, content=CHECKPOINT)
    if os.path.isdir(out) and any(os.scandir(out)) and may_be_read_from(model, out):
        raise OutputError(
            f"the output {out} may be the base itself, which was loaded as {model.name_or_path}; name another folder,"
            " or load the base with load_model, which notes where it is."
        )
    read = [read_mergeable(adapter) for adapter in given]
    steps = steps_of(read)
    earlier = edits_in(model)
    warn_of_lineage(given, lineages_of(earlier))
    made_for = first_known(adapter.base_model for adapter in read)
    revision = first_known(adapter.revision for adapter in read)
    warn_of_another_base(model, read[0].name, made_for, revision)
    state: dict[str, Tensor] = model.state_dict()
    found = {key: new for made in folded_apart(model, steps, state, target) for key, new in made.items()}
    state |= {key: values for key, (values, _) in found.items()}
    rounding = Rounding.total(rounding for _, rounding in found.values())
    rounding.warn(target or model.dtype, stacklevel=3)
    edits = [*earlier, edit_record(given, model, target or model.dtype, rounding)]
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
            write_json(path, _with_dtype(read_json(path), target))
        if tokenizer is not None:
            as_it_came(tokenizer).save_pretrained(folder)
        source = folder_of(model)
        with as_output_error(out):
            if source is not None:
                carry(source, folder)
            write_edits(folder, source, edits)


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
                check_finite(key, seen[place], tensor)
            tensor = seen[place]
        cast[key] = tensor
    return cast


def _with_dtype(config: Any, dtype: torch.dtype) -> Any:
    if not isinstance(config, dict):
        return config
    name = dtype_name(dtype)
    return {
        key: name if key in ("dtype", "torch_dtype") and isinstance(value, str) else _with_dtype(value, dtype)
        for key, value in config.items()
    }


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype is not None and found not in (torch.float32, torch.bfloat16, torch.float16):
        raise ModelError(f"the dtype of a merge must be float32, bfloat16 or float16, got {dtype}.")
    return found
