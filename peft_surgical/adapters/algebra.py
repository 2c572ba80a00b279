"""The algebra of edits: scales multiply, so edits form a group, up to scales of 0.

| | Scale | Use |
|---|---|---|
| `product([a, b])` | `a * b` | two edits at once; a coordinate that one lacks counts as 1 |
| `power(a, t)` | `a ** t` | a dial: `t = 0.5` is half the edit, `0` none, `2` twice |
| `inverse(a)` | `1 / a` | takes `a` back inside a product |
| `difference(a, b)` | `a / b` | what has to be added to `b` to get `a` |

Each takes edits or adapter folders and gives an edit: `power("edit", 0.5).save("edit_half")`. Products are taken in
float32 and in order, exactly as the active adapters of a model are multiplied. What a LoRA adapter does is added, and
the power of a sum's part is a multiple: `power` takes one, too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import overload

import torch
from torch import Tensor

from ..errors import AdapterError, brief
from ..tuner.coordinates import Coordinates
from .edits import Edit, EditOrPath, ModuleScale, as_edit, check_same_base, first_known, several
from .fitting import check_same_weights
from .lineage import Lineage
from .low_rank import LowRank
from .mergeable import Mergeable, read_mergeable


def product(edits: EditOrPath | Iterable[EditOrPath]) -> Edit:
    """Multiplies edits, coordinate by coordinate; one that an edit lacks counts as 1.

    Args:
        edits: Edits or adapter folders, in the order in which they would be active.

    Returns:
        One edit with all their coordinates.

    Raises:
        AdapterError: If there are none, they were made for different base models, two of them scale different sides
            or different widths of one module, or a product is not finite.
    """
    given: list[EditOrPath] = several(edits)
    loaded = [as_edit(edit) for edit in given]
    if not loaded:
        raise AdapterError("there is nothing to multiply; give at least one adapter.")
    check_same_base(loaded)
    modules: dict[str, ModuleScale] = {}
    origin: dict[str, str] = {}
    for edit in loaded:
        for name, module in edit.modules.items():
            if name in modules:
                _check_same_module(name, (origin[name], modules[name]), (edit.name, module))
                modules[name] = _times(modules[name], module)
            else:
                modules[name], origin[name] = module, edit.name
    base_weights: dict[str, Tensor] = {}
    for edit in loaded:
        check_same_weights(edit.name, edit.base_weights, {**edit.base_weights, **base_weights}, "another adapter")
        base_weights |= edit.base_weights
    name = " * ".join(e.name for e in loaded)
    _check_finite(name, modules)
    return Edit(
        modules,
        base_model=first_known(e.base_model for e in loaded),
        revision=first_known(e.revision for e in loaded),
        fan_in_fan_out=any(e.fan_in_fan_out for e in loaded),
        task_type=first_known(e.task_type for e in loaded),
        auto_mapping=first_known(e.auto_mapping for e in loaded),
        name=name,
        lineage=Lineage.of_product([e.origin() for e in loaded]),
        base_weights=base_weights,
    )


@overload
def power(edit: Edit, t: float | int) -> Edit: ...
@overload
def power(edit: LowRank, t: float | int) -> LowRank: ...
@overload
def power(edit: Mergeable, t: float | int) -> Edit | LowRank: ...
def power(edit: Mergeable, t: float | int) -> Edit | LowRank:
    """Raises every scale to a power, or multiplies what a LoRA adapter adds: a dial that turns an edit down or up.

    Args:
        edit: An edit, a plain LoRA adapter that was read, or the folder of either.
        t: 1 is the edit as it is, 0 no edit, 0.5 half of it, -1 its inverse.

    Returns:
        What it was given, turned: an edit of scales, or a LoRA adapter.

    Raises:
        AdapterError: If a scale of 0 would have to be inverted, a negative one has no such power, a power or a
            multiple is too large for float32, `t` is no finite number, or the adapter is of another kind.
    """
    given = t
    try:
        t = float(t)
    except (TypeError, ValueError, OverflowError):
        t = math.nan
    if not math.isfinite(t):
        raise AdapterError(f"the power of an edit must be a finite number, got {brief(given)}.")
    read = read_mergeable(edit)
    return read.times(t) if isinstance(read, LowRank) else _power(read, t)


def _power(edit: Edit, t: float) -> Edit:
    """The power of an edit of scales."""
    modules = {}
    for key, module in edit.modules.items():
        if t < 0 and (module.scale == 0).any():
            raise AdapterError(f"{edit.name} scales {key} by 0 somewhere, which no power below 0 can undo.")
        if not t.is_integer() and (module.scale < 0).any():
            raise AdapterError(
                f"{edit.name} scales {key} by a negative number, which has no power {t!r}; whole powers are possible."
            )
        # float64 keeps the identities power(a, 1) == a and power(a, -1) == 1 / a exact in float32.
        modules[key] = replace(module, scale=module.scale.double().pow(t).to(torch.float32))
    name = f"({edit.name}) ** {t:g}"
    _check_finite(name, modules)
    return replace(edit, modules=modules, name=name, lineage=edit.origin().dialled(t))


def inverse(edit: EditOrPath) -> Edit:
    """Gives the edit that takes `edit` back when the two are multiplied, to within one rounding of float32.

    Raises:
        AdapterError: If a scale is 0.
    """
    return _power(as_edit(edit), -1.0)


def difference(a: EditOrPath, b: EditOrPath) -> Edit:
    """Gives the edit that leads from `b` to `a`: `product([b, difference(a, b)])` is `a`, to within a rounding of
    float32.

    Raises:
        AdapterError: If a scale of `b` is 0, or the two cannot be multiplied.
    """
    b = as_edit(b)
    found = product([a, inverse(b)])
    return replace(found, lineage=found.lineage.without(b.origin()))


def _check_finite(name: str, modules: Mapping[str, ModuleScale]) -> None:
    if wrong := next((key for key, module in modules.items() if not torch.isfinite(module.scale).all()), None):
        raise AdapterError(f"{name} scales {wrong} by more than float32 can hold.")


def _times(a: ModuleScale, b: ModuleScale) -> ModuleScale:
    width = a.width if a.width is not None else b.width
    if a.coordinates == b.coordinates:
        return ModuleScale(a.coordinates, a.scale * b.scale, width)
    coordinates = Coordinates.union(a.coordinates.side, a.coordinates.ranges + b.coordinates.ranges)
    dense = a.dense(coordinates.stop) * b.dense(coordinates.stop)
    return ModuleScale(coordinates, dense[coordinates.index()], width)


def _check_same_module(name: str, a: tuple[str, ModuleScale], b: tuple[str, ModuleScale]) -> None:
    (first, left), (second, right) = a, b
    if left.coordinates.side != right.coordinates.side:
        raise AdapterError(
            f"{name} cannot be scaled on both sides: {first} scales its {left.coordinates.side}, {second} its"
            f" {right.coordinates.side}."
        )
    if None not in (left.width, right.width) and left.width != right.width:
        raise AdapterError(f"{name} has {left.width} features in {first} and {right.width} in {second}.")
