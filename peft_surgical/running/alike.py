"""Whether processes that share work were given the same: what each works out is added up with the others'."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from ..errors import ModelError, tell
from ..wrapped import is_spread
from .identity import sums_of
from .sharing import from_all, is_main, is_several


def check_alike(**given: Any) -> None:
    """Refuses work for which the processes that do it were given unlike arguments: its parts would not fit together.

    Args:
        **given: What each was given, by what it is called in the message; told apart by its `repr`, sets by what they
            hold, models by the dtypes and weights of their bases, as far as every process has them at hand, and by
            which adapters they have and which of these act.

    Raises:
        ModelError: In all of them, if one was given something else.
    """
    if not is_several():
        return
    every = from_all({name: _digests(value) for name, value in given.items()})
    names = dict.fromkeys(name for one in every for name in one)
    if unlike := next((name for name in names if _differ([one.get(name) for one in every])), None):
        error = ModelError(
            f"processes in shared_work must call the same with the same arguments, and these differ in: {unlike}."
        )
        tell(error, by_first=not is_main())
        raise error


def _digests(value: Any) -> tuple[str, str | None]:
    """Of what an argument is, and of what a model's weights hold: None where not all are at hand."""
    if not isinstance(value, nn.Module):
        return _digest(value), None
    weights = _weights(value)
    sums = [None if weight.is_meta or is_spread(weight) else sums_of(weight) for weight in weights.values()]
    kinds = [(name, weight.dtype, tuple(weight.shape)) for name, weight in weights.items()]
    return _digest([kinds, _adapters(value)]), None if None in sums else _digest(sums)


def _digest(value: Any) -> str:
    return hashlib.blake2b(_ordered_repr(value).encode()).hexdigest()


def _differ(every: Sequence[tuple[str, str | None] | None]) -> bool:
    held = {digests[1] for digests in every if digests is not None}
    return len({digests and digests[0] for digests in every}) > 1 or (None not in held and len(held) > 1)


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """What tells the base of a model from another, without adapters: what they hold is what training made of it."""
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    of_bases = {id(own) for layer in layers for _, own in _saved(layer.get_base_layer())}
    of_adapters = {id(own) for layer in layers for _, own in _saved(layer)} - of_bases
    return {name: own for name, own in _saved(model) if id(own) not in of_adapters}


def _adapters(model: nn.Module) -> list[Any]:
    """Which adapters a model has and which act, but not what they hold: training may round to something else on each
    device."""
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]
    return [
        set(model.peft_config) if isinstance(model, PeftModel) else None,
        *(
            (
                name,
                layer._get_available_adapters(),
                layer.active_adapters,
                layer.merged_adapters,
                layer.disable_adapters,
            )
            for name, layer in layers
        ),
    ]


def _saved(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters, and those buffers of numbers that a checkpoint holds: others are worked out, and may be so anew by
    what a process reads, as the turning of long rows' positions is."""
    yield from module.named_parameters()
    for place, own in module.named_modules():
        for name, buffer in own.named_buffers(place, recurse=False):
            if buffer.is_floating_point() and name.rpartition(".")[2] not in own._non_persistent_buffers_set:
                yield name, buffer


def _ordered_repr(value: Any) -> str:
    # Each process hashes text by a seed of its own, so that equal sets come in different orders.
    if isinstance(value, set | frozenset):
        return f"{{{', '.join(sorted(map(_ordered_repr, value)))}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_ordered_repr, value))}]"
    if isinstance(value, dict):
        return _ordered_repr([*value.items()])
    if is_dataclass(value):
        held = ((field.name, getattr(value, field.name)) for field in fields(value) if field.repr)
        return f"{type(value).__qualname__}{_ordered_repr([*held])}"
    return repr(value)
