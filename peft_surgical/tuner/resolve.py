"""From component names to coordinates: what `L20.head.3` and `L16.mlp` mean in a model of a given shape.

| Granularity | A head | An MLP |
|---|---|---|
| `component` | its slice of the output projection's input (`z`) | the input of the down projection (`post`) |
| `neuron` | as above | only the best neurons of the down projection's input |
| `module` | whole query, key, value and output projections | whole gate, up and down projections |

Other `projections` scale other sides of a component. `z` and `post` isolate exactly one component: with grouped
queries several heads share a value head, so the value projection cannot.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, TypeAlias, get_args

from ..errors import SelectionError, brief
from ..ranges import Range, Ranges, checked_neurons
from ..sites import (
    DEFAULT_PROJECTIONS,
    MLP_INPUT,
    MLP_PROJECTIONS,
    Component,
    ModelShape,
    Slice,
    check_component,
    module_slices,
    projection_slices,
    projections_of,
)
from .coordinates import Coordinates, Side

Granularity: TypeAlias = Literal["component", "module", "neuron"]
GRANULARITIES: tuple[Granularity, ...] = get_args(Granularity)


def resolve(
    components: Iterable[str],
    shape: ModelShape,
    granularity: str = "component",
    *,
    projections: Sequence[str] = DEFAULT_PROJECTIONS,
    neurons: Mapping[str, Sequence[Sequence[int]]] | None = None,
) -> dict[str, Coordinates]:
    """Turns component names into the coordinates of modules.

    Args:
        components: Names such as `L20.head.3` and `L16.mlp`.
        shape: The shape of the model.
        granularity: `component`, `module` or `neuron`.
        projections: Which projections of heads and MLPs are scaled; at least one for each kind of component given.
        neurons: MLP component name -> ranges of its neurons, for the MLPs of which only some are meant; the
            granularity `neuron` needs them for every MLP.

    Returns:
        Module name -> coordinates; slices of one module are united.

    Raises:
        SelectionError: If the model does not have a component or a neuron, a projection is unknown, neurons are given
            for the granularity `module` or for no MLP of `components`, or one module would be scaled on both sides.
    """
    check_granularity(granularity, neurons)
    components = list(components)
    chosen = checked_neurons(neurons or {}, components, shape.d_mlp)
    slices: list[tuple[str, Slice]] = []
    for name in components:
        component = Component.parse(name)
        check_component(shape, component)
        if granularity == "module":
            found: Iterable[Slice] = module_slices(shape, component)
        else:
            found = _projected(component, shape, projections, chosen, required=granularity == "neuron")
        slices.extend((name, piece) for piece in found)
    return _unite(slices)


def check_granularity(granularity: str, neurons: object) -> None:
    """Refuses a granularity that there is not, and neurons where whole modules are scaled, which would scale all.

    Args:
        granularity: `component`, `module` or `neuron`.
        neurons: Which, or how many, are chosen, if any.

    Raises:
        SelectionError: If it is none of these, or some are and it is `module`.
    """
    if granularity not in GRANULARITIES:
        raise SelectionError(f"the granularity must be one of {', '.join(GRANULARITIES)}, got {brief(granularity)}.")
    if granularity == "module" and neurons:
        raise SelectionError(
            "the granularity 'module' scales whole modules, and neurons are chosen; take the granularity 'neuron', or"
            " leave neurons out."
        )


def check_has_neurons(mlp: str, projections: Iterable[str]) -> None:
    """Refuses to scale only some neurons where there are none.

    Args:
        mlp: What the neurons are of, in words.
        projections: Where they are to be scaled.

    Raises:
        SelectionError: If one is `in`.
    """
    if MLP_INPUT in projections:
        raise SelectionError(
            f"the projection 'in' of {mlp} is the residual stream, which has no neurons; choose from"
            f" {', '.join(MLP_PROJECTIONS)} to scale only some neurons."
        )


def _projected(
    component: Component,
    shape: ModelShape,
    projections: Sequence[str],
    neurons: Mapping[str, Ranges],
    *,
    required: bool,
) -> Iterable[Slice]:
    for projection in projections_of(component, projections):
        whole = projection_slices(shape, component, projection)
        ranges = neurons.get(str(component))
        if not ranges:
            if required and component.kind == "mlp":
                raise SelectionError(f"the granularity 'neuron' needs the neurons of {component}, and none are given.")
            yield whole
            continue
        check_has_neurons(str(component), [projection])
        for start, stop in ranges:
            yield whole._replace(start=whole.start + start, stop=whole.start + stop)


def _unite(slices: Iterable[tuple[str, Slice]]) -> dict[str, Coordinates]:
    found: dict[str, tuple[Side, str, list[Range]]] = {}
    for name, piece in slices:
        side, first, ranges = found.setdefault(piece.module, (piece.side, name, []))
        if side != piece.side:
            raise SelectionError(
                f"{piece.module} cannot be scaled on both sides: {first} needs its {side}, {name} its {piece.side};"
                " choose other projections."
            )
        ranges.append((piece.start, piece.stop))
    return {module: Coordinates.union(side, ranges) for module, (side, _, ranges) in found.items()}
