"""What a base computes with, as a hash by which two models can be told apart."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .modes import base_model_of, learns_prompts
from .replicas import is_plain

PACKAGES = ("torch", "transformers", "peft")
"""Whose code a model may be made of; a key that holds its hash holds their versions, too."""

_OWN = __name__.partition(".")[0]

# What a configuration chooses by a name, with where transformers looks the name up.
_CHOSEN = {
    "_attn_implementation": (ALL_ATTENTION_FUNCTIONS, ALL_MASK_ATTENTION_FUNCTIONS),
    "_experts_implementation": (ALL_EXPERTS_FUNCTIONS,),
}
# Where a model came from and what last wrote its file do not change what it says.
_NOT_CONTENT = ("_name_or_path", "transformers_version")
# Of the table that a tensor's bytes are summed in.
_COLUMNS = 1024
_NOT_COMPUTED_WITH = ("training", "gradient_checkpointing", "name_or_path")


class Hashes:
    """Hashes of tensors that were met, each with what tells that it was written to since."""

    def __init__(self) -> None:
        self._known: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def of(self, tensor: Tensor) -> bytes:
        """The [`content_hash`] of a tensor, worked out once for as long as it is not written to."""
        # A tensor of inference mode does not count what is written to it.
        if tensor.is_inference():
            return content_hash(tensor)
        written = (tensor._version, tensor.data_ptr(), sums_of(tensor))
        known: tuple[tuple[int, int, bytes], bytes] | None = self._known.get(tensor)
        if known is None or known[0] != written:
            known = self._known[tensor] = (written, content_hash(tensor))
        return known[1]


def sums_of(tensor: Tensor) -> bytes:
    """What tells that a tensor was written to, be it one column or two rows swapped, several times as fast as a hash.

    Its bytes as 64-bit integers in a table, and of this a hash of the sums of each row and of each column.
    """
    content = _bytes_of(tensor)
    words = content[: len(content) // 8 * 8].view(torch.int64)
    table = words[: len(words) // _COLUMNS * _COLUMNS].view(-1, _COLUMNS)
    digest = hashlib.blake2b(content[table.numel() * 8 :].cpu().numpy().data, digest_size=32)
    for along in (0, 1):
        digest.update(table.sum(along).view(torch.uint8).cpu().numpy().data)
    return digest.digest()


def _bytes_of(tensor: Tensor) -> Tensor:
    """A tensor's bytes, which begin where they can be read as words of eight."""
    content = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    return content if content.storage_offset() % 8 == 0 else content.clone()


def content_hash(tensor: Tensor) -> bytes:
    """A hash of a tensor's bytes."""
    return hashlib.blake2b(_bytes_of(tensor).numpy().data, digest_size=32).digest()


def json_hash(value: Any) -> str:
    """A hash of what JSON can hold, and of sets of it."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True, default=sorted).encode(), digest_size=32).hexdigest()


def weights_digest(model: Any, hash_of: Callable[[Tensor], bytes] = content_hash) -> str | None:
    """A hash of all that a bare model computes with; of a model with adapters, of the base below them.

    Args:
        model: The model.
        hash_of: Gives the hash of a tensor's bytes.

    Returns:
        The hash; `None` where the base does not answer alone or its content cannot be told: an adapter acts or is
        merged, weights are quantized or not on the processor, a module's forward is hooked, its code or its attention
        is somebody's own, or the keys of its configuration have no order.
    """
    if learns_prompts(model):
        return None
    base = base_model_of(model)
    modules = list(_modules(base, ""))
    acting = (BaseTunerLayer, AuxiliaryTrainingWrapper)
    if any(isinstance(module, acting) or not is_plain(module) or not _is_known(module) for _, module in modules):
        return None
    config = {key: value for key, value in base.config.to_dict().items() if key not in _NOT_CONTENT}
    try:
        settings = json.dumps(config, sort_keys=True, default=str)
    except TypeError:
        # Keys are of several types, or of one that JSON does not have.
        return None
    digest = hashlib.blake2b(settings.encode(), digest_size=32)
    met: dict[int, str] = {}
    for name, module in modules:
        made_of = f"{type(module).__module__}.{type(module).__qualname__}:{_settings(module)}:{_choices(module)}"
        digest.update(f"{name}:{made_of}\n".encode())
        tensors: list[tuple[str, Tensor]] = [
            *module.named_parameters(recurse=False, remove_duplicate=False),
            *module.named_buffers(recurse=False, remove_duplicate=False),
        ]
        for own, tensor in tensors:
            digest.update(f"{own}:{tensor.dtype}:{tuple(tensor.shape)}:{met.get(id(tensor))}\n".encode())
            if id(tensor) not in met:
                met[id(tensor)] = f"{name}.{own}"
                digest.update(hash_of(tensor))
    return digest.hexdigest()


def _is_known(module: nn.Module) -> bool:
    """Whether what a module does is, as far as can be seen, the code of a package whose version is a part of the key,
    and all that it computes with is seen, too.

    Functions that its code calls by a name of their module may have been replaced there.
    """
    kind = type(module)
    chosen = [table.get(name) for key, name in _choices(module).items() for table in _CHOSEN[key]]
    # What is saved in a way of its own, such as torch.ao's packed weights, is neither a parameter nor a buffer.
    plainly = (nn.Module._save_to_state_dict, nn.Module.get_extra_state)
    return (
        kind.__module__.partition(".")[0] in PACKAGES
        and (kind._save_to_state_dict, kind.get_extra_state) == plainly
        and all(_is_of(function, PACKAGES) for function in (kind.forward, kind.__call__))
        and all(_is_of(function, (*PACKAGES, _OWN)) for function in chosen)
    )


def _is_of(function: Any, packages: tuple[str, ...]) -> bool:
    """Whether a function, and each that it wraps, was written in one of some packages, whatever it says of itself."""
    while function is not None:
        place = getattr(function, "__globals__", {}).get("__name__", "")
        if place.partition(".")[0] not in packages:
            return False
        function = getattr(function, "__wrapped__", None)
    return True


def _choices(module: nn.Module) -> dict[str, str | None]:
    """What a module's configuration, which in a model of several parts is its part's, chooses by a name."""
    config = getattr(module, "config", None)
    return {key: getattr(config, key, None) for key in _CHOSEN}


def _settings(module: nn.Module) -> str:
    """What else a module computes with: numbers such as an epsilon or a slope."""
    plain = {
        key: value
        for key, value in vars(module).items()
        if type(value) in (bool, int, float, str) and not key.startswith("_") and key not in _NOT_COMPUTED_WITH
    }
    return str(sorted(plain.items()))


def _modules(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """A model's modules as they were before adapters were put on; what acts on one is given as it is."""
    if isinstance(module, BaseTunerLayer) and module.disable_adapters and not module.merged:
        module = module.get_base_layer()
    yield name, module
    for child, inside in module.named_children():
        yield from _modules(inside, f"{name}.{child}")
