"""Half-open index ranges `[start, stop)`, as configurations and selections write them: of what a module reads or
gives, or of an MLP's neurons."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from .counts import whole
from .errors import SelectionError, brief
from .sites import WIDEST, Component

Range: TypeAlias = tuple[int, int]
Ranges: TypeAlias = tuple[Range, ...]


def checked_ranges(of: str, ranges: Any, width: int | None = None) -> Ranges:
    """Reads the JSON form of ranges.

    Args:
        of: What they are of, for the messages.
        ranges: A list of `[start, stop]`.
        width: How much of it there is, if that is known.

    Raises:
        SelectionError: If they are not one or more sorted, disjoint, non-empty pairs of integers within `width`.
    """
    if isinstance(ranges, str) or not isinstance(ranges, Sequence) or not ranges:
        raise SelectionError(f"the ranges of {of} must be a non-empty list of [start, stop], got {brief(ranges)}.")
    previous, found = 0, []
    for pair in ranges:
        start, stop = map(whole, pair) if isinstance(pair, Sequence) and len(pair) == 2 else (None, None)
        if start is None or stop is None:
            raise SelectionError(f"a range of {of} must be two integers [start, stop], got {brief(pair)}.")
        if not 0 <= start < stop:
            raise SelectionError(f"a range of {of} must have 0 <= start < stop, got [{start}, {stop}].")
        if stop > WIDEST:
            raise SelectionError(f"a range of {of} ends at {brief(stop)}, and no module is so wide.")
        if width is not None and stop > width:
            raise SelectionError(f"[{start}, {stop}] goes beyond {of}, of which there are {width}.")
        if start < previous:
            raise SelectionError(
                f"the ranges of {of} must be sorted and must not overlap; [{start}, {stop}] begins before {previous}."
            )
        previous = stop
        found.append((start, stop))
    return tuple(found)


def checked_neurons(neurons: Any, components: Collection[str], d_mlp: int | None = None) -> dict[str, Ranges]:
    """Reads which neurons of MLPs are meant.

    Args:
        neurons: MLP -> a list of `[start, stop]`.
        components: The components that are selected.
        d_mlp: How many neurons an MLP has, if that is known.

    Raises:
        SelectionError: If it is no such mapping, some are of no selected MLP, or see [`checked_ranges`].
    """
    if not isinstance(neurons, Mapping):
        raise SelectionError(f"neurons must map MLPs to ranges, not {brief(neurons)}.")
    for name in neurons:
        if name not in components or Component.parse(name).kind != "mlp":
            raise SelectionError(f"neurons are given for {brief(name)}, which is not a selected MLP.")
    return {name: checked_ranges(f"the neurons of {name}", ranges, d_mlp) for name, ranges in neurons.items()}


def united(ranges: Iterable[Range]) -> Ranges:
    """The fewest ranges, ascending, that hold exactly what is in these, which may overlap and come in any order."""
    merged: list[Range] = []
    for start, stop in sorted(ranges):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], stop))
        else:
            merged.append((start, stop))
    return tuple(merged)


def united_index(index: Iterable[int]) -> Ranges:
    """The fewest ranges, ascending, that hold exactly these indices."""
    return united((i, i + 1) for i in index)
