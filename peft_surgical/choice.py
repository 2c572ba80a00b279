"""What an edit scales: what is refused before anything is localized, and what is chosen by the scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from .errors import NoneFitsError, SelectionError, brief
from .facts import Fact
from .localizing.results import Localization
from .localizing.specs import read_scorers
from .selection import Selection, sure_components, with_each_kind
from .sites import ModelShape, check_projections
from .tuner import SurgicalIA3Config
from .tuner.resolve import Granularity, check_granularity, check_has_neurons

EDIT_PROJECTIONS = ("z", "in")
"""An MLP is scaled at what its up projection reads, not at its neurons: a coordinate of the residual stream goes into
all neurons, so fewer scales reach as many wordings of a fact, at no more cost to others
(docs/measurements/scales.md)."""

NEURON_PROJECTIONS = ("z", "post", "pre")
"""Where only some neurons are meant: behind their activation function and before it, which act on different tokens."""


def check_choice(
    selection: Selection | None,
    granularity: Granularity,
    neurons: int | None,
    projections: Sequence[str] | None = None,
    *,
    top: int | None,
    heads: int | None,
    mlps: int | None,
    budget: int | None,
) -> None:
    """What can be told without a model of what [`edit`] is to scale.

    Raises:
        SelectionError: If some of its arguments exclude each other, or name what there is not.
    """
    if selection is not None and not isinstance(selection, Selection):
        raise SelectionError(
            f"a selection must be a Selection, such as Selection.from_components gives, not {brief(selection)}."
        )
    chosen = selection is not None and selection.neurons is not None
    if chosen and neurons is not None:
        raise SelectionError(f"the selection has neurons of its own, so none are to be chosen; got {neurons}.")
    if (granularity == "neuron") != (neurons is not None) and not chosen:
        raise SelectionError(
            f"the granularity 'neuron' and a number of neurons go together; got {granularity!r} and {neurons}."
        )
    if selection is not None and any(limit is not None for limit in (top, heads, mlps, budget)):
        raise SelectionError("a selection and top, heads, mlps or budget exclude each other.")
    check_granularity(granularity, chosen)
    check_projections(projections or ())
    if budget is not None and granularity == "module":
        raise SelectionError("a budget and the granularity 'module' exclude each other: components share modules.")
    only_heads = heads is not None and top is None and mlps is None
    if neurons is not None and (only_heads if selection is None else not selection.mlps):
        raise SelectionError("no MLP is selected, and only MLPs have neurons.")
    some = {} if selection is None else dict(selection.neurons or {})
    if some or neurons is not None:
        sure = sure_components(selection, top=top, heads=heads, mlps=mlps, budget=budget)
        of = (name for name in sure if (name in some if some else name.endswith(".mlp")))
        # Of which MLPs they will be, only the scores may tell.
        check_has_neurons(next(of, "an MLP"), projections or ())


def check_places(
    model: Any,
    sure: Selection,
    granularity: Granularity,
    neurons: int | None,
    projections: Sequence[str],
) -> None:
    """Refuses projections at which what will be scaled in any case cannot be.

    Args:
        model: The model.
        sure: The components that will be scaled, whatever the scores.
        granularity: See [`SurgicalIA3Config`].
        neurons: How many of each MLP's neurons, if that is given.
        projections: Where.

    Raises:
        SelectionError: If one of them cannot be scaled there.
        ArchitectureError: If the model's architecture is not known.
    """
    # Which neurons will be chosen is not known yet, and they are where their whole MLP is.
    config = SurgicalIA3Config.from_localization(
        sure, granularity=granularity if neurons is None else "component", projections=projections
    )
    config.resolve(model.config)


def ranked(localization: Localization, model: Any, fact: Fact, scorers: Sequence[str] | None) -> Localization:
    """An earlier localization, ranked by the first of `scorers`.

    Args:
        localization: What localizing gave.
        model: The model.
        fact: The fact.
        scorers: Scorers, of which the first is to rank; the localization's own order when None.

    Raises:
        SelectionError: If it is none, is of another model or another fact, or has no scores by that scorer.
        ScorerError: If `scorers` are no names of installed ones.
    """
    if not isinstance(localization, Localization):
        raise SelectionError(f"a localization must be one that localize gave, not {brief(localization)}.")
    if localization.shape != ModelShape.from_config(model.config):
        raise SelectionError("the localization was made on a model of other sizes; localize this one.")
    if localization.subject != fact.subject:
        raise SelectionError(
            f"the localization is of {brief(localization.subject)}, and the fact of {brief(fact.subject)}; localize"
            " this fact, or give what to scale as a selection."
        )
    if scorers is None:
        return localization
    first = read_scorers(scorers)[0].text
    if first not in localization.tables and first not in localization.errors:
        raise SelectionError(
            f"the localization has no scores by {first!r}, only by {', '.join(localization.tables)}; localize with it,"
            " or rank by one of these."
        )
    return replace(localization, scorers=tuple(dict.fromkeys((first, *localization.scorers))))


def choose(
    localization: Localization,
    selection: Selection | None,
    *,
    granularity: Granularity,
    neurons: int | None,
    projections: Sequence[str],
    top: int | None,
    heads: int | None,
    mlps: int | None,
    budget: int | None,
) -> Selection:
    """The components, and the neurons if there are to be some, that an edit scales.

    Args:
        localization: The scores, of which the first scorer's rank.
        selection: What is scaled, if that is given; then only neurons are chosen.
        granularity: As for [`edit`].
        neurons: As for [`edit`].
        projections: As for [`edit`].
        top: As for [`edit`]; the MLPs of all layers where there is no limit.
        heads: As for [`edit`].
        mlps: As for [`edit`].
        budget: As for [`edit`].

    Raises:
        SelectionError: If nothing is within the limits, the scorer that ranks failed, or no MLP is there to choose
            neurons of.
    """
    if selection is None:
        if (ranking := localization.scorers[0]) in localization.errors:
            raise SelectionError(
                f"the scorer {ranking!r} failed, so nothing ranks the components; name another first."
            )
        # Without a budget nothing is passed over: a component without a scale there is refused further down.
        scaled = EDIT_PROJECTIONS if granularity == "module" else projections
        counted = with_each_kind(scaled, EDIT_PROJECTIONS) if budget is None else projections
        if top is heads is mlps is budget is None:
            mlps = localization.shape.n_layers
        try:
            selection = localization.top(
                top, heads=heads, mlps=mlps, budget=budget, neurons=neurons, projections=counted
            )
        except NoneFitsError as error:
            raise error.naming(k="top") from None
    elif neurons is not None:
        selection = localization.best_neurons(selection, neurons)
    if neurons is not None and not selection.mlps:
        raise SelectionError(f"no MLP is selected ({', '.join(selection.components)}), and only MLPs have neurons.")
    return selection
