"""Whether a component matters for this fact more than for any prompt.

Its share of the corruption's whole effect on the fact, less its share on control-like prompts: the fact's `contrast`
subjects in its own prompts, and its `retain` prompts, each with the model's own answer. Never the evaluation's
controls. Early MLPs, which carry the identity of whatever the subject is, have large shares on both sides and come out
near 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import ScorerError
from ..hookspecs import Register, hookimpl
from ..localizing.context import ScorerContext
from ..localizing.effects import exact_drops, site_scores
from ..localizing.patching import Target, targets_of
from ..localizing.runs import Site


def specificity(context: ScorerContext) -> dict[Site, Tensor]:
    """Share of the exact effect on the fact less that on contrast and retain prompts."""
    targets = targets_of(context.sites)
    share = as_shares(*exact_drops(context, context.pairs, targets))
    return site_scores(targets, share - control_shares(context, targets))


def as_shares(drops: Float[Tensor, "prompt target"], totals: Float[Tensor, " prompt"]) -> Float[Tensor, " target"]:
    """Each target's drop as a share of the corrupted run's, both summed over the prompts.

    Raises:
        ScorerError: When the corruption does not lower the answer's logit, so that nothing can have a share in it.
    """
    if totals.sum() <= 0:
        raise ScorerError(
            f"the corruption does not lower the answer's logit (mean drop {float(totals.mean()):.3g}), so components "
            "have no share in it; the model may not know the answer."
        )
    return drops.sum(0) / totals.sum()


def control_shares(context: ScorerContext, targets: Sequence[Target]) -> Float[Tensor, " target"]:
    """The mean of the shares on contrast prompts and on retain prompts, whichever there are.

    Raises:
        ScorerError: When the fact has neither.
    """
    pairs = context.controls()
    if not pairs:
        raise ScorerError("specificity needs the fact's `contrast` subjects or `retain` prompts, and it has neither.")
    kinds = [[p for p in pairs if p.method == "swap"], [p for p in pairs if p.method != "swap"]]
    measured = [exact_drops(context, kind, targets) for kind in kinds if kind]
    # A prompt whose answer the corruption does not touch says nothing about who carries it.
    moved = [(drops[totals > 0], totals[totals > 0]) for drops, totals in measured if bool((totals > 0).any())]
    if not moved:
        raise ScorerError("the corruption changes the answer to none of the contrast and retain prompts.")
    return torch.stack([as_shares(drops, totals) for drops, totals in moved]).mean(0)


@hookimpl
def register_scorers(register: Register) -> None:
    """Register `specificity`."""
    register("specificity", specificity)
