"""What a backward pass over rows to keep gives: the curvature of scales on them, and the distributions there."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..running.sharing import merged, processes
from ..texts.prompts import EncodedAnswer
from .curvature import Curvature
from .retain import TopDistribution


@dataclass(frozen=True)
class Measured:
    """Some rows, measured.

    Attributes:
        curvature: Of the scales; a sample a draw and row, all rows of the first draw before those of the second.
        base: For each row the distributions at its answer, as the model is when it is measured.
    """

    curvature: Curvature
    base: tuple[TopDistribution, ...]

    @classmethod
    def sampled(
        cls,
        sample: Callable[..., Curvature],
        indices: Sequence[int],
        rows: Sequence[EncodedAnswer],
        *,
        on_row: Callable[[], Any],
        **options: Any,
    ) -> Measured:
        """Measures rows.

        Args:
            sample: As [`sample_curvature`], the runner, the parameters and what watches them given; of scales
                [`measure_curvature`], the runner, the layers and the adapter given.
            indices: The rows' indices in the runner, which has taken them in.
            rows: The rows.
            on_row: Called when a row of this process's is done.
            **options: As [`sample_curvature`] takes them.
        """
        distributions: dict[int, TopDistribution] = {}

        def keep(i: int, logits: Tensor) -> None:
            distributions[i] = TopDistribution.of(logits)
            on_row()

        curvature = sample(indices, rows, on_logits=keep, **options)
        if processes() > 1:
            # Each may have a device of its own, which the others do not compute on.
            every = merged(lambda: {i: own.to("cpu") for i, own in distributions.items()})
            distributions = {i: own.to(curvature.gradients[0].device) for i, own in every.items()}
        return cls(curvature, tuple(distributions[i] for i in range(len(rows))))

    def select(self, rows: Sequence[int]) -> Measured:
        """Some of the rows, as they would be if they alone had been measured: the sum is again in nats a position."""
        if not self.base:
            return self
        base = tuple(self.base[i] for i in rows)
        scale = math.sqrt(_positions(self.base) / max(_positions(base), 1))
        by_draw = (own.unflatten(0, (-1, len(self.base))) for own in self.curvature.gradients)
        return Measured(Curvature(tuple(scale * own[:, list(rows)].flatten(0, 1) for own in by_draw)), base)

    def to_tensors(self) -> dict[str, Tensor]:
        """All of it by name, for a file."""
        together = TopDistribution.cat(self.base)
        return {
            **{f"gradients.{i:05}": own for i, own in enumerate(self.curvature.gradients)},
            "positions": torch.tensor([len(own.tokens) for own in self.base], device="cpu"),
            "tokens": together.tokens,
            "log_probs": together.log_probs,
        }

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor], device: torch.device) -> Measured:
        """What [`to_tensors`] gave."""
        counts = tensors["positions"].tolist()
        parts = (tensors[name].to(device).split(counts) for name in ("tokens", "log_probs"))
        gradients = (tensors[name].to(device) for name in sorted(tensors) if name.startswith("gradients."))
        return cls(Curvature(tuple(gradients)), tuple(TopDistribution(*both) for both in zip(*parts, strict=True)))


def _positions(base: Sequence[TopDistribution]) -> int:
    return sum(len(own.tokens) for own in base)
