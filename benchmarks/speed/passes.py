"""What a training step, and the curvature, take when some tokens go through the model at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from peft import get_peft_model

import peft_surgical as ps
from peft_surgical.architectures import decoder_layers
from peft_surgical.running.suffix import SuffixRunner
from peft_surgical.staging.curvature import measure_curvature, trained_layers
from peft_surgical.staging.retained import Retained

from ..localization import peak_above
from .case import Case, timed
from .training import learn, recipe_of

EVERY = 2**20
TOKENS = (256, 512, 1024, EVERY)
ROWS = 60


def passes(case: Case) -> dict[str, Any]:
    """Seconds and peak memory of a training step, and of the curvature of some rows, for each limit of tokens a pass.

    In the model's own dtype: it is in float32 that there is a limit unless another is given.
    """
    own = str(case.model.dtype).removeprefix("torch.")
    recipe = replace(recipe_of(case), steps=case.sizes.own_steps, compute_dtype=own, target_loss=-1.0)
    retained = learn(case, replace(recipe, steps=1)).retained
    assert retained is not None  # for the type checker
    found = {
        tokens: {
            "step": _cost(case, _step, replace(recipe, pass_tokens=tokens), retained),
            "curvature": _cost(case, _curvature, tokens, retained),
        }
        for tokens in TOKENS
    }
    return {"rows": min(ROWS, len(retained.kept.rows)), "tokens": found}


def _cost(case: Case, seconds_of: Callable[..., float], *arguments: Any) -> dict[str, float]:
    seconds: list[float] = []
    peak = peak_above(case.model, lambda: seconds.append(seconds_of(case, *arguments)))
    return {"seconds": seconds[0], "mib": peak}


def _step(case: Case, recipe: ps.Recipe, retained: Retained) -> float:
    record = learn(case, recipe, retained).record
    return record.seconds / record.steps


def _curvature(case: Case, tokens: int, retained: Retained) -> float:
    model = get_peft_model(case.fresh(), copy.deepcopy(case.config)).eval().get_base_model()
    layers = trained_layers(model, "default")
    runner = SuffixRunner(model, decoder_layers(model), 0)
    rows = retained.kept.rows[:ROWS]
    indices = runner.add([row.ids for row in rows])
    _, seconds = timed(measure_curvature, runner, layers, "default", indices, rows, seed=case.seed, tokens=tokens)
    return seconds
