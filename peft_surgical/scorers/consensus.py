"""The convergence of analyses of arXiv 2508.07075, as a defined aggregation of ranks.

Sizes of different scorers cannot be compared, and neither can those of heads and MLPs; ranks within a kind can. A
component's consensus is the mean over the scorers of 1 - (rank - 1) / (n - 1), rank 1 being the best of its kind: 1
where all scorers put it first, 0 where all put it last. The ranks themselves stand in the localization's notes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..context import ScorerContext
from ..errors import ScorerError
from ..hookspecs import hookimpl
from ..runs import Site
from ..selection import ranked


def consensus(
    context: ScorerContext, *, of: str = "activation_magnitude+attribution+gradient_norm"
) -> dict[Site, Tensor]:
    """The mean rank of a component among its kind, over several scorers.

    Args:
        context: The localization.
        of: The scorers, joined by `+`.
    """
    names = of.split("+")
    if len(names) < 2 or "consensus" in names:
        raise ScorerError(f"a consensus needs two other scorers or more, joined by +, not {of!r}.")
    ranks: dict[str, dict[str, int]] = {}
    standing: dict[str, float] = {}
    for name in names:
        scores = context.score(name).components
        for kind in (".head.", ".mlp"):
            order = ranked({c: score for c, score in scores.items() if kind in c})
            for rank, component in enumerate(order, 1):
                ranks.setdefault(component, {})[name] = rank
                share = 1 - (rank - 1) / max(1, len(order) - 1)
                standing[component] = standing.get(component, 0.0) + share / len(names)
    context.notes["ranks"] = ranks
    heads = context.shape.n_heads

    def names_of(site: Site) -> list[str]:
        if site.of_heads:
            return [f"L{site.layer}.head.{index * heads // site.size}" for index in range(site.size)]
        return [f"L{site.layer}.mlp"]

    return {site: torch.tensor([standing[name] for name in names_of(site)]) for site in context.sites}


@hookimpl
def register_scorers(register):  # type: ignore[no-untyped-def]
    """Register `consensus`."""
    register("consensus", consensus)
