"""What a stage takes when some tokens go through the model at a time: its steps, and what it measures before them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import peft_surgical as ps
from peft_surgical.profiling import profiled
from peft_surgical.staging.retained import Retained

from ..localization import peak_above
from .case import Case
from .training import learn, unstopped

EVERY = 2**20
TOKENS = (256, 640, 1536, EVERY)


def passes(case: Case) -> dict[str, Any]:
    """Seconds and peak memory of a training step, and of the curvature with the base's answers before it, for each
    limit of tokens a pass. The seconds are of the better of two rounds: the first also prepares the products of each
    shape."""
    recipe = unstopped(case)
    retained = learn(case, replace(recipe, steps=1)).retained
    assert retained is not None  # for the type checker
    found: dict[int, dict[str, dict[str, float]]] = {}
    for tokens in TOKENS * 2:
        own = replace(recipe, pass_tokens=tokens)
        made = {"step": _cost(case, _step, own, retained), "curvature": _cost(case, _curvature, own)}
        found[tokens] = {
            name: {
                "seconds": min(cost["seconds"], found.get(tokens, made)[name]["seconds"]),
                "mib": max(cost["mib"], found.get(tokens, made)[name]["mib"]),
            }
            for name, cost in made.items()
        }
    return {"rows": len(retained.kept.rows), "tokens": found}


def _cost(case: Case, seconds_of: Callable[..., float], *arguments: Any) -> dict[str, float]:
    seconds: list[float] = []
    peak = peak_above(case.model, lambda: seconds.append(seconds_of(case, *arguments)))
    return {"seconds": seconds[0], "mib": peak}


def _step(case: Case, recipe: ps.Recipe, retained: Retained) -> float:
    record = learn(case, recipe, retained).record
    return record.seconds / record.steps


def _curvature(case: Case, recipe: ps.Recipe) -> float:
    with profiled() as profile:
        learn(case, replace(recipe, steps=0))
    return sum(seconds for path, seconds in profile.seconds.items() if path[-1] == "curvature")
