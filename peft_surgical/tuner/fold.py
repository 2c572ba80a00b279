"""Folding scales into a weight: in float32, rounded to the weight's dtype once, only on the selected rows or columns.

A scale on the input side multiplies columns of a weight stored as (out, in), one on the output side multiplies rows
and the bias.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers.pytorch_utils import Conv1D

from ..dtypes import dtype_name
from ..errors import AdapterError
from .coordinates import Coordinates, Side
from .offloading import execution_device

LOSS_WORTH_A_WARNING = 0.01


@dataclass
class Rounding:
    """How much of an edit survived the rounding of the weights.

    Args:
        touched: Weights that the edit makes other numbers of, in float32 at least, so that they should change.
        unchanged: Those of them that came out of the rounding as they were.
    """

    touched: int = 0
    unchanged: int = 0

    @classmethod
    def of(cls, old: Tensor, exact: Tensor, new: Tensor) -> Rounding:
        """What became of a weight, or a part of one.

        Args:
            old: As it was.
            exact: What an edit makes of it, in float32 at least.
            new: That, rounded.
        """
        touched = exact != old
        # Against what is there without the edit, in the same dtype.
        return cls(int(touched.sum()), int((touched & (new == old.to(new.dtype))).sum()))

    def warn(
        self,
        dtype: torch.dtype,
        stacklevel: int = 2,
        *,
        before: str = "the merge loses part of the edit to rounding: ",
        weights: str = "the weights that should change",
        after: str = "; merge in float32 to keep it.",
    ) -> None:
        """Warns if more than one weight in a hundred kept its value although it should have changed.

        Args:
            dtype: Of the weights.
            stacklevel: Whose line the warning names, as `warnings.warn` counts them from here.
            before: What the warning begins with.
            weights: What it calls those that should change.
            after: What follows from it, and what would help.
        """
        if self.unchanged > LOSS_WORTH_A_WARNING * self.touched:
            share = 100 * self.unchanged / self.touched
            warnings.warn(
                f"{before}{share:.1f}% of {weights} stay as they were in {dtype_name(dtype)}{after}",
                stacklevel=stacklevel,
            )

    @classmethod
    def total(cls, parts: Iterable[Rounding]) -> Rounding:
        """The sum over several weights."""
        parts = list(parts)
        return cls(sum(p.touched for p in parts), sum(p.unchanged for p in parts))


def features(module: nn.Module, side: Side) -> int | None:
    """Returns the width of a linear module's input or output, or None if the module is not linear."""
    if isinstance(module, nn.Linear):
        return module.in_features if side == "input" else module.out_features
    if isinstance(module, Conv1D):
        return int(module.nx if side == "input" else module.nf)
    return None


def fold(
    values: Float[Tensor, "*shape"],
    index: Int[Tensor, " selected"],
    scale: Float[Tensor, " selected"],
    axis: int,
    dtype: torch.dtype | None = None,
) -> tuple[Float[Tensor, "*slices"], Float[Tensor, "*slices"], Rounding]:
    """Multiplies the selected slices of a weight or bias.

    Args:
        values: The weight or bias; not changed.
        index: Which slices along `axis`.
        scale: One factor per slice, in float32.
        axis: The axis that `index` counts along.
        dtype: Of the result; that of `values` by default.

    Returns:
        The slices alone, stacked along `axis`, as they are and as they become; and what the rounding kept.
    """
    old = values.index_select(axis, index)
    shape = [1] * values.ndim
    shape[axis] = -1
    factor = scale.to(values.device).view(shape)
    exact = old * factor
    new = exact.to(dtype or values.dtype)
    # What has no numbers loses none.
    return old, new, Rounding() if values.is_meta else Rounding.of(old, exact, new)


def scaled_tensors(module: nn.Module, side: Side) -> dict[str, int]:
    """Returns what a scale on this side multiplies: `weight`, and `bias` on the output side, with the axis of each."""
    axis = 1 if side == "input" else 0
    tensors = {"weight": 1 - axis if isinstance(module, Conv1D) else axis}
    if side == "output" and getattr(module, "bias", None) is not None:
        tensors["bias"] = 0
    return tensors


def is_wrapper(tensor: Tensor) -> bool:
    """Whether a tensor is made of others, as those of quanto, torchao and FSDP2 are: what is written into it may be
    lost, whatever dtype it says it has."""
    return bool(is_traceable_wrapper_subclass(tensor))


