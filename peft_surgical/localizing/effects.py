"""Exact effects of components on prompts: patching, measured."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import ScorerError
from .context import ScorerContext
from .corruption import PromptPair
from .patching import Target, patch
from .runs import Runs, Site
from .window import Window

MEASURES = {"difference": Window.difference, "new": Window.new_difference, "old": Window.old_logit}


def check_effect(*, measure: str, ablation: str) -> None:
    """Refuses what [`exact_drops`] neither measures nor puts in a component's place.

    Raises:
        ScorerError: For an unknown measure or ablation.
    """
    if measure not in MEASURES:
        raise ScorerError(f"measure must be one of {', '.join(MEASURES)}, not {measure!r}.")
    if ablation not in ("none", "zero", "mean"):
        raise ScorerError(f"ablation must be none, zero or mean, not {ablation!r}.")


@torch.no_grad()
def exact_drops(
    context: ScorerContext,
    pairs: Sequence[PromptPair],
    targets: Sequence[Target],
    *,
    measure: str = "difference",
    ablation: str = "none",
) -> tuple[Float[Tensor, "prompt target"], Float[Tensor, " prompt"]]:
    """Patch each target alone, on each prompt, in float32.

    Args:
        context: The localization.
        pairs: The prompts.
        targets: Heads and MLPs.
        measure: `difference` (old answer's logit less the rival's), `new` (less the new answer's) or `old` (alone).
        ablation: `none` (from the corrupted run), `zero` or `mean`.

    Returns:
        How much the measure drops for each prompt and target, and how much it drops in the corrupted run.

    Raises:
        ScorerError: For an unknown measure or ablation.
    """
    check_effect(measure=measure, ablation=ablation)
    runs = context.precise
    sites = list(dict.fromkeys(target.site for target in targets))
    means = _means(runs, pairs, sites, context.max_tokens) if ablation == "mean" else {}
    drops, totals = [], []
    for pair in context.track(pairs, len(pairs)):
        # An ablation changes every position, a corruption only those from the subject on.
        window = runs.window([pair], whole=ablation != "none")
        read = partial(MEASURES[measure], window)
        corrupted, logits = runs.capture(window, window.corrupted, sites)
        clean = read(runs.logits(window, window.clean))
        if ablation == "zero":
            sources = {site: torch.zeros_like(values) for site, values in corrupted.items()}
        elif ablation == "mean":
            sources = {site: means[site].expand_as(values) for site, values in corrupted.items()}
        else:
            sources = corrupted
        drops.append((clean - patch(runs, window, targets, sources, context.max_tokens, read)).cpu())
        totals.append((clean - read(logits)).cpu())
    return torch.stack(drops), torch.cat(totals)


def site_scores(targets: Sequence[Target], values: Float[Tensor, " target"]) -> dict[Site, Tensor]:
    """Arrange one value a target as scorers return them; heads that are no target get 0."""
    scores: dict[Site, Tensor] = {}
    for target, value in zip(targets, values, strict=True):
        size = target.site.size if target.site.of_heads else 1
        scores.setdefault(target.site, torch.zeros(size, dtype=torch.float32, device="cpu"))[target.index or 0] = value
    return scores


def _means(runs: Runs, pairs: Sequence[PromptPair], sites: Sequence[Site], max_tokens: int) -> dict[Site, Tensor]:
    """Mean clean activation of each site over prompts and positions, `[head, d_head]` or `[neuron]`."""
    sums: dict[Site, Tensor] = {}
    count = 0
    for window in runs.windows(pairs, max_tokens, whole=True):
        activations, _ = runs.capture(window, window.clean, sites)
        count += int(window.mask.sum())
        for site, values in activations.items():
            sums[site] = sums.get(site, 0) + values[window.mask].sum(0)
    return {site: total / count for site, total in sums.items()}
