"""Random scores: the baseline that every comparison of scorers includes."""

from __future__ import annotations

import torch
from torch import Tensor

from ..hookspecs import Register, hookimpl
from ..localizing.context import MLPScores, ScorerContext
from ..localizing.runs import Site


def random(context: ScorerContext, *, draw: int = 0) -> dict[Site, Tensor | MLPScores]:
    """Nothing: uniform random numbers from the localization's seed.

    Args:
        context: The localization.
        draw: Which of the seed's draws, to have several baselines in one localization.
    """
    # torch's seeds have 64 bits.
    generator = torch.Generator().manual_seed((context.seed + 1_000_003 * draw) % 2**64)

    def uniform(size: int) -> Tensor:
        return torch.rand(size, generator=generator, dtype=torch.float32, device="cpu")

    return {
        site: uniform(site.size) if site.of_heads else MLPScores(float(uniform(1)), uniform(site.size))
        for site in context.sites
    }


@hookimpl
def register_scorers(register: Register) -> None:
    """Register `random`."""
    register("random", random)
