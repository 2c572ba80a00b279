"""Where the fact is looked up: what components write at the subject's own tokens.

Attribution patching (see `attribution`), counted only at the positions that the corruption changes, the subject's.
MLPs of the early and middle layers enrich those positions with what the model knows of the subject; later components,
which only carry it to the answer, score near zero here. Edits at the lookup generalize better and come back less
easily than edits where the answer is extracted (Guo et al., arXiv 2410.12949; ROME's causal traces peak at the same
place, arXiv 2202.05262).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..hookspecs import hookimpl
from ..localizing.context import ScorerContext
from ..localizing.runs import Site


def lookup(context: ScorerContext) -> dict[Site, Tensor]:
    """Linear estimate of the drop of the logit difference by what is written at the subject's tokens."""
    totals: dict[Site, Tensor] = {}
    for window in context.windows():
        with torch.no_grad():
            source, _ = context.runs.capture(window, window.corrupted, context.sites)
        clean, slopes = context.runs.gradients(window, window.clean, context.sites)
        subject = (window.clean != window.corrupted).any(-1)
        for site in context.sites:
            drops = (clean[site] - source[site]).float() * slopes[site].float()
            at_subject = drops[subject]
            totals[site] = totals.get(site, 0) + (at_subject.sum((0, -1)) if site.of_heads else at_subject.sum(0))
    return {site: total / len(context.pairs) for site, total in totals.items()}


@hookimpl
def register_scorers(register):  # type: ignore[no-untyped-def]
    """Register `lookup`."""
    register("lookup", lookup)
