"""Where the fact is looked up: what components write at the subject's own tokens.

Attribution patching (see `attribution`), counted only at the positions that the corruption changes, the subject's.
MLPs of the early and middle layers enrich those positions with what the model knows of the subject; later components,
which only carry it to the answer, score near zero here. Edits at the lookup generalize better and come back less
easily than edits where the answer is extracted (Guo et al., arXiv 2410.12949; ROME's causal traces peak at the same
place, arXiv 2202.05262).
"""

from __future__ import annotations

from torch import Tensor

from ..hookspecs import Register, hookimpl
from ..localizing.context import ScorerContext
from ..localizing.runs import Site
from .attribution import estimates


def lookup(context: ScorerContext) -> dict[Site, Tensor]:
    """Linear estimate of the drop of the logit difference by what is written at the subject's tokens."""
    return estimates(context).at_subject


@hookimpl
def register_scorers(register: Register) -> None:
    """Register `lookup`."""
    register("lookup", lookup)