def check_foldable(module: nn.Module, side: Side) -> None:
    """Refuses a module whose weights cannot be multiplied in place.

    Args:
        module: A linear module.
        side: Which of its sides is scaled.

    Raises:
        AdapterError: If they hold steps of a grid instead of numbers, are made of other tensors, or are computed anew
            from others whenever the module runs.
    """
    for name in scaled_tensors(module, side):
        tensor = module._parameters.get(name)
        if tensor is None:
            raise AdapterError(
                f"the {name} of a {type(module).__name__} is computed from other parameters whenever it runs, so an"
                " edit of it would be lost; remove its parametrization to merge."
            )
        if is_wrapper(tensor):
            raise AdapterError(
                f"weights of a kind that cannot be rewritten in place: {type(tensor).__name__}; load the model whole"
                " and in bfloat16 or float32 to merge."
            )
        if not tensor.is_floating_point() or tensor.element_size() < 2:
            raise AdapterError(
                f"a quantized weight ({dtype_name(tensor.dtype)}) cannot take an edit; load the model"
                " in bfloat16 or float32 to merge."
            )


@dataclass
class Folded:
    """What is needed to take scales out of a module's weights again, exactly.

    Args:
        axes: Tensor name -> the axis that was scaled.
        before: Tensor name -> the slices that were there.
        index: Which slices.
        rounding: What the rounding kept.
    """

    axes: dict[str, int]
    before: dict[str, Tensor]
    index: Int[Tensor, " selected"]
    rounding: Rounding

    @classmethod
    def of(
        cls,
        module: nn.Module,
        coordinates: Coordinates,
        scale: Float[Tensor, " selected"],
        *,
        safe_for: str | None,
    ) -> tuple[Folded, dict[str, Tensor]]:
        """Folds scales into a copy of a module's own weights.

        Args:
            module: A linear module; not changed.
            coordinates: Its side and coordinates.
            scale: One factor per coordinate.
            safe_for: Refuse a result that is not finite, and blame this adapter; not when None.

        Returns:
            What takes them out again, and tensor name -> the slices that are to be written.

        Raises:
            AdapterError: If the weights cannot be multiplied in place, see [`check_foldable`], or are offloaded, or
                `safe_for` is given and a value is not finite.
        """
        check_foldable(module, coordinates.side)
        weight: Any = module.weight
        if weight.is_meta and execution_device(module) is not None:
            raise AdapterError(f"the weight of a {type(module).__name__} is offloaded; bring it to memory to merge.")
        axes, index = scaled_tensors(module, coordinates.side), coordinates.index(weight.device)
        folded = {name: fold(getattr(module, name).data, index, scale, axis) for name, axis in axes.items()}
        before = {name: old for name, (old, _, _) in folded.items()}
        if safe_for is not None:
            for name, (_, values, _) in folded.items():
                _check_finite(name, values, before[name], scale, safe_for)
        done = cls(axes, before, index, Rounding.total(rounding for *_, rounding in folded.values()))
        return done, {name: values for name, (_, values, _) in folded.items()}

    def write(self, module: nn.Module, slices: Mapping[str, Tensor]) -> None:
        """Writes what was folded into the weights.

        Args:
            module: The same module; changed.
            slices: What [`of`] gave.

        Raises:
            AdapterError: If the weights do not hold what was written into them. They are as they were then, as they
                are after any other error.
        """
        try:
            for name, axis in self.axes.items():
                values = slices[name]
                getattr(module, name).data.index_copy_(axis, self.index, values)
                there = getattr(module, name).data.index_select(axis, self.index)
                if not there.is_meta and not bool(((there == values) | (there.isnan() & values.isnan())).all()):
                    raise AdapterError(
                        f"the {name} of a {type(module).__name__} does not hold what is written into it, so an edit of"
                        " it cannot be merged."
                    )
        except BaseException:
            self.restore(module)
            raise

    def restore(self, module: nn.Module) -> None:
        """Puts the very values back that were there before."""
        for name, values in self.before.items():
            tensor = getattr(module, name).data
            tensor.index_copy_(self.axes[name], self.index.to(tensor.device), values.to(tensor.device, tensor.dtype))


def _check_finite(name: str, values: Tensor, before: Tensor, scale: Tensor, adapter: str) -> None:
    if values.is_meta or torch.isfinite(values).all():
        return
    if not torch.isfinite(scale).all():
        why = f"the adapter {adapter} has scales that are not finite"
    elif not torch.isfinite(before).all():
        why = f"the {name} is not finite without an adapter either"
    else:
        dtype = dtype_name(values.dtype)
        why = f"the {name} does not fit into {dtype}; merge in float32, or edit less"
    # As PEFT says it, which people look for.
    raise AdapterError(f"NaNs detected in the merged weights: {why}.")
