"""The default: estimate everything, measure the promising, keep what is specific to the fact.

1. `attribution` ranks all components, with one backward pass.
2. The best `candidates`, and the MLPs of the first quarter of the layers, which attribution misjudges, are patched
   exactly, on some of the prompts.
3. Of these, a component whose share in the effect on the fact is not clearly above its share on control-like prompts
   is dropped (see `specificity`).

What is left is scored by its exact effect. What was dropped or not measured scores 0; ties are broken by the next
scorer of the localization.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..errors import ScorerError
from ..hookspecs import Register, hookimpl
from ..localizing.context import ScorerContext, checked_by
from ..localizing.effects import exact_drops, site_scores
from ..localizing.patching import component_of, targets_of
from ..localizing.runs import Site
from ..selection import ranked
from ..staging.retain import spaced
from .specificity import as_shares, control_shares


def _check(*, candidates: int, prompts: int, margin: float) -> None:
    if min(candidates, prompts) < 1:
        raise ScorerError(f"candidates and prompts must be at least 1, not {candidates} and {prompts}.")
    if not math.isfinite(margin):
        raise ScorerError(f"margin must be a finite number, not {margin}.")


@checked_by(_check)
def verified(
    context: ScorerContext, *, candidates: int = 40, prompts: int = 6, margin: float = 0.2
) -> dict[Site, Tensor]:
    """Exact drop of the candidates that attribution finds and that are specific to the fact, else 0.

    Args:
        context: The localization.
        candidates: How many of attribution's best to measure. A key/value head that several query heads read is one.
        prompts: On how many of the prompts, evenly spaced.
        margin: By how much of itself a component's share must exceed that on control-like prompts.
    """
    _check(candidates=candidates, prompts=prompts, margin=margin)
    estimate = context.score("attribution").components
    early = math.ceil(context.shape.n_layers / 4)
    of_name = {component_of(target, context.shape): target for target in targets_of(context.sites)}
    best = ranked({name: estimate[name] for name in of_name})[:candidates]
    wanted = {*best, *(f"L{layer}.mlp" for layer in range(early))}
    targets = [target for name, target in of_name.items() if name in wanted]
    pairs = spaced(context.pairs, prompts)
    drops, totals = exact_drops(context, pairs, targets)
    effect = drops.mean(0)
    try:
        share = as_shares(drops, totals)
        excess = share - control_shares(context, targets)
        specific = excess > margin * share.abs()
        context.notes["filter"] = (
            f"dropped unless a share exceeds that on control-like prompts by {margin:g} of itself"
        )
    except ScorerError as error:
        # A fact without control-like prompts, or one the model does not hold, is still localized; the record says how.
        excess, specific = torch.zeros_like(effect), torch.ones_like(effect, dtype=torch.bool)
        context.notes["filter"] = f"none: {error}"
    context.notes["measured"] = {
        component_of(target, context.shape): {"drop": round(float(drop), 5), "excess_share": round(float(more), 5)}
        for target, drop, more in zip(targets, effect, excess, strict=True)
    }
    scores = site_scores(targets, torch.where(specific, effect, 0.0))
    sizes = {site: site.size if site.of_heads else 1 for site in context.sites}
    missing: Any = {"dtype": torch.float32, "device": "cpu"}
    return {site: scores.get(site, torch.zeros(size, **missing)) for site, size in sizes.items()}


@hookimpl
def register_scorers(register: Register) -> None:
    """Register `verified`."""
    register("verified", verified)
