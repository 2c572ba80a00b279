"""Which components an edit may scale: chosen from scores, written by hand, kept as JSON.

>>> from peft_surgical.selection import Selection
>>> Selection.from_components("L16.mlp", "L20.head.3").components
('L16.mlp', 'L20.head.3')
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .counts import whole
from .errors import NoneFitsError, SelectionError, brief
from .ranges import Ranges, checked_neurons
from .sites import (
    DEFAULT_PROJECTIONS,
    HEAD_PROJECTIONS,
    MLP_INPUT,
    MLP_PROJECTIONS,
    PROJECTIONS,
    Component,
    ModelShape,
    Slice,
    check_component,
    check_projections,
    projection_slices,
)
from .writing.files import read_json, why_unread, write_json

_KEYS = ("components", "shape", "neurons")
_RECORDED = ("granularity", "scales", "faithfulness")
"""What a report says of its selection besides: how it was used and what it carries, which is not part of it."""


@dataclass(frozen=True)
class Selection:
    """Components, best first, and for some MLPs the neurons inside.

    Attributes:
        components: Names such as `"L16.mlp"` and `"L20.head.3"`, best first, none twice.
        shape: The model's sizes, when known. A selection made by hand has none: the tuner then checks it against the
            model that it is put on.
        neurons: For the MLPs of which only some neurons are meant, their index ranges `(start, stop)`, ascending.

    Raises:
        SelectionError: For no component at all, one that is malformed, repeated or not in a model of this shape, or
            neuron ranges that are malformed, not ascending or not of a selected MLP.
    """

    components: tuple[str, ...]
    shape: ModelShape | None = None
    neurons: Mapping[str, Ranges] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.components, str):
            raise SelectionError(f"a selection's components must be a list of names, not {brief(self.components)}.")
        # A generator would be used up by the checks below.
        object.__setattr__(self, "components", () if self.components is None else tuple(self.components))
        if not self.components:
            raise SelectionError("a selection needs at least one component.")
        seen: set[str] = set()
        for name in self.components:
            component = Component.parse(name)
            if name in seen:
                raise SelectionError(f"{name} is selected twice.")
            seen.add(name)
            if self.shape is not None:
                check_component(self.shape, component)
        if self.neurons is not None:
            width = None if self.shape is None else self.shape.d_mlp
            object.__setattr__(self, "neurons", checked_neurons(self.neurons, seen, width))

    def __hash__(self) -> int:
        return hash((self.components, self.shape, tuple(sorted((self.neurons or {}).items()))))

    @classmethod
    def from_components(cls, *names: str, shape: ModelShape | None = None) -> Selection:
        """Select by hand.

        Args:
            *names: `L<layer>.mlp` or `L<layer>.head.<index>`, best first.
            shape: The model's sizes, to have the names checked at once.

        Raises:
            SelectionError: For a malformed or repeated name, or one that the model does not have.
        """
        return cls(tuple(names), shape)

    @property
    def heads(self) -> tuple[str, ...]:
        """The selected heads, best first."""
        return tuple(name for name in self.components if ".head." in name)

    @property
    def mlps(self) -> tuple[str, ...]:
        """The selected MLPs, best first."""
        return tuple(name for name in self.components if name.endswith(".mlp"))

    def check(self, shape: ModelShape) -> None:
        """Refuse a model that this selection is not of.

        Args:
            shape: The model's sizes.

        Raises:
            SelectionError: When the selection was made on a model of other sizes, or the model lacks a component or a
                neuron of it.
        """
        if self.shape is not None and self.shape != shape:
            pairs = zip(self.shape.to_dict().items(), shape.to_dict().values(), strict=True)
            differ = "; ".join(f"{name} {mine}, not {other}" for (name, mine), other in pairs if mine != other)
            raise SelectionError(
                f"the selection was made on another model ({differ}); without its shape it is names alone."
            )
        Selection(self.components, shape, self.neurons)

    def to_dict(self) -> dict[str, Any]:
        """The selection as JSON."""
        return {
            "components": list(self.components),
            "shape": None if self.shape is None else self.shape.to_dict(),
            "neurons": None
            if self.neurons is None
            else {name: [list(pair) for pair in ranges] for name, ranges in self.neurons.items()},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Selection:
        """What `to_dict` gave, or a person wrote: only `components` must be there.

        Args:
            data: The JSON. What a report's `selection` says besides (`granularity`, `scales`, `faithfulness`) is
                passed over.

        Raises:
            SelectionError: For an unknown key or a malformed value.
        """
        if not isinstance(data, Mapping) or set(data) - {*_KEYS, *_RECORDED}:
            raise SelectionError(f"a selection has the keys components, shape and neurons, not {brief(data)}.")
        names, shape, neurons = data.get("components"), data.get("shape"), data.get("neurons")
        if not isinstance(names, Sequence) or isinstance(names, str):
            raise SelectionError(f"a selection's components must be a list of names, not {brief(names)}.")
        return cls(tuple(names), None if shape is None else ModelShape.from_dict(shape), neurons)

    def save(self, path: str | Path) -> None:
        """Write the selection as JSON, for a person to read and edit.

        Raises:
            OutputError: When its folder does not exist or cannot be written.
        """
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> Selection:
        """Read what `save` wrote, or the selection in a `localization.json` or `report.json`.

        Raises:
            SelectionError: When the file is missing or holds no selection.
        """
        try:
            data = read_json(path)
        except (OSError, ValueError) as error:
            raise SelectionError(f"{path} cannot be read as a selection: {why_unread(error)}.") from error
        if isinstance(data, Mapping) and ("scores" in data or "stages" in data) and not data.get("selection"):
            kind = "localization" if "scores" in data else "report"
            raise SelectionError(f"{path} is a {kind} that holds no selection; give one that does, or names by hand.")
        if isinstance(data, Mapping) and "selection" in data:
            data = data["selection"]
        try:
            return cls.from_dict(data)
        except SelectionError as error:
            raise SelectionError(f"{path}: {error}") from error


PAPER_SELECTION = Selection.from_components("L18.mlp", "L16.mlp", "L23.mlp", "L22.head.28", "L20.head.26")
"""What arXiv 2508.07075 chose in Phi-3-mini; with whole modules (`granularity="module"`) these are its ten modules."""


def select(
    scores: Mapping[str, float],
    shape: ModelShape,
    k: int | None = None,
    *,
    heads: int | None = None,
    mlps: int | None = None,
    budget: int | None = None,
    threshold: float | None = None,
    projections: Sequence[str] = DEFAULT_PROJECTIONS,
    neurons: int | None = None,
    tie_break: Callable[[str], Any] | None = None,
) -> Selection:
    """Take the best-scored components until every given limit is reached.

    Args:
        scores: Component name to score; larger is better.
        shape: The model's sizes.
        k: Components at most. 10 when no limit at all is given.
        heads: Attention heads at most.
        mlps: MLPs at most. When only one of `heads` and `mlps` is given, and no `k`, the other kind is left out.
        budget: Scales at most, when heads and MLPs are scaled at `projections`: at `z` and `post`, `d_head` a head and
            `d_mlp` an MLP. A component that does not fit is passed over.
        threshold: The smallest score that is taken.
        projections: What the budget counts, see `peft_surgical.sites`; one alone may be text. A component that has
            none is passed over. So it is at `k` and `v` alone with all heads but the best of those that read the same
            keys and values, which are scaled once.
        neurons: The budget counts only so many neurons of each MLP.
        tie_break: A sort key for components of equal score; their order in `scores` otherwise.

    Raises:
        SelectionError: When there are no scores, a limit is negative or no number, there are no projections, one is
            not known or they are no names, or nothing is left.
    """
    if not scores:
        raise SelectionError("there are no scores to choose by.")
    projections = listed(projections)
    k, heads, mlps, budget, neurons = (
        None if limit is None else checked_limit(name, limit)
        for name, limit in (("k", k), ("heads", heads), ("mlps", mlps), ("budget", budget), ("neurons", neurons))
    )
    limits = {"k": k, "heads": heads, "mlps": mlps, "budget": budget}
    if threshold is not None and not _is_finite(threshold):
        raise SelectionError(f"threshold must be a finite number, not {brief(threshold)}.")
    if threshold is None and all(limit is None for limit in limits.values()):
        k = 10
    if k is None and (heads is None) != (mlps is None):
        heads, mlps = heads or 0, mlps or 0
    left = {"head": math.inf if heads is None else heads, "mlp": math.inf if mlps is None else mlps}
    room = math.inf if budget is None else budget
    if not projections:
        raise SelectionError(f"there are no projections to scale at; give some of {', '.join(PROJECTIONS)}.")
    check_projections(projections)
    cost = {kind: n_scales(shape, kind, projections, neurons) for kind in ("head", "mlp")}
    shared = [projection for projection in ("k", "v") if projection in projections]
    chosen: list[str] = []
    paid: set[Slice] = set()
    for name in ranked(scores, tie_break):
        component = Component.parse(name)
        kind = component.kind
        if (k is not None and len(chosen) >= k) or (threshold is not None and scores[name] < threshold):
            break
        # Heads of one group read the same keys and values, which are scaled once.
        slices = {projection_slices(shape, component, p) for p in shared} if kind == "head" else set()
        here = cost[kind] - shape.d_head * len(slices & paid)
        if left[kind] < 1 or not 0 < here <= room:
            continue
        chosen.append(name)
        left[kind] -= 1
        room -= here
        paid |= slices
    if not chosen:
        given = {name: value for name, value in {**limits, "threshold": threshold}.items() if value is not None}
        kinds = {Component.parse(name).kind for name in scores}
        absent = [kind for kind, limit in (("head", heads), ("mlp", mlps)) if limit and kind not in kinds]
        if absent:
            words = {"head": "no heads", "mlp": "no MLPs"}
            raise NoneFitsError(f": the scorer scored {words[absent[0]]}.", given)
        if not any(cost[kind] for kind in kinds):
            where = "+".join(sorted(projections))
            raise SelectionError(f"nothing that was scored has scales at {where}; choose other projections.")
        wanted = [kind for kind in sorted(kinds) if cost[kind] and left[kind] >= 1]
        if budget is not None and wanted and all(cost[kind] > budget for kind in wanted):
            words = {"head": "a head takes", "mlp": "an MLP takes"}
            needed = " and ".join(f"{words[kind]} {cost[kind]}" for kind in wanted)
            raise NoneFitsError(f": {needed} scales here.", given)
        raise NoneFitsError(f"; the best score is {max(scores.values()):.4g}.", given)
    return Selection(tuple(chosen), shape)


def listed(projections: Any) -> tuple[str, ...]:
    """Projections as a tuple of names; one alone may be text.

    Raises:
        SelectionError: If they are no list of names.
    """
    names = (projections,) if isinstance(projections, str) else projections
    # A generator would be used up by the check.
    found = tuple(names) if isinstance(names, Iterable) else None
    if found is None or not all(isinstance(name, str) for name in found):
        raise SelectionError(f"projections must be a list of names, got {brief(projections)}.")
    return found


def checked_limit(name: str, limit: object) -> int:
    """A count of what is taken at most, as Python's own number.

    Args:
        name: What it is called, for the message.
        limit: The count.

    Raises:
        SelectionError: If it is no whole number of at least 0.
    """
    found = whole(limit)
    if found is None or found < 0:
        raise SelectionError(f"{name} must be a whole number of at least 0, not {brief(limit)}.")
    return found


def sure_components(
    selection: Selection | None,
    *,
    top: int | None = None,
    heads: int | None = None,
    mlps: int | None = None,
    budget: int | None = None,
) -> tuple[str, ...]:
    """Examples of what an edit will scale whatever the scores are.

    The limits are those of [`Localization.top`]. With none of them all MLPs are scaled.

    Args:
        selection: Components chosen by hand; then there are no limits.
        top: Components at most.
        heads: Heads at most.
        mlps: MLPs at most.
        budget: Scales at most; what has none is passed over.

    Returns:
        All components of the selection; else one head if heads are sure to be scaled, and one MLP if MLPs are.
    """
    if selection is not None:
        return selection.components
    if top is None and heads is None and mlps is None and budget is None:
        return ("L0.mlp",)
    kinds = [name for name, limit in (("L0.head.0", heads), ("L0.mlp", mlps)) if limit]
    return tuple(kinds) if top is None and (budget is None or len(kinds) == 1) else ()


def with_each_kind(projections: Sequence[str], others: Sequence[str]) -> tuple[str, ...]:
    """Projections, and for heads or MLPs that have none of them those of `others`.

    Where components are chosen by these, none is passed over for having no scale at `projections`: whoever scales it
    there says so.

    Args:
        projections: Where components are scaled.
        others: Some of each kind.
    """
    missing = [kind for kind in (HEAD_PROJECTIONS, (*MLP_PROJECTIONS, MLP_INPUT)) if not {*kind} & {*projections}]
    return (*projections, *(name for kind in missing for name in others if name in kind))


def n_scales(shape: ModelShape, kind: str, projections: Iterable[str], neurons: int | None = None) -> int:
    """How many scales a `head` or an `mlp` has at these projections; those of the other kind count nothing.

    Args:
        shape: The model's sizes.
        kind: `head` or `mlp`.
        projections: Where it is scaled.
        neurons: Of an MLP, only so many neurons; all unless given.
    """
    widths = dict.fromkeys(HEAD_PROJECTIONS, shape.d_head)
    if kind == "mlp":
        of_neurons = shape.d_mlp if neurons is None else neurons
        widths = {**dict.fromkeys(MLP_PROJECTIONS, of_neurons), MLP_INPUT: shape.d_model}
    return sum(widths.get(projection, 0) for projection in set(projections))


def ranked(scores: Mapping[str, float], tie_break: Callable[[str], Any] | None = None) -> list[str]:
    """Component names by falling score; equal scores by `tie_break`, else in the order of `scores`."""
    return sorted(scores, key=lambda name: (-scores[name], tie_break(name) if tie_break else 0))


def _is_finite(number: Any) -> bool:
    try:
        return math.isfinite(number)
    except (TypeError, ValueError, OverflowError):
        return False
