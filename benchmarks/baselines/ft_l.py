"""Constrained fine-tuning (FT+L of Meng et al. 2022, after Zhu et al. 2020): one MLP projection, held near its values.

No weight may move further than a bound, in the L-infinity norm. The bound is Adam's learning rate, as in ROME's
released settings for GPT-2 XL: one full step reaches it, and the others choose the direction. The loss is that of the
answer behind itself, token by token, as for all baselines here (EasyEdit's FT-M; the released code reads all of the
answer's tokens off the prompt's last), and the MLP is that of ROME's layer, where those settings have the first.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from .fitting import Fitted, fit
from .method import Request
from .mlps import edited_layer, output_projection
from .restoring import weights_restored


@dataclass(frozen=True)
class ConstrainedFineTuning(Fitted):
    """Trains the output projection of one MLP.

    Attributes:
        learning_rate: Adam's, and the bound.
        layer: Which MLP; ROME's when None.
    """

    name: ClassVar[str] = "ft_l"
    learning_rate: float = 1e-2
    layer: int | None = None

    @contextmanager
    def edit(self, model: Any, tokenizer: Any, request: Request, seed: int) -> Iterator[None]:
        """Trains, and copies the projection's weight back afterwards."""
        weight = output_projection(model, edited_layer(model, self.layer)).weight
        before = weight.detach().clone()

        def clamp() -> None:
            weight.clamp_(before - self.learning_rate, before + self.learning_rate)

        with weights_restored([weight]):
            fit(model, tokenizer, request, [weight], self.learning_rate, clamp)
            yield
