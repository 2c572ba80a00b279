"""Whether all of an adapter acts on a model, and nothing of it but what can be switched off again.

PEFT leaves out the tensors of a file that a model has no place for, keeps random ones where the file lacks some, and
writes others into the base itself. What is measured then is not the adapter, or not the base.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from peft.tuners.tuners_utils import check_target_module_exists
from torch import Tensor

from ..errors import AdapterError, brief
from .scale_files import PREFIX

# Ways for LoRA to begin that leave the base's weights alone. Others, such as PiSSA, take from them what the factors
# begin with.
_BEGINNINGS = (True, False, None, "gaussian", "eva", "orthogonal")
_TARGETING = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
# What several adapters or layers share, which a file need not hold for each of them.
_SHARED = ("vblora_vector_bank", "prompt_encoder", ".tinylora_v.", ".unilora_theta_d.")


def check_beginning(path: Path, config: Mapping[str, Any]) -> None:
    """Refuses a LoRA adapter that began by taking something from the base's weights, which PEFT takes again.

    Raises:
        AdapterError: If it did, or may have.
    """
    if (beginning := config.get("init_lora_weights")) not in _BEGINNINGS:
        raise AdapterError(
            f"{path} was initialized with {brief(beginning)}, which may have changed the base, and is not read here;"
            " PEFT can convert it (path_initial_model_for_weight_conversion) or merge it (merge_and_unload)."
        )


def check_targeted(path: Path, config: Mapping[str, Any], modules: Iterable[str]) -> None:
    """Refuses an adapter whose file holds something for modules that its configuration does not target.

    Raises:
        AdapterError: For the first such module, or if the configuration cannot be what it is.
    """
    settings = SimpleNamespace(target_parameters=None, **{key: config.get(key) for key in _TARGETING})
    if settings.target_modules in (None, "all-linear"):
        return
    for module in modules:
        try:
            targeted = check_target_module_exists(settings, module)
        except (TypeError, ValueError, AttributeError, re.error) as error:
            raise AdapterError(f"{path} cannot target modules in that way: {error}.") from error
        if not targeted:
            raise AdapterError(f"{path} holds something for {module}, which its configuration does not target.")


def check_leaves_base(
    path: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> None:
    """Refuses an adapter whose file holds other values for parameters of the base itself, such as trained biases.

    Args:
        path: The adapter's folder.
        config: Its configuration. Whole modules that it saves are copies beside the base's, and may differ.
        tensors: What its file holds.
        own: The base's by their names before an adapter was put on, of tied ones by every name.

    Raises:
        AdapterError: For the first such tensor.
    """
    saved = config.get("modules_to_save") or ()
    for key, tensor in tensors.items():
        name = key.removeprefix(PREFIX).replace(".base_layer.", ".")
        if name not in own or any(parent.endswith(str(module)) for parent in _parents(name) for module in saved):
            continue
        held = own[name]
        if held.is_meta or tensor.shape != held.shape:
            continue
        if not torch.equal(tensor.to(held.device, held.dtype), held):
            raise AdapterError(
                f"{path} holds {name} of the base itself, with other values; disabling the adapter would not bring the"
                " base back."
            )


def _parents(name: str) -> list[str]:
    """The modules that a parameter is in, of which PEFT saves those whole whose names end in what it is given."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


def check_same_weights(name: str, kept: Mapping[str, Tensor], own: Mapping[str, Tensor], whose: str) -> None:
    """Refuses an adapter whose file holds other weights of the base than there are, up to a half precision's rounding.

    Args:
        name: What the message calls the adapter.
        kept: What its file holds of the base, in float32, by the base's names.
        own: What there is, by the same names.
        whose: What the message calls the owner of these.

    Raises:
        AdapterError: For the first tensor that differs.
    """
    for key, tensor in kept.items():
        held = own.get(key)
        if held is not tensor and (held is None or held.shape != tensor.shape or not _same(tensor, held)):
            raise AdapterError(f"{name} was made on a base with another {key} than {whose} has, as its file shows.")


def _same(tensor: Tensor, held: Tensor) -> bool:
    """Whether two hold the same values in the coarsest dtype that either may have come from."""
    tensor = tensor.to(held.device)
    halves = _halves(tensor)
    if any(torch.equal(tensor.to(dtype), held.to(dtype)) for dtype in (held.dtype, *halves)):
        return True
    # Each may have been rounded to a half precision of its own: by 2⁻⁹ and 2⁻¹¹ of a value, or by 2⁻²⁵.
    both = bool(halves and _halves(held))
    return both and torch.allclose(tensor.float(), held.float(), rtol=2**-8, atol=2**-24)


def _halves(tensor: Tensor) -> list[torch.dtype]:
    return [half for half in (torch.bfloat16, torch.float16) if torch.equal(tensor.to(half).to(tensor.dtype), tensor)]


def check_all_acts(path: Path, result: Any) -> None:
    """Refuses an adapter of which the file lacks something, or holds something that the model has no place for.

    Args:
        path: The adapter's folder.
        result: What `PeftModel.load_adapter` returned.

    Raises:
        AdapterError: For the first such tensor.
    """
    missing = [key for key in result.missing_keys if not any(part in key for part in _SHARED)]
    if missing:
        raise AdapterError(f"{path} lacks {missing[0]}, which its configuration promises.")
    if result.unexpected_keys:
        raise AdapterError(f"{path} holds {result.unexpected_keys[0]}, for which the model has no place.")
