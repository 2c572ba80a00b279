"""Attribution patching: the effect of patching every component, from one forward and one backward pass.

Patching a component changes the logit difference by about (corrupted activation - clean activation) · gradient
(Nanda 2023; Syed et al., arXiv 2310.10348). The gradient is taken at the clean run, the run that is patched. It is a
linear estimate: it ranks components well, and neurons within an MLP nearly as exact patching does, but misjudges the
saturated MLPs of the first layers, which `verified` therefore measures. With `steps` above 1 the gradient is averaged
along the straight line between the two runs' embeddings (EAP-IG, Hanna et al., arXiv 2403.17806).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import ScorerError
from ..hookspecs import Register, hookimpl
from ..localizing.context import ScorerContext, checked_by
from ..localizing.runs import Runs, Site
from ..localizing.window import Window


class Estimates(NamedTuple):
    """The estimate for each head or neuron of each site, `[item]`, means over the prompts.

    Attributes:
        everywhere: Summed over all positions.
        at_subject: Summed over the positions that the corruption changes.
    """

    everywhere: dict[Site, Tensor]
    at_subject: dict[Site, Tensor]


def _check(*, steps: int) -> None:
    if steps < 1:
        raise ScorerError(f"steps must be at least 1, not {steps}.")


@checked_by(_check)
def attribution(context: ScorerContext, *, steps: int = 1) -> dict[Site, Tensor]:
    """Linear estimate of the drop of the logit difference, by gradient; a head or neuron each.

    Args:
        context: The localization.
        steps: 1 for the gradient at the clean run; more to average it over so many points between the two runs.
    """
    _check(steps=steps)
    return estimates(context, steps).everywhere


def estimates(context: ScorerContext, steps: int = 1) -> Estimates:
    """Both sums of the context's sites from the same passes, which scorers of one localization share."""

    def estimate() -> Estimates:
        found = Estimates({}, {})
        for window in context.windows():
            subject = (window.clean != window.corrupted).any(-1)
            for site, drops in drops_by_position(context.runs, window, context.sites, steps):
                at_subject = drops[subject]
                within = (-1,) if site.of_heads else ()
                sums = (drops.sum((1, *within)).sum(0), at_subject.sum((0, *within)))
                for totals, own in zip(found, sums, strict=True):
                    totals[site] = totals.get(site, 0) + own
        means = ({site: total / len(context.pairs) for site, total in totals.items()} for totals in found)
        return Estimates(*means)

    return context.once(("attribution", context.sites, steps), estimate)


def drops_by_position(
    runs: Runs, window: Window, sites: Sequence[Site], steps: int
) -> Iterator[tuple[Site, Float[Tensor, "prompt pos ..."]]]:
    """Site by site, what each number that a head or neuron writes takes away, `[prompt, pos, head, d_head]` or
    `[prompt, pos, neuron]`; one site's at a time is in memory."""
    with torch.no_grad():
        source, _ = runs.capture(window, window.corrupted, sites)
    if steps == 1:
        clean, slopes = runs.gradients(window, window.clean, sites)
    else:
        with torch.no_grad():
            clean, _ = runs.capture(window, window.clean, sites)
        slopes = {site: torch.zeros_like(values) for site, values in clean.items()}
        for step in range(steps):
            between = torch.lerp(window.corrupted, window.clean, (step + 0.5) / steps)
            for site, slope in runs.gradients(window, between, sites)[1].items():
                slopes[site] += slope / steps
    for site in sites:
        yield site, (clean[site] - source[site]).float() * slopes[site].float()


@hookimpl
def register_scorers(register: Register) -> None:
    """Register `attribution`."""
    register("attribution", attribution)
