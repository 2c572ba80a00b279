"""One row of the comparison of selections: choose components, train their scales, measure."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal

import peft_surgical as ps
from peft_surgical.choice import EDIT_PROJECTIONS
from peft_surgical.evaluation import Answers, answer_fact
from peft_surgical.localization import DEFAULT_SCORERS
from peft_surgical.measuring.metrics import prompt_metrics
from peft_surgical.measuring.retention import measure_retention
from peft_surgical.measuring.states import adapter_state
from peft_surgical.plugins import OWN, load_scorers
from peft_surgical.selection import n_scales
from peft_surgical.sites import components
from peft_surgical.staging.curvature import Curvature
from peft_surgical.staging.retained import Retained
from peft_surgical.staging.stage import LEARN

from .baselines.restoring import adapters_taken_off

HEADS = "+heads"
BY_LAYER = ("early_mlps", "late_mlps", "all_mlps", "all")
OTHERS = ("top10", "paper")


def row_names(draws: int, heads: bool) -> list[str]:
    """All rows, in the order in which they are measured."""
    installed = load_scorers().scorers
    scorers = sorted(name for name, item in installed.items() if item.distribution == OWN and name != "random")
    ranked = [*scorers, *(f"random:draw={draw}" for draw in range(draws))]
    return [*BY_LAYER, *ranked, *OTHERS, *(f"{name}{HEADS}" for name in ranked if heads)]


def asked_only(fact: ps.Fact) -> ps.Fact:
    """A fact without what nothing is counted over here, and which takes time to answer."""
    return replace(fact, probes=(), portability=())


def asked_digest(fact: ps.Fact) -> str:
    """A hash of all in a fact that decides a row: what is asked, and what training may not ask."""
    decides = {**asked_only(fact).to_dict(), "evaluated": sorted(fact.training.evaluated)}
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


def cell(figure: Mapping[str, float] | None) -> str:
    """A figure and its interval in a table for a person; a dash where there is none."""
    return "–" if figure is None else f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"


class Comparison:
    """One fact in one model. What all rows share is worked out once.

    Args:
        model: A bare model; it is bare again after each row.
        tokenizer: Its tokenizer.
        fact: The fact.
        recipe: How every row trains.
        projections: Where components are scaled.
        prompts: How many of the fact's prompts to localize on.
        seed: For corruption, chance and training order.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        fact: ps.Fact,
        recipe: ps.Recipe,
        *,
        projections: Sequence[str] = EDIT_PROJECTIONS,
        prompts: int,
        seed: int,
    ) -> None:
        self.model, self.tokenizer, self.fact = model, tokenizer, fact
        self.asked = asked_only(fact)
        self.recipe, self.projections, self.prompts, self.seed = recipe, tuple(projections), prompts, seed
        self.shape = ps.ModelShape.from_config(model.config)
        self._localizations: dict[str, ps.Localization] = {}
        self._retained: Retained | None = None

    @cached_property
    def base(self) -> Answers:
        """What the bare model says; set it where it is known already."""
        return answer_fact(self.model, self.tokenizer, self.asked)

    @property
    def budget(self) -> int:
        """How many scales the rows of equal budget have."""
        return self.half * n_scales(self.shape, "mlp", self.projections)

    @property
    def half(self) -> int:
        """How many MLPs the rows of equal budget have."""
        return (self.shape.n_layers + 1) // 2

    def row(self, name: str) -> dict[str, Any]:
        """Selects, trains, measures.

        Raises:
            SurgicalError: If the scorer of this row cannot score this fact.
        """
        started = time.perf_counter()
        selection, granularity = self.selection(name)
        config = ps.SurgicalIA3Config.from_localization(
            selection, granularity=granularity, projections=self.projections, task_type="CAUSAL_LM"
        )
        config.resolve(self.model.config)
        selected = time.perf_counter()
        with adapters_taken_off(self.model):
            stage = ps.learn(
                self.model,
                self.tokenizer,
                self.fact,
                config,
                recipe=self.recipe,
                retained=self._retained,
                seed=self.seed,
                progress=False,
            )
            # No row gets another's curvature; without one, the base's answers and distributions still hold.
            assert stage.retained is not None  # for the type checker
            self._retained = replace(stage.retained, curvature=Curvature(()), selections=None)
            trained = time.perf_counter()
            states = {"base": adapter_state(stage.model, []), "edited": adapter_state(stage.model, [LEARN])}
            with states["edited"]():
                said = answer_fact(stage.model, self.tokenizer, self.asked)
            retention = measure_retention(stage.model, self.tokenizer, states)["edited"]
        measured = time.perf_counter()
        found = {**prompt_metrics(self.fact, said.held_out, said.controls, self.base.controls), **retention}
        return {
            "figures": {metric: figure.to_dict() for metric, figure in found.items()},
            "components": list(selection.components),
            "granularity": granularity,
            "scales": sum(found.n for found in config.coordinates.values()),
            "training": stage.to_dict(),
            "seconds": {
                "select": round(selected - started, 2),
                "learn": round(trained - selected, 2),
                "measure": round(measured - trained, 2),
            },
            "said": {"held_out": said.held_out, "controls": said.controls},
        }

    def selection(self, name: str) -> tuple[ps.Selection, Literal["component", "module"]]:
        """The components of a row, and whether only they or their whole modules are scaled."""
        layers, count = self.shape.n_layers, self.half
        by_layer: dict[str, Iterable[str]] = {
            "early_mlps": (f"L{layer}.mlp" for layer in range(count)),
            "late_mlps": (f"L{layer}.mlp" for layer in range(layers - count, layers)),
            "all_mlps": (f"L{layer}.mlp" for layer in range(layers)),
            "all": map(str, components(self.shape)),
        }
        if name in by_layer:
            return ps.Selection.from_components(*by_layer[name], shape=self.shape), "component"
        if name == "top10":
            return self.localization(DEFAULT_SCORERS[0]).top(10), "component"
        if name == "paper":
            return self.localization("consensus").top(heads=2, mlps=3), "module"
        found = self.localization(name.removesuffix(HEADS))
        if name.endswith(HEADS):
            return found.top(budget=self.budget, projections=self.projections), "component"
        return found.top(mlps=count), "component"

    def localization(self, scorer: str) -> ps.Localization:
        """The scores by one scorer. Attribution breaks its ties, whichever other rows there are."""
        if scorer not in self._localizations:
            scorers = list(dict.fromkeys((scorer, "attribution")))
            self._localizations[scorer] = ps.localize(
                self.model,
                self.tokenizer,
                self.fact,
                scorers,
                seed=self.seed,
                prompts=self.prompts,
                progress=False,
            )
        return self._localizations[scorer]
