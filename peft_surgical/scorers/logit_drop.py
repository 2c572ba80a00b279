"""Exact activation patching: what the old answer loses when one component is taken from the corrupted run.

The causal analysis of arXiv 2508.07075, here on every layer and averaged over the prompts. Positive scores hold the
old answer up, negative ones hold it down.
"""

from __future__ import annotations

from torch import Tensor

from ..hookspecs import Register, hookimpl
from ..localizing.context import ScorerContext, checked_by
from ..localizing.effects import check_effect, exact_drops, site_scores
from ..localizing.patching import targets_of
from ..localizing.runs import Site


@checked_by(check_effect)
def logit_drop(context: ScorerContext, *, measure: str = "difference", ablation: str = "none") -> dict[Site, Tensor]:
    """Exact drop when one component is patched from the corrupted run; a forward row each.

    Args:
        context: The localization.
        measure: `difference`, the old answer's logit less that of what the model says to the corrupted prompt; `new`,
            less the new answer's; or `old`, the old answer's logit alone (the paper's measure).
        ablation: `none` patches from the corrupted run; `zero` and `mean` put zero or the mean over prompts and
            positions in the component's place.
    """
    targets = targets_of(context.sites)
    drops, _ = exact_drops(context, context.pairs, targets, measure=measure, ablation=ablation)
    return site_scores(targets, drops.mean(0))


@hookimpl
def register_scorers(register: Register) -> None:
    """Register `logit_drop`."""
    register("logit_drop", logit_drop)
