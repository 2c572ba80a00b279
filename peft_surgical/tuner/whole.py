"""Modules that adapters save whole (`modules_to_save`), of which only one adapter's can act at a time."""

from __future__ import annotations

from collections.abc import Sequence

from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from ..errors import AdapterError
from .layer import layers_by_name


def whole_modules(model: nn.Module) -> list[tuple[AuxiliaryTrainingWrapper, set[str]]]:
    """PEFT's wrappers of modules that adapters save whole, each with the names of these adapters."""
    wrappers = [module for module in model.modules() if isinstance(module, AuxiliaryTrainingWrapper)]
    return [(wrapper, set(wrapper._adapters)) for wrapper in wrappers]


def check_one_whole(model: nn.Module, adapters: Sequence[str]) -> None:
    """Refuses adapters of which two save the same module.

    Raises:
        AdapterError: Names them.
    """
    for wrapper, held in whole_modules(model):
        if len(several := [name for name in adapters if name in held]) > 1:
            raise AdapterError(
                f"{several[0]!r} and {several[1]!r} both save a {type(wrapper.original_module).__name__} module whole,"
                " of which only one can act; name one of the two."
            )


def let_whole_act(model: nn.Module, adapters: Sequence[str]) -> None:
    """Makes what these adapters save act in its place, and what others save not, and none of it train."""
    for wrapper, held in whole_modules(model):
        wrapper.set_requires_grad(held, False)
        wrapper.set_adapter([name for name in adapters if name in held], inference_mode=True)


def let_act(model: nn.Module, adapters: Sequence[str]) -> None:
    """Makes just these adapters act in surgical layers and in modules that are saved whole, and none of them train."""
    let_whole_act(model, adapters)
    for layer in layers_by_name(model).values():
        if layer.merged:
            layer.unmerge()
        layer.set_adapter(list(adapters), inference_mode=True)
