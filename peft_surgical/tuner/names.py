"""Adapters by their names, as people give them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from ..errors import AdapterError, brief
from .kinds import bare

# What PEFT puts before the names of a model's modules, and what stands behind them.
_AROUND = {"base_model", "model", "surgical_ia3_delta"}

# What PEFT itself means by a word that stands where an adapter's name may.
_OF_PEFT = {
    "__base__": "the model without an adapter",
    "modules_to_save": "where it keeps the modules that are saved whole",
}


def names_of(adapters: str | Iterable[str]) -> list[str]:
    """One name, or several, as a list.

    Raises:
        AdapterError: If they are neither.
    """
    if isinstance(adapters, str):
        return [adapters]
    names = list(adapters) if isinstance(adapters, Iterable) else None
    if names is None or not all(isinstance(name, str) for name in names):
        raise AdapterError(f"adapters are given by one name or a list of names, not by {brief(adapters)}.")
    return names


def check_known(names: Iterable[str], known: Iterable[str]) -> None:
    """Refuses names of adapters that a model does not have.

    Args:
        names: The names.
        known: The names of the adapters that it has.

    Raises:
        AdapterError: If a name is not known, or `names` is one name and not a list, or no list at all.
    """
    if isinstance(names, str):
        raise AdapterError(f"adapters are given here as a list of names, got {names!r}; give [{names!r}].")
    if not isinstance(names, Iterable):
        raise AdapterError(f"adapters are given here as a list of names, got {brief(names)}.")
    known = list(known)
    if unknown := [name for name in names if name not in known]:
        raise AdapterError(f"there is no adapter named {unknown[0]!r}; the model has {', '.join(known) or 'none'}.")


def check_usable(name: str, model: nn.Module) -> None:
    """Refuses what cannot name an adapter, since torch's modules hold its parameters by it and PEFT finds them by it.

    Args:
        name: The name.
        model: The model that the adapter is for, with others on it or none.

    Raises:
        AdapterError: If it is no text, is empty, has a dot in it, or is what such a module has already, as `half` and
            `train`, or a word of PEFT's own, as `__base__`, or if one of the model's modules, parameters or buffers is
            called so, as `mlp` and `weight`.
    """
    if not isinstance(name, str):
        raise AdapterError(f"{brief(name)} cannot name an adapter: a name is text.")
    if not name or "." in name:
        raise AdapterError(f"{name!r} cannot name an adapter: a name is not empty and has no dot in it.")
    if hasattr(nn.ParameterDict(), name):
        raise AdapterError(f"{name!r} cannot name an adapter: torch's modules have something of that name.")
    if name in _OF_PEFT:
        raise AdapterError(f"{name!r} cannot name an adapter: PEFT means {_OF_PEFT[name]} by it; choose another name.")
    parts = [*_parts(model)]
    if name in {*_AROUND, *(called for called, _ in parts)}:
        raise AdapterError(
            f"{name!r} cannot name an adapter: a module is called so, and PEFT, which looks for an adapter's name"
            " anywhere in a parameter's, would leave other adapters' scales out of their files."
        )
    if any(name in {*module._parameters, *module._buffers} for module in (model, *(module for _, module in parts))):
        raise AdapterError(
            f"{name!r} cannot name an adapter: a parameter is called so, and PEFT, which takes an adapter's name out"
            " of a parameter's, could not load again what the adapter saves whole."
        )


def _parts(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules of a model, each by what it is called within its parent, but for what adapters have put there."""
    for name, child in module.named_children():
        if isinstance(child, BaseTunerLayer | AuxiliaryTrainingWrapper):
            child = bare(child)
        yield name, child
        yield from _parts(child)


def check_once(names: Sequence[str]) -> None:
    """Refuses an adapter that is named twice, as its scales would multiply twice.

    Raises:
        AdapterError: If one is.
    """
    if twice := [name for i, name in enumerate(names) if name in names[:i]]:
        raise AdapterError(f"{twice[0]!r} is named twice, and would multiply twice; name each adapter once.")
