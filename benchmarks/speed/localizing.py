"""The rows about localization. The ways themselves are those of `benchmarks.localization`."""

from __future__ import annotations

import random
from typing import Any

import torch

import peft_surgical as ps
from peft_surgical.editing import EDIT_SCORERS
from peft_surgical.localizing.bridge import wrap
from peft_surgical.localizing.corruption import template_ids
from peft_surgical.localizing.patching import targets_of
from peft_surgical.localizing.runs import Runs, sites_of
from peft_surgical.selection import ranked

from ..localization import attributed, forward, grown, located, one_by_one, overlap, swapped
from .case import Case, timed

EXACT = "logit_drop"


def localization(case: Case) -> dict[str, Any]:
    """Seconds a prompt: exact, the default of `edit`, and one forward a component."""
    sizes = case.sizes
    model = case.fresh()
    targets = targets_of(sites_of(ps.ModelShape.from_config(model.config), ("z", "post")))
    bridge, template = wrap(model), template_ids(case.tokenizer)
    precise, runs = Runs(bridge, template, precise=True), Runs(bridge, template)
    pairs = swapped(runs, case.tokenizer, case.fact, sizes.prompts, sizes.max_tokens, case.seed)
    forward(model, pairs)
    chosen = random.Random(case.seed).sample(range(len(targets)), min(sizes.components, len(targets)))
    _, first_seconds = timed(one_by_one, bridge, pairs[0], [targets[chosen[0]]])
    sample, sampled_seconds = timed(one_by_one, bridge, pairs[0], [targets[i] for i in chosen])
    exact, exact_seconds = timed(
        lambda: torch.stack([grown(precise, pair, targets, sizes.max_tokens) for pair in pairs])
    )
    guess = attributed(runs, pairs, targets, sizes.max_tokens)
    default, default_seconds = timed(
        located, case.fresh(), case.tokenizer, case.fact, list(EDIT_SCORERS), sizes.max_tokens
    )
    # On the same prompts: what each scorer of the default measures need not be what patching does.
    compared = ps.localize(
        case.fresh(), case.tokenizer, case.fact, [*EDIT_SCORERS, EXACT], prompts=sizes.prompts, progress=False
    )
    best = {name: set(ranked(scores)[:10]) for name, scores in compared.scores.items()}
    # The runs that all components share are paid once.
    each = (sampled_seconds - first_seconds) / max(1, len(chosen) - 1)
    other = first_seconds + each * (len(targets) - 1)
    per_prompt = {"exact": exact_seconds / len(pairs), "default": default_seconds / len(default.corruption)}
    return {
        "components": len(targets),
        "components_one_by_one": len(chosen),
        "prompts": len(pairs),
        "prompts_default": len(default.corruption),
        "seconds_a_prompt": per_prompt,
        "other_seconds_a_prompt": other,
        "ratio_exact": other / per_prompt["exact"],
        "ratio_default": other / per_prompt["default"],
        "largest_error": float((exact[0][chosen] - sample).abs().max()),
        "top10_overlap_of": {name: len(best[name] & best[EXACT]) for name in EDIT_SCORERS},
        "top10_overlap": round(10 * overlap(guess.mean(0), exact.mean(0), min(10, len(targets)))),
    }
