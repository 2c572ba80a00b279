"""Prompt pairs, cut to the positions that their corruption can change.

[`Runs`][peft_surgical.localizing.runs.Runs] runs them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers.cache_utils import DynamicCache

from ..errors import ScorerError
from .corruption import PromptPair


class Prefix(DynamicCache):
    """Keys and values before the window, lent to any number of rows and never added to."""

    def __init__(self, cache: DynamicCache) -> None:
        super().__init__()
        self.layers = cache.layers

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """The prefix followed by the window's own keys and values, for as many rows as these have."""
        layer, size = self.layers[layer_idx], (key_states.shape[0], -1, -1, -1)
        keys, values = layer.keys.expand(size), layer.values.expand(size)
        return torch.cat([keys, key_states], 2), torch.cat([values, value_states], 2)


@dataclass(frozen=True, eq=False)
class Window:
    """Some prompt pairs, from the first position on where any of them differs from its twin.

    Attributes:
        pairs: The prompts.
        clean: Input embeddings of the clean run, from `start` on.
        corrupted: Input embeddings of the corrupted run.
        tokens: The clean token ids, padded.
        all_mask: Which positions are tokens, over the whole length.
        start: Where the window begins.
        old: The old answer's token of each prompt.
        new: The new answer's.
        rival: What the model says to the corrupted prompt.
        prefix: Keys and values before `start`; `None` when the window begins at 0.
    """

    pairs: tuple[PromptPair, ...]
    clean: Float[Tensor, "prompt pos d_model"]
    corrupted: Float[Tensor, "prompt pos d_model"]
    tokens: Int[Tensor, "prompt all_pos"]
    all_mask: Bool[Tensor, "prompt all_pos"]
    start: int
    old: Int[Tensor, " prompt"]
    new: Int[Tensor, " prompt"]
    rival: Int[Tensor, " prompt"]
    prefix: Prefix | None

    @property
    def width(self) -> int:
        """Positions in the window."""
        return self.clean.shape[1]

    @property
    def mask(self) -> Bool[Tensor, "prompt pos"]:
        """Which positions of the window are tokens; the others are padding, of which a sum must take nothing."""
        return self.all_mask[:, self.start :]

    def difference(self, logits: Float[Tensor, "row vocab"]) -> Float[Tensor, " row"]:
        """Logit of the old answer less the rival's; rows are the prompts, or all of the only prompt."""
        return self.old_logit(logits) - _pick(logits, self.rival)

    def old_logit(self, logits: Float[Tensor, "row vocab"]) -> Float[Tensor, " row"]:
        """Logit of the old answer."""
        return _pick(logits, self.old)

    def new_difference(self, logits: Float[Tensor, "row vocab"]) -> Float[Tensor, " row"]:
        """Logit of the old answer less that of the new one.

        Raises:
            ScorerError: For prompts about other things, which have no new answer.
        """
        if bool((self.new < 0).any()):
            raise ScorerError("prompts about other things have no new answer; measure `difference` or `old_logit`.")
        return self.old_logit(logits) - _pick(logits, self.new)


def _pick(logits: Tensor, tokens: Tensor) -> Tensor:
    return logits.gather(1, tokens.expand(logits.shape[0])[:, None])[:, 0]
