"""How strongly a component is active where the answer is decided; the first analysis of arXiv 2508.07075."""

from __future__ import annotations

import torch
from torch import Tensor

from ..hookspecs import Register, hookimpl
from ..localizing.context import MLPScores, ScorerContext
from ..localizing.runs import Site


def activation_magnitude(context: ScorerContext) -> dict[Site, Tensor | MLPScores]:
    """Mean |activation| at the answer position.

    Over a head's coordinates, or an MLP's neurons; averaged over the prompts.
    """
    sums: dict[Site, Tensor] = {}
    for window in context.windows():
        with torch.no_grad():
            activations, _ = context.runs.capture(window, window.clean, context.sites)
        for site, values in activations.items():
            size = values[:, -1].float().abs()
            size = size.mean(-1) if site.of_heads else size
            sums[site] = sums.get(site, 0) + size.sum(0)
    means = {site: total / len(context.pairs) for site, total in sums.items()}
    return {site: m if site.of_heads else MLPScores(float(m.mean()), m) for site, m in means.items()}


@hookimpl
def register_scorers(register: Register) -> None:
    """Register `activation_magnitude`."""
    register("activation_magnitude", activation_magnitude)
