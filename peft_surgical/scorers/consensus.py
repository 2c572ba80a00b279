"""Where several analyses agree, as arXiv 2508.07075 asks, here as a defined aggregation of ranks.

Sizes of different scorers cannot be compared, and neither can those of heads and MLPs; ranks within a kind can. A
component's consensus is the mean over the scorers of 1 - (rank - 1) / (n - 1), with n components of its kind and rank
1 the best: 1 where it is alone in the first place for every scorer, 0 where it is alone in the last. Components of
equal score share the mean of the ranks that they take, so that the many exact zeros of `verified` or `lookup` say
nothing about one another. The ranks themselves stand in the localization's notes.

The default is not the paper's three analyses: for exact patching it takes `attribution`, which estimates that at a
fraction of the cost. The three are `consensus:of=activation_magnitude+logit_drop:measure=old+gradient_norm`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from ..errors import ScorerError
from ..hookspecs import Register, hookimpl
from ..localizing.context import ScorerContext, checked_by
from ..localizing.patching import component_of, targets_of
from ..localizing.runs import Site

DEFAULT_OF = "activation_magnitude+attribution+gradient_norm"


def _scorers(*, of: str) -> list[str]:
    names = of.split("+")
    if len(names) < 2 or len(set(names)) < len(names) or "consensus" in names:
        raise ScorerError(f"a consensus needs two other scorers or more, each once, joined by +, not {of!r}.")
    return names


@checked_by(_scorers)
def consensus(context: ScorerContext, *, of: str = DEFAULT_OF) -> dict[Site, Tensor]:
    """Mean place of a component among its kind over several scorers: 1 the first, 0 the last.

    A place is 1 - (rank - 1) / (n - 1), with n components of its kind.

    A component that a scorer leaves out ranks last for it, tied with all others that it leaves out; one that every
    scorer leaves out is left out here too.

    Args:
        context: The localization.
        of: The scorers, joined by `+`, each once, with one option at most (`logit_drop:measure=old`). So a name cannot
            hold a `+` (`sites=v+pre`; give `sites` to the consensus, which passes it on) or a comma, nor be
            `consensus` itself.
    """
    names = _scorers(of=of)
    tables = {name: context.score(name).components for name in names}
    ranks: dict[str, dict[str, float]] = {}
    standing: dict[str, float] = {}
    for kind in (".head.", ".mlp"):
        scored = dict.fromkeys(c for table in tables.values() for c in table if kind in c)
        for name, table in tables.items():
            for component, rank in mean_ranks({c: table.get(c, -np.inf) for c in scored}).items():
                ranks.setdefault(component, {})[name] = rank
                share = 1 - (rank - 1) / max(1, len(scored) - 1)
                standing[component] = standing.get(component, 0.0) + share / len(names)
    context.notes["ranks"] = ranks
    found = {
        site: [standing.get(component_of(target, context.shape)) for target in targets_of([site])]
        for site in context.sites
    }
    whole = {site: values for site, values in found.items() if None not in values}
    return {site: torch.tensor(values, dtype=torch.float32, device="cpu") for site, values in whole.items()}


def mean_ranks(scores: Mapping[str, float]) -> dict[str, float]:
    """Each component's rank by falling score, 1 being the best; equal scores share the mean of the ranks they take."""
    _, place, count = np.unique([-score for score in scores.values()], return_inverse=True, return_counts=True)
    ranks = count.cumsum() - (count - 1) / 2
    return dict(zip(scores, ranks[place].tolist(), strict=True))


@hookimpl
def register_scorers(register: Register) -> None:
    """Register `consensus`."""
    register("consensus", consensus)
