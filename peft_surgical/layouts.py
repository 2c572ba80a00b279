"""Whether a model's modules are as its sizes make them: a name that fits may stand for another layout."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Literal

from torch import nn

from .errors import ArchitectureError
from .sites import MLP_INPUT, Component, ModelShape, Slice, components, module_slices, projection_slices
from .wrapped import check_uncompiled


def _widths(shape: ModelShape, component: Component) -> Iterator[tuple[Slice, str]]:
    """Every side of a module on which a component is, whole, and what makes it so wide, in words."""
    stream = f"a residual stream of {shape.d_model}"
    if component.kind == "mlp":
        yield from ((piece, f"{shape.d_mlp} neurons") for piece in module_slices(shape, component))
        yield projection_slices(shape, component, MLP_INPUT), stream
        return
    *before, out = module_slices(shape, component)
    heads = f"{shape.n_heads} heads and {shape.n_kv_heads} key/value heads of {shape.d_head}"
    yield from ((piece, heads) for piece in before)
    yield out._replace(side="input", stop=shape.n_heads * shape.d_head), f"{shape.n_heads} heads of {shape.d_head}"
    yield out, stream


def check_widths(
    shape: ModelShape, chosen: Iterable[Component], width_of: Callable[[str, Literal["input", "output"]], int | None]
) -> None:
    """Refuse modules that are not as wide as the sizes make them: they are laid out in another way.

    Args:
        shape: The model's sizes.
        chosen: Of which components.
        width_of: How wide a side of a module is, by its name; None where it does not matter.

    Raises:
        ArchitectureError: Says how wide one is, and how wide it would be.
    """
    for component in chosen:
        for piece, sizes in _widths(shape, component):
            width = width_of(piece.module, piece.side)
            if width is not None and width != piece.stop:
                raise ArchitectureError(
                    f"the {piece.side} of {piece.module} is {width} wide; {sizes} need {piece.stop}, and other layouts"
                    " are not supported."
                )


def check_layout(model: nn.Module, shape: ModelShape) -> None:
    """Refuse a model that lacks a module of its architecture, such as one with experts in place of an MLP, or has one
    that its sizes do not fit.

    Raises:
        ArchitectureError: If it does. The message names the module.
        ModelError: If the model is wrapped by torch.compile.
    """
    there = dict(model.named_modules(remove_duplicate=False))
    check_uncompiled(there)

    def width_of(name: str, side: str) -> int | None:
        if name not in there:
            raise ArchitectureError(
                f"the layout of model type {shape.model_type!r} names {name}, and this model has no such"
                " module; what differs from layer to layer and mixtures of experts are not supported."
            )
        # Of Linear and of Conv1D.
        names = ("in_features", "nx") if side == "input" else ("out_features", "nf")
        return next((getattr(there[name], of) for of in names if hasattr(there[name], of)), None)

    # The heads of a layer are in the same modules.
    check_widths(shape, (c for c in components(shape) if not c.index), width_of)
