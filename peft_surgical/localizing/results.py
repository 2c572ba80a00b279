"""What a localization found: a table of scores, component by scorer, and how it was made.

loc = Localization.load("localization.json")
loc.top(10)                       # a Selection, by the first scorer
loc.top(heads=2, mlps=3)          # quotas, as in the paper
loc.top(budget=5_000, by="attribution")
loc.top(mlps=99)                  # all MLPs of a model of fewer layers
loc.head_scores()                 # [layer, head], to plot or to compare
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from ..counts import whole
from ..errors import SelectionError, brief
from ..ranges import united_index
from ..selection import Selection, checked_limit, ranked, select
from ..sites import DEFAULT_PROJECTIONS, Component, ModelShape
from ..writing.files import read_json, why_unread, write_json
from .faithfulness import Faithfulness
from .localization_files import pack, read_localization
from .scores import SECONDS, Scores

FORMAT = 1


@dataclass(frozen=True)
class Localization:
    """Scores of every scorer for the model's components; larger means that it matters more.

    Attributes:
        model: The model's name or path.
        dtype: The model's dtype. Effects are computed in float32 all the same.
        shape: The model's sizes.
        subject: What the fact is about.
        scorers: As they were asked for, the primary one first. One that failed has no scores.
        tables: Scorer to its scores. May hold more than was asked for: what other scorers read.
        corruption: One record a prompt: how it was corrupted (`method`), with which subject (`other`), what the model
            then says (`rival`, and `rival_token`, its id), and the logit of the old answer less that of the rival
            before (`clean`) and after (`corrupted`).
        seed: What the random parts began with.
        errors: Scorer to the reason why it has no scores.
        faithfulness: What a selection carries together, where that was measured.
    """

    model: str
    dtype: str
    shape: ModelShape
    subject: str
    scorers: tuple[str, ...]
    tables: Mapping[str, Scores]
    corruption: tuple[Mapping[str, Any], ...]
    seed: int
    errors: Mapping[str, str] = field(default_factory=dict)
    faithfulness: Faithfulness | None = None

    @property
    def scores(self) -> dict[str, Mapping[str, float]]:
        """Scorer to component to score."""
        return {name: table.components for name, table in self.tables.items()}

    @property
    def seconds(self) -> float:
        """How long its scorers took, as they noted."""
        noted = (table.notes.get(SECONDS, 0.0) for table in self.tables.values())
        return float(sum(took for took in noted if isinstance(took, int | float)))

    def top(
        self,
        k: int | None = None,
        by: str | None = None,
        *,
        heads: int | None = None,
        mlps: int | None = None,
        budget: int | None = None,
        threshold: float | None = None,
        neurons: int | None = None,
        projections: Sequence[str] = DEFAULT_PROJECTIONS,
    ) -> Selection:
        """The best components, until every given limit is reached.

        Args:
            k: Components at most; 10 when no limit is given.
            by: The scorer; the primary one unless given. The others break its ties, in order.
            heads: Attention heads at most; without `mlps` and `k`, no MLPs.
            mlps: MLPs at most; without `heads` and `k`, no heads.
            budget: Scales at most, at these `projections`. A component that does not fit is passed over.
            threshold: The smallest score that is taken.
            neurons: Of each chosen MLP, only so many of its best neurons, which are then what the budget counts.
            projections: What the budget counts; give [`SurgicalIA3Config`] the same. At `k` and `v` alone, of the
                heads that read the same keys and values only the best is taken, whatever the limits are.

        Raises:
            SelectionError: When the scorer has no scores here, a limit is no number, projections are no names, or
                nothing is left.
        """
        name = self._primary(by)
        self._check_neurons(neurons)
        chosen = select(
            self.tables[name].components,
            self.shape,
            k,
            heads=heads,
            mlps=mlps,
            budget=budget,
            threshold=threshold,
            projections=projections,
            neurons=neurons,
            tie_break=self._tie_break(name),
        )
        return chosen if neurons is None else self.best_neurons(chosen, neurons, by)

    def best_neurons(self, selection: Selection, count: int, by: str | None = None) -> Selection:
        """The same components, with the best neurons of each MLP.

        Args:
            selection: Components of this model.
            count: Neurons an MLP.
            by: The scorer; unless given, the primary one if it scores neurons, else the next that does.

        Raises:
            SelectionError: When no scorer gave scores of an MLP's neurons, `count` is not between 1 and `d_mlp`, or
                what is given is no selection or has components that the model has not.
        """
        self._check_neurons(count)
        self._check_selection(selection)
        order = [self._primary(by)] if by is not None else self._in_order()
        chosen = {}
        for mlp in selection.mlps:
            scores = next((self.tables[n].neurons[mlp] for n in order if mlp in self.tables[n].neurons), None)
            if scores is None:
                have = [name for name, table in self.tables.items() if table.neurons]
                raise SelectionError(
                    f"there are no scores of the neurons of {mlp} by {by or 'any scorer'} "
                    f"(scorers with neurons here: {', '.join(have) or 'none'}; `attribution` gives them)."
                )
            best = np.argsort(-scores, kind="stable")[:count]
            chosen[mlp] = united_index(best.tolist())
        return Selection(selection.components, self.shape, chosen or None)

    def ranks(self, by: str | None = None) -> dict[str, int]:
        """Component to its rank, 1 being the best.

        Args:
            by: The scorer; the primary one unless given.

        Raises:
            SelectionError: When the scorer has no scores here.
        """
        name = self._primary(by)
        order = ranked(self.tables[name].components, self._tie_break(name))
        return {component: rank for rank, component in enumerate(order, 1)}

    def head_scores(self, by: str | None = None) -> Float[np.ndarray, "layer head"]:
        """The scores of attention heads as a matrix, in the order of `transformer_lens.patching`'s; NaN without one.

        Args:
            by: The scorer; the primary one unless given.

        Raises:
            SelectionError: When the scorer has no scores here.
        """
        scores = np.full((self.shape.n_layers, self.shape.n_heads), np.nan)
        for name, score in self.tables[self._primary(by)].components.items():
            component = Component.parse(name)
            if component.index is not None:
                scores[component.layer, component.index] = score
        return scores

    def mlp_scores(self, by: str | None = None) -> Float[np.ndarray, " layer"]:
        """The scores of MLPs, layer by layer; NaN without one.

        Args:
            by: The scorer; the primary one unless given.

        Raises:
            SelectionError: When the scorer has no scores here.
        """
        table = self.tables[self._primary(by)].components
        return np.array([table.get(f"L{layer}.mlp", np.nan) for layer in range(self.shape.n_layers)])

    def __repr__(self) -> str:
        # A prompt shows what a call returned, and thousands of scores say nothing there.
        return f"Localization({self.subject!r} in {self.model!r}, {self.dtype}, by {', '.join(self.scorers)})"

    def _repr_html_(self) -> str:
        """The best components and their scores, for a notebook."""
        from .display import render_localization

        return render_localization(self)

    def rows(self, top: int | None = None, by: str | None = None) -> tuple[list[str], list[list[str]]]:
        """The ranked table as text: a header, and a row a component.

        Args:
            top: How many rows; all unless given.
            by: The scorer that ranks; the primary one unless given.

        Raises:
            SelectionError: When the scorer has no scores here, or `top` is no whole number of at least 0.
        """
        top = None if top is None else checked_limit("top", top)
        primary = self._primary(by)
        names = [primary, *(name for name in self.tables if name != primary)]
        body = []
        for component, rank in list(self.ranks(by).items())[:top]:
            values = [self.tables[name].components.get(component) for name in names]
            body.append([str(rank), component, *("" if value is None else f"{value:.4g}" for value in values)])
        return ["rank", "component", *names], body

    def to_dict(self) -> dict[str, Any]:
        """The localization as JSON; neuron scores are base64 of little-endian float32."""
        carried = {} if self.faithfulness is None else {"faithfulness": self.faithfulness.to_dict()}
        return {
            "format": FORMAT,
            "model": self.model,
            "dtype": self.dtype,
            "shape": self.shape.to_dict(),
            "subject": self.subject,
            "seed": self.seed,
            "scorers": list(self.scorers),
            "errors": dict(self.errors),
            "corruption": [dict(record) for record in self.corruption],
            "scores": {name: dict(table.components) for name, table in self.tables.items()},
            "neurons": {
                name: {mlp: pack(values) for mlp, values in table.neurons.items()}
                for name, table in self.tables.items()
            },
            "notes": {name: dict(table.notes) for name, table in self.tables.items()},
            **carried,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Localization:
        """What `to_dict` gave.

        Raises:
            SelectionError: When it is something else.
        """
        if not isinstance(data, Mapping) or data.get("format") != FORMAT:
            raise SelectionError(f"this is not a localization of format {FORMAT}.")
        return cls(**read_localization(data))

    def save(self, path: str | Path, selection: Selection | None = None) -> None:
        """Write the localization as JSON.

        Args:
            path: The file.
            selection: What was chosen, to stand in the same file, where `Selection.load` finds it and a person can
                edit it.

        Raises:
            SelectionError: When it is no selection, or has components that the model has not.
            OutputError: When its folder does not exist or cannot be written.
        """
        if selection is not None:
            self._check_selection(selection)
        chosen = {} if selection is None else {"selection": selection.to_dict()}
        write_json(path, {**chosen, **self.to_dict()})

    @classmethod
    def load(cls, path: str | Path) -> Localization:
        """Read what `save` wrote.

        Raises:
            SelectionError: When the file is missing or not a localization.
        """
        try:
            data = read_json(path)
        except (OSError, ValueError) as error:
            raise SelectionError(f"{path} cannot be read as a localization: {why_unread(error)}.") from error
        try:
            return cls.from_dict(data)
        except SelectionError as error:
            raise SelectionError(f"{path}: {error}") from error

    def _primary(self, by: str | None) -> str:
        name = self.scorers[0] if by is None else by
        if not isinstance(name, str):
            raise SelectionError(f"by must be the name of one scorer, not {brief(name)}.")
        if name in self.tables:
            return name
        if name in self.errors:
            raise SelectionError(f"the scorer {name!r} failed: {self.errors[name]} Choose another with `by`.")
        raise SelectionError(f"there are no scores by {name!r} here, only by {', '.join(self.tables)}.")

    def _check_selection(self, selection: Selection) -> None:
        if not isinstance(selection, Selection):
            raise SelectionError(f"a selection must be a Selection, not {brief(selection)}.")
        selection.check(self.shape)

    def _check_neurons(self, count: int | None) -> None:
        if count is not None and whole(count) is None:
            raise SelectionError(f"neurons must be a whole number, not {brief(count)}.")
        if count is not None and not 1 <= count <= self.shape.d_mlp:
            raise SelectionError(f"neurons must be between 1 and {self.shape.d_mlp}, not {brief(count)}.")

    def _tie_break(self, name: str) -> Any:
        others = [self.tables[other].components for other in self._in_order() if other != name]

        def key(component: str) -> tuple[float, ...]:
            parsed = Component.parse(component)
            place = (parsed.layer, parsed.kind == "mlp", parsed.index or 0)
            return (*(-table.get(component, -np.inf) for table in others), *place)

        return key

    def _in_order(self) -> list[str]:
        """The scorers with scores: those that were asked for, and then the others, which a mapping from a file may
        hold in any order."""
        names = [*self.scorers, *sorted(self.tables)]
        return [name for name in dict.fromkeys(names) if name in self.tables]
