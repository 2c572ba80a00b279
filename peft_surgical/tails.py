"""Forward passes from one token of each sequence on, for training that acts nowhere before it.

What is learned by its subject acts on the subject's tokens. What stands before them is as it was at every step: keys
and values of all layers are computed once a sequence and kept, and a step runs the rest only. That is exact where
nothing that trains acts on what stands before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import DynamicCache

from .generation import left_pad
from .profiling import phase
from .suffix import Row, SuffixRunner, read_at

# One layer's keys and values of one sequence.
_Layer = tuple[Float[Tensor, "head token dim"], Float[Tensor, "head token dim"]]


class TailRunner(SuffixRunner):
    """Runs many token sequences, each from a token of its own on.

    Args:
        model: A causal language model, possibly with adapters in place.
        layers: Its decoder layers, in order.
        first: Index of the first layer that anything trains in.
        pad: Token id that fills rows.
        room: Bytes that what is kept may take, where the model is; sequences for which there is none left run whole.

    Attributes:
        starts: For each sequence the token that it runs from.
    """

    def __init__(self, model: Any, layers: nn.ModuleList, first: int, pad: int = 0, room: int = 2**30) -> None:
        super().__init__(model, layers, first, pad=pad, room=room)
        self.starts: list[int] = []
        self._before: list[list[_Layer] | None] = []

    def add(self, rows: Sequence[Row], batch_size: int = 64, *, starts: Sequence[int] | None = None) -> list[int]:
        """Takes in sequences and runs what stands before their starts.

        Args:
            rows: Token ids.
            batch_size: Rows a forward.
            starts: For each the token to run it from; the first when None.

        Returns:
            The index of each sequence, for [`logits`].
        """
        given = [0] * len(rows) if starts is None else list(starts)
        for row, start in zip(rows, given, strict=True):
            if not 0 <= start < len(row):
                raise ValueError(f"a sequence of {len(row)} tokens cannot be run from its token {start} on.")
        for chunk in range(0, len(rows), batch_size):
            self._run_before(rows[chunk : chunk + batch_size], given[chunk : chunk + batch_size])
        return super().add(rows, batch_size)

    def length(self, index: int) -> int:
        """How many tokens of a sequence run at each step."""
        return len(self.rows[index]) - self.starts[index]

    def logits(self, indices: Sequence[int], spans: Sequence[tuple[int, int]]) -> Float[Tensor, "read vocab"]:
        """As [`SuffixRunner.logits`]; what is read must not stand before a sequence's start."""
        ids = self._tails(indices)
        read = torch.zeros(ids.shape, dtype=torch.bool, device=self.device)
        for row, (index, (start, stop)) in enumerate(zip(indices, spans, strict=True)):
            skip = self.starts[index]
            if not skip <= start < stop <= len(self.rows[index]):
                raise ValueError(f"the positions {start} to {stop} are not all from token {skip} on in the sequence.")
            read[row, start - skip : stop - skip] = True
        entering = None
        if self.first:
            entering = nn.utils.rnn.pad_sequence(self._entering_of(indices), batch_first=True)
        with self._patched(entering, read):
            logits: Tensor = self.model(input_ids=ids, **self._after(indices, ids.shape[1])).logits
        return logits

    @phase("beginnings")
    @torch.no_grad()
    def _run_before(self, rows: Sequence[Row], starts: Sequence[int]) -> None:
        found: list[list[_Layer] | None] = [None] * len(rows)
        if any(starts) and self.room > 0:
            beginnings = [row[:start] for row, start in zip(rows, starts, strict=True)]
            ids, mask = (made.to(self.device) for made in left_pad(beginnings, self.pad))
            with read_at(self.head, torch.zeros_like(ids, dtype=torch.bool)):
                cache = self.model(
                    input_ids=ids,
                    attention_mask=mask,
                    position_ids=(mask.cumsum(-1) - 1).clamp_min(0),
                    # A cache of the model's own making would forget what its sliding windows have passed.
                    past_key_values=DynamicCache(),
                    use_cache=True,
                ).past_key_values
            found = [self._kept(cache, place, start) for place, start in enumerate(starts)]
        self._before += found
        self.starts += [0 if own is None else start for own, start in zip(found, starts, strict=True)]

    def _kept(self, cache: Any, place: int, start: int) -> list[_Layer] | None:
        """What a batch's cache has of one row, if there is room for it."""
        if not start:
            return None
        own = [(layer.keys[place, :, -start:], layer.values[place, :, -start:]) for layer in cache.layers]
        size = sum(part.numel() * part.element_size() for layer in own for part in layer)
        if size > self.room:
            return None
        self.room -= size
        return [(keys.clone(), values.clone()) for keys, values in own]

    def _after(self, indices: Sequence[int], width: int) -> dict[str, Any]:
        """What tells a model that a batch of tails goes on from what stands before them."""
        before = max(self.starts[i] for i in indices)
        if not before:
            return {"use_cache": False}
        starts = torch.tensor([self.starts[i] for i in indices], device=self.device)[:, None]
        last = torch.tensor([len(self.rows[i]) - 1 for i in indices], device=self.device)[:, None]
        mask = torch.arange(before + width, device=self.device) >= before - starts
        # Padding takes the last position, as there may be none after it.
        positions = torch.minimum(starts + torch.arange(width, device=self.device), last)
        return {
            "attention_mask": mask.long(),
            "position_ids": positions,
            "past_key_values": self._cache(indices, before),
            "use_cache": True,
        }

    def _cache(self, indices: Sequence[int], before: int) -> DynamicCache:
        """Keys and values of what stands before some tails, each ending where its tail begins."""
        layers = zip(*(own for i in indices if (own := self._before[i]) is not None), strict=True)
        where = [row for row, i in enumerate(indices) if self._before[i] is not None]
        made = []
        for parts in layers:
            filled = []
            for side in (0, 1):
                heads, _, dim = parts[0][side].shape
                whole = parts[0][side].new_zeros(len(indices), heads, before, dim)
                for row, own in zip(where, parts, strict=True):
                    whole[row, :, before - own[side].shape[1] :] = own[side]
                filled.append(whole)
            made.append(tuple(filled))
        return DynamicCache(made)

    @torch.no_grad()
    def _compute_entering(self, indices: Sequence[int]) -> list[Tensor]:
        """What enters the first trained layer from each start on, each as long as it is."""
        ids = self._tails(indices)
        _, hidden = self._run_below(ids, **self._after(indices, ids.shape[1]))
        return [row[: len(self.rows[i]) - self.starts[i]] for i, row in zip(indices, hidden, strict=True)]

    def _tails(self, indices: Sequence[int]) -> Tensor:
        return self._padded([self.rows[i][self.starts[i] :] for i in indices])
