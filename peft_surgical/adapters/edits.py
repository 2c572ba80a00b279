"""An edit apart from any model: which coordinates of which modules are multiplied by what.

    >>> edit = Edit.load("unlearn")               # a surgical adapter folder, or a plain (IA)^3 one
    >>> edit.modules["model.layers.3.mlp.down_proj"].scale
    tensor([1.0213, 0.9874, ...])

Everything that is done to adapters outside of a model (stack, power, inverse, export, merge) takes and gives edits.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeAlias, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import AdapterError, brief
from ..tuner.config import SurgicalIA3Config
from ..tuner.coordinates import Coordinates
from ..tuner.scaling import spread
from .bases import same_model
from .lineage import Lineage
from .scale_files import digest_of

Given = TypeVar("Given")


@dataclass(frozen=True, eq=False)
class ModuleScale:
    """The factors on one module.

    Args:
        coordinates: The side of the module and the coordinates that are multiplied.
        scale: One float32 factor per coordinate, on the CPU.
        width: How many coordinates that side of the module has, if known.
    """

    coordinates: Coordinates
    scale: Float[Tensor, " selected"]
    width: int | None = None

    def __eq__(self, other: object) -> bool:
        """Whether another one multiplies the same coordinates by the same numbers."""
        if not isinstance(other, ModuleScale):
            return NotImplemented
        same = (self.coordinates, self.width) == (other.coordinates, other.width)
        return same and torch.equal(self.scale, other.scale)

    def dense(self, width: int) -> Float[Tensor, " width"]:
        """Returns the factors on all of `width` coordinates, 1 where nothing is selected."""
        return spread(self.scale, self.coordinates.index(), width)


@dataclass(frozen=True)
class Edit:
    """Factors on coordinates of modules, and the model they are meant for.

    Args:
        modules: Full module name -> its `coordinates` (a side and index ranges), a float32 `scale` for each of them,
            `[selected]`, and the `width` of that side, if known.
        base_model: Name or path of the base model, if known.
        revision: Its revision, if known.
        fan_in_fan_out: Whether a module stores its weight as (in, out), as GPT-2's do.
        task_type: PEFT's task type, if known.
        auto_mapping: The class of the base model, by which PEFT finds it where there is no task type, if known.
        name: What messages call it.
        lineage: What it comes from, as the file that it was read from says; kept where it is written.
        base_weights: What the file that it was read from holds of the base's own weights, by their names there, as
            PEFT stores an output head beside its scales; compared in a merge, and never written.
    """

    modules: Mapping[str, ModuleScale]
    base_model: str | None = None
    revision: str | None = None
    fan_in_fan_out: bool = False
    task_type: str | None = None
    auto_mapping: Mapping[str, str] | None = None
    name: str = field(default="the edit", compare=False)
    lineage: Lineage = field(default=Lineage(), compare=False)
    base_weights: Mapping[str, Tensor] = field(default_factory=dict, compare=False)

    def __repr__(self) -> str:
        # A prompt shows what a call returned, and thousands of scales say nothing there.
        base = "" if self.base_model is None else f" of {self.base_model!r}"
        return f"Edit({self.n_scales} scales on {len(self.modules)} modules{base})"

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Edit:
        """Reads an adapter folder, surgical or plain (IA)^3, from its safetensors file.

        Raises:
            AdapterError: If the folder is missing or damaged, holds another kind of adapter, or only a pickle.
        """
        from .adapter_files import read_edit

        return read_edit(path)

    def config(self) -> SurgicalIA3Config:
        """Returns the configuration of a surgical adapter with these coordinates."""
        return SurgicalIA3Config(
            selections={name: module.coordinates.to_spec() for name, module in self.modules.items()},
            features={name: module.width for name, module in self.modules.items() if module.width is not None} or None,
            base_model_name_or_path=self.base_model,
            revision=self.revision,
            fan_in_fan_out=self.fan_in_fan_out,
            task_type=self.task_type,
            auto_mapping=None if self.auto_mapping is None else dict(self.auto_mapping),
        )

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Writes a surgical adapter folder.

        It stores `scale - 1` in float32, so a scale of 0.5 or more comes back exactly, one between -1 and 0.5 within
        6e-8.

        Args:
            path: The folder; it appears whole or not at all.
            overwrite: Replace the folder if it holds an adapter.

        Raises:
            OutputError: If it cannot be written, or holds something and may not be replaced.

        Warns:
            UserWarning: If the file that it was read from holds weights of the base, which are left out.
        """
        from .adapter_files import write_surgical

        write_surgical(self, path, overwrite=overwrite)

    def origin(self) -> Lineage:
        """What it comes from, with the digest that it would be written with where it was not read from a file."""
        from .adapter_files import surgical_tensors

        if self.lineage.digest is not None:
            return self.lineage
        return replace(self.lineage, digest=digest_of(surgical_tensors(self)))

    @property
    def n_scales(self) -> int:
        """How many coordinates are multiplied."""
        return sum(module.coordinates.n for module in self.modules.values())


EditOrPath: TypeAlias = Edit | str | os.PathLike[str]
"""An edit in memory, or the folder of an adapter."""


def several(edits: Given | Iterable[Given], kinds: tuple[type, ...] | None = None) -> list[Given]:
    """One edit or folder, or several, as a list.

    Args:
        edits: What somebody gave.
        kinds: What an adapter in memory may be; an [`Edit`] when None.

    Raises:
        AdapterError: If something is neither of a kind nor a path.
    """
    given = [edits] if isinstance(edits, (str, os.PathLike)) or not isinstance(edits, Iterable) else list(edits)
    for edit in given:
        _check_kind(edit, kinds or (Edit,))
    return given


def _check_kind(edit: object, kinds: tuple[type, ...]) -> None:
    if not isinstance(edit, (str, os.PathLike, *kinds)):
        held = " or ".join(kind.__name__ for kind in kinds)
        raise AdapterError(
            f"an adapter is a folder or what was loaded from one, not {brief(edit)}; it must be a path or {held}."
        )


def as_edit(edit: EditOrPath) -> Edit:
    """Returns the edit itself, or reads the folder that is given instead.

    Raises:
        AdapterError: If it is neither, or an edit without scales.
    """
    _check_kind(edit, (Edit,))
    edit = edit if isinstance(edit, Edit) else Edit.load(edit)
    if not edit.modules:
        raise AdapterError(f"{edit.name} holds no scales.")
    return edit


def first_known(values: Iterable[Given | None]) -> Given | None:
    """The first of what some edits say in their order of one thing, such as their base, that says anything."""
    return next(filter(None, values), None)


class _Made(Protocol):
    """What says of itself for which base it was made, of whatever kind."""

    @property
    def name(self) -> str: ...
    @property
    def base_model(self) -> str | None: ...
    @property
    def revision(self) -> str | None: ...


def check_same_base(edits: Sequence[_Made]) -> None:
    """Refuses edits that name different base models, see [`same_model`]; an edit that names none goes with any.

    Raises:
        AdapterError: If two names or two revisions differ.
    """
    alike = (("base models", "base_model", same_model), ("revisions of the base model", "revision", operator.eq))
    for what, key, same in alike:
        known = [(edit.name, getattr(edit, key)) for edit in edits if getattr(edit, key)]
        for name, value in known[1:]:
            if not same(known[0][1], value):
                raise AdapterError(
                    f"the adapters were made for different {what}: {known[0][0]} for {known[0][1]}, {name} for"
                    f" {value}."
                )
