"""Forward passes from one token of each sequence on, for training that acts nowhere before it.

What is learned by its subject acts on the subject's tokens. What stands before them is as it was at every step: keys
and values of all layers are computed once, for all sequences that begin alike, and a step runs the rest only. That is
exact where nothing that trains acts on what stands before (`by_subject`), and leaves out what it does there else
(`keyed`, `keyed_by_subject`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DynamicCache

from ..profiling import phase
from .beginnings import MIN_SHARED, Row, expanded, goes_on_from_keys, shared_prefix
from .forwards import read_at
from .halving import in_turn, parts
from .modes import base_model_of, needs_no_padding, taken, told_places
from .sharing import is_run_together
from .suffix import SuffixRunner

# So many tokens of beginnings, padding included, run at once.
_TOKENS = 4096
# So many tokens whose keys and values are read take about the memory of one that runs.
_READ = 4
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
            A step needs more: the keys and values of its sequences, each padded to the longest of them.
        tokens: At most so many tokens run at once in [`add`], by [`load`] or as beginnings, but always one row; as
            many as there are when None, of beginnings 4,096.

    Attributes:
        starts: For each sequence the token that it runs from.
    """

    def __init__(
        self,
        model: Any,
        layers: nn.ModuleList,
        first: int,
        pad: int = 0,
        room: int = 2**30,
        tokens: int | None = None,
    ) -> None:
        super().__init__(model, layers, first, pad=pad, room=room, tokens=tokens)
        self.starts: list[int] = []
        self._kept: list[list[_Layer] | None] = []

    def add(self, rows: Sequence[Row], batch_size: int = 64, *, starts: Sequence[int] | None = None) -> list[int]:
        """Takes in sequences and runs what stands before their starts.

        Args:
            rows: Token ids.
            batch_size: Rows a forward, where `tokens` lets as many; fewer where memory runs out.
            starts: For each the token to run it from; the first when None, and where the model keeps more of what
                stands before than keys and values, or nothing, or is told no positions.

        Returns:
            The index of each sequence, for [`logits`].
        """
        given = [0] * len(rows) if starts is None else list(starts)
        for row, start in zip(rows, given, strict=True):
            if not 0 <= start < len(row):
                raise ValueError(f"a sequence of {len(row)} tokens cannot be run from its token {start} on.")
        # Without positions a model counts on from all that is kept, the padding before shorter beginnings included.
        told = "position_ids" in taken(base_model_of(self.model))
        if not told or (any(given) and not goes_on_from_keys(self.model)):
            given = [0] * len(rows)
        taken_in = len(self.starts)
        self.starts += [0] * len(rows)
        self._kept += [None] * len(rows)
        places: dict[Row, list[int]] = {}
        for place, (row, start) in enumerate(zip(rows, given, strict=True)):
            if start:
                places.setdefault(row[:start], []).append(taken_in + place)
        begun = self._common([*places])
        # First what many begin with, as a template: it takes least room for what it saves.
        for several in (True, False):
            some = [beginning for beginning, own in places.items() if (len(own) > 1) == several]
            passes = [[i] for i in range(len(some))]
            if not needs_no_padding(self.model):
                passes = parts(range(len(some)), [*map(len, some)], min(self.tokens or _TOKENS, _TOKENS))

            def run(part: Sequence[int], some: Sequence[Row] = some) -> None:
                if self.room > 0:
                    self._run_before({some[i]: places[some[i]] for i in part}, begun)

            in_turn(passes, run, together=is_run_together(self.model))
        return super().add(rows, batch_size)

    def load(self, index: int) -> int:
        """The tokens that run, and a part of those whose keys and values they read."""
        return self.width([index]) + self.starts[index] // _READ

    def _skip(self, index: int) -> int:
        return self.starts[index]

    def _common(self, beginnings: Sequence[Row]) -> DynamicCache:
        """Keys and values of what all beginnings begin with, where that is long enough to be worth it."""
        # A cache of the model's own making would forget what its sliding windows have passed.
        cache = DynamicCache()
        length = shared_prefix(beginnings, [len(beginning) - 1 for beginning in beginnings])
        if len(beginnings) > 1 and length >= MIN_SHARED:
            self._read_on(cache, torch.tensor([beginnings[0][:length]], device=self.device))
        return cache

    def _run_before(self, beginnings: Mapping[Row, Sequence[int]], begun: DynamicCache) -> None:
        """Keeps the keys and values of some beginnings, for the sequences that begin so."""
        cache, length = expanded(begun, len(beginnings)), begun.get_seq_length()
        # What fills them stands behind them, where no token of theirs sees it.
        tails = [torch.tensor(beginning[length:], device=self.device) for beginning in beginnings]
        self._read_on(cache, nn.utils.rnn.pad_sequence(tails, batch_first=True, padding_value=self.pad))
        for row, (beginning, places) in enumerate(beginnings.items()):
            own = self._taken(cache, row, len(beginning))
            if own is not None:
                for place in places:
                    self._kept[place], self.starts[place] = own, len(beginning)

    def _taken(self, cache: Any, row: int, start: int) -> list[_Layer] | None:
        """What a batch's cache has of one row, if there is room for it."""
        own = [(layer.keys[row, :, :start], layer.values[row, :, :start]) for layer in cache.layers]
        size = sum(part.numel() * part.element_size() for layer in own for part in layer)
        if size > self.room:
            return None
        self.room -= size
        return [(keys.clone(), values.clone()) for keys, values in own]

    @phase("beginnings")
    @torch.no_grad()
    def _read_on(self, cache: DynamicCache, ids: Int[Tensor, "row token"]) -> None:
        """Adds the keys and values of more tokens to a cache of as many rows."""
        rows, width = ids.shape
        before = cache.get_seq_length()
        with read_at(self.head, torch.zeros_like(ids, dtype=torch.bool)):
            self.model(
                input_ids=ids,
                attention_mask=torch.ones(rows, before + width, dtype=torch.long, device=self.device),
                position_ids=torch.arange(before, before + width, device=self.device).expand(rows, -1),
                past_key_values=cache,
                use_cache=True,
            )

    def _before(self, indices: Sequence[int], width: int, layers: int | None = None) -> dict[str, Any]:
        before = max(self.starts[i] for i in indices)
        if not before:
            return {"use_cache": False, **told_places(self.model, 0, width)}
        starts = torch.tensor([self.starts[i] for i in indices], device=self.device)[:, None]
        last = torch.tensor([len(self.rows[i]) - 1 for i in indices], device=self.device)[:, None]
        mask = torch.arange(before + width, device=self.device) >= before - starts
        # Padding takes the last position, as there may be none after it.
        positions = torch.minimum(starts + torch.arange(width, device=self.device), last)
        return {
            "attention_mask": mask.long(),
            "position_ids": positions,
            "past_key_values": self._cache(indices, layers),
            "use_cache": True,
        }

    def _cache(self, indices: Sequence[int], layers: int | None) -> DynamicCache:
        """Keys and values, in the first layers or all, of what stands before some tails, each ending where its tail
        begins."""
        kept = [own and own[:layers] for own in (self._kept[i] for i in indices)]
        some = next(own for own in kept if own is not None)
        none = [(keys[:, :0], values[:, :0]) for keys, values in some]
        by_layer = zip(*(own or none for own in kept), strict=True)
        return DynamicCache([tuple(map(_ending_together, zip(*layer, strict=True))) for layer in by_layer])

    def _before_below(self, indices: Sequence[int], width: int) -> dict[str, Any]:
        return self._before(indices, width, self.first)


def _ending_together(parts: Sequence[Float[Tensor, "head token dim"]]) -> Float[Tensor, "row head token dim"]:
    by_token = [part.transpose(0, 1) for part in parts]
    return nn.utils.rnn.pad_sequence(by_token, batch_first=True, padding_side="left").transpose(1, 2)
