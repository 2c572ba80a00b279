"""Localized fine-tuning (LocFT-BF; Yang et al., "Fine-tuning Done Right in Model Editing", arXiv 2509.22072).

One MLP's output projection, without a bound on its weights, on targets with the end-of-sequence token. Which layer,
and at which learning rate, was chosen on development cases, as the authors choose it for each model. What they do
breadth first, in batches over many edits, is one batch of all rows for one edit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from .fitting import fit, fit_recipe
from .method import Request
from .mlps import edited_layer, output_projection
from .restoring import weights_restored


@dataclass(frozen=True)
class LocalizedFineTuning:
    """Trains the output projection of one MLP.

    Attributes:
        learning_rate: Adam's.
        layer: Which MLP; ROME's when None.
    """

    name: ClassVar[str] = "ft_loc"
    learning_rate: float = 2e-3
    layer: int | None = None

    def recipe(self, model: Any) -> dict[str, Any]:
        """As of all that is fitted alike, and the layer."""
        return {**fit_recipe(), "layer": edited_layer(model, self.layer)}

    @contextmanager
    def edit(self, model: Any, tokenizer: Any, request: Request, seed: int) -> Iterator[None]:
        """Trains, and copies the projection's weight back afterwards."""
        weight = output_projection(model, edited_layer(model, self.layer)).weight
        with weights_restored([weight]):
            fit(model, tokenizer, request, [weight], self.learning_rate, end=True)
            yield
