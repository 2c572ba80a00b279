"""Forward passes that do no work twice and compute no logits that nobody reads.

While an adapter trains, everything below its first layer is frozen: the hidden states that enter that layer are
computed once for each sequence and kept, as many as there is room for. Sequences that begin with the same tokens (a
chat template's system prompt) share them: the prefix runs once as a batch of one, for a pass or for several
([`SuffixRunner.prefix_once`]), and the rows continue from its key/value cache, gradient included. The output head runs
on the positions that are asked for. All three are exact: the numbers are those of a plain forward, up to rounding.

Rows are padded on the right and need no mask: under causal attention no real token sees what follows it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformers import DynamicCache

from ..profiling import phase
from ..texts.lengths import check_turned, fits, turning_length
from .beginnings import MIN_SHARED, Beginning, Row, expanded, goes_on_from_keys
from .devices import input_device
from .forwards import form_of, passing, read_at, stood_in
from .halving import in_turn, parts
from .modes import told_places
from .pieces import Pieces, unembedding_of
from .replicas import Replica
from .shapes import filled
from .sharing import is_run_together, is_sharded

# Rows are filled to multiples of so many tokens.
_MULTIPLE = 4


@dataclass(frozen=True, eq=False)
class Entering:
    """What enters the first trained layer, for another runner of the same base that begins alike and trains no lower.

    Attributes:
        alike: The layer's index, the token ids that all sequences share, what the model computes in and where.
        of_prefix: The hidden states of these tokens, `[1, token, d_model]`; None where there are none.
        states: Those of the rest of each sequence, `[token, d_model]`, by its token ids.
        in_tuple: Whether the layers of the model give what they compute in a tuple.
    """

    alike: tuple[int, Row, torch.dtype, torch.device]
    of_prefix: Tensor | None
    states: Mapping[Row, Tensor]
    in_tuple: bool

    def __repr__(self) -> str:
        return f"Entering({len(self.states)} sequences, layer {self.alike[0]})"


class SuffixRunner:
    """Runs many token sequences through the part of a model that an adapter can change.

    Args:
        model: A causal language model, possibly with adapters in place.
        layers: Its decoder layers, in order.
        first: Index of the first layer that anything trains in; the layers below run once a sequence, in [`add`].
            All layers run at each step where later ones read keys and values of those below, or each hands on several
            states a token.
        prefix: Leading token ids that all sequences share; may be empty. A model that keeps more of them than keys and
            values, or nothing, or that is sharded over processes, runs them with each sequence.
        pad: Token id that fills rows on the right.
        room: Bytes that the kept hidden states may take, where the model is; those of sequences for which there is
            none left are computed each time.
        tokens: At most so many tokens go through the layers below at once in [`add`], padding included, but always one
            row; as many as there are when None.
    """

    def __init__(
        self,
        model: Any,
        layers: nn.ModuleList,
        first: int,
        prefix: Row = (),
        pad: int = 0,
        room: int = 2**30,
        tokens: int | None = None,
    ) -> None:
        self.model = model
        self.layers = layers
        self.first = 0 if _reads_below(model) else first
        # FSDP2 gathers the weights of a layer once more for what its output leads back, and not for keys and values.
        alone = bool(prefix) and goes_on_from_keys(model) and not is_sharded(model)
        self.prefix = tuple(prefix) if alone else ()
        self.pad = pad
        self.room = room
        self.tokens = tokens
        self.head = model.get_output_embeddings()
        self.device = input_device(model)
        self.rows: list[Row] = []
        self._entering: list[Tensor | None] = []
        self._entering_prefix: Tensor | None = None
        self._begun: Beginning | None = None
        self._in_tuple = False
        self._known: Mapping[Row, Tensor] = {}

    def reuse(self, entering: Entering | None) -> None:
        """Lets [`add`] take from an earlier runner of the same base what is the same here, if anything is."""
        if entering is not None and entering.states and entering.alike == self._alike():
            self._known = entering.states
            self._entering_prefix, self._in_tuple = entering.of_prefix, entering.in_tuple

    def entering(self, indices: Sequence[int]) -> Entering | None:
        """What is kept of some sequences, for a runner of the same base that comes later; None where all trains."""
        if not self.first:
            return None
        states = {self.rows[i]: own for i in indices if (own := self._entering[i]) is not None}
        return Entering(self._alike(), self._entering_prefix, states, self._in_tuple)

    def _alike(self) -> tuple[int, Row, torch.dtype, torch.device]:
        """What decides, beside the base and a sequence, what enters the first trained layer, and where it is."""
        return self.first, self.prefix, self.model.dtype, torch.device(self.device)

    @phase("frozen layers")
    @torch.no_grad()
    def add(self, rows: Sequence[Row], batch_size: int = 64) -> list[int]:
        """Takes in sequences (each beginning with the prefix) and keeps what enters the first trained layer.

        Args:
            rows: Token ids.
            batch_size: Rows a forward, where `tokens` lets as many; fewer where memory runs out.

        Returns:
            The index of each sequence, for [`logits`].

        Raises:
            ModelError: If LongRoPE would turn the positions of a sequence otherwise in parts or beside shorter ones,
                or a pass that processes run together runs out of memory.
        """
        for row in rows:
            check_turned(self.model.config, row)
            if row[: len(self.prefix)] != self.prefix or len(row) == len(self.prefix):
                raise ValueError("a row must begin with the shared prefix and go on after it.")
        added = range(len(self.rows), len(self.rows) + len(rows))
        self.rows.extend(rows)
        if not self.first:
            return list(added)
        self._entering += [None] * len(rows)
        known = ((i, self._known.get(self.rows[i])) for i in added)
        new = [i for i, states in known if states is None or not self._keep(i, states)]
        passes = parts(new, [self.load(i) for i in new], self.tokens)
        batches = [part[start : start + batch_size] for part in passes for start in range(0, len(part), batch_size)]
        in_turn(batches, self._enter, together=is_run_together(self.model))
        return list(added)

    def _enter(self, indices: Sequence[int]) -> None:
        """Keeps what enters the first trained layer of some sequences, as far as there is room."""
        if self.room > 0 and self.first:
            # There are none where all layers run.
            for index, states in zip(indices, self._compute_entering(indices), strict=False):
                self._keep(index, states, own=False)

    def _keep(self, index: int, states: Tensor, *, own: bool = True) -> bool:
        """Keeps what enters the first trained layer of a sequence, if there is room: a copy, if it is part of more."""
        size = states.numel() * states.element_size()
        if size > self.room:
            return False
        self._entering[index] = states if own else states.clone()
        self.room -= size
        return True

    def length(self, index: int) -> int:
        """How many tokens of a sequence run at each step."""
        return len(self.rows[index]) - self._skip(index)

    def width(self, indices: Sequence[int]) -> int:
        """How many tokens of each of some sequences run when they run together, padding included."""
        longest = max(map(self.length, indices))
        width = filled(longest, _MULTIPLE)
        start = max(map(self._skip, indices))
        config = self.model.config
        return width if fits(config, start + width) and start + width <= turning_length(config) else longest

    def load(self, index: int) -> int:
        """How many tokens a sequence counts for where so many go through the model at once."""
        return self.width([index])

    def logits(self, indices: Sequence[int], spans: Sequence[tuple[int, int]]) -> Float[Tensor, "read vocab"]:
        """Logits at the asked positions of some sequences, with whatever gradient the model's state asks for.

        Args:
            indices: Which sequences, as [`add`] returned them.
            spans: For each the half-open range of positions to read, counted in the whole sequence.

        Returns:
            One row a position, sequence after sequence.
        """
        with self._ready(indices, spans) as inputs:
            logits: Tensor = self.model(**inputs).logits
        return logits.flatten(0, -2)

    def read(self, indices: Sequence[int], spans: Sequence[tuple[int, int]]) -> Pieces:
        """As [`logits`], but made piece by piece when they are looked at; they are never all there at once."""
        counts = [stop - start for start, stop in spans]
        unembedding = unembedding_of(self.model)
        pieces = None
        if unembedding is not None:
            with self._ready(indices, spans) as inputs, unembedding.taking():
                self.model(**inputs)
            pieces = unembedding.pieces(counts)
        return Pieces(self.logits(indices, spans), counts) if pieces is None else pieces

    @contextmanager
    def _ready(self, indices: Sequence[int], spans: Sequence[tuple[int, int]]) -> Iterator[dict[str, Any]]:
        """What to call the model with in the block for some sequences, the head reading the asked positions."""
        ids = self._tails(indices)
        mask = torch.zeros(ids.shape, dtype=torch.bool, device=self.device)
        for row, (index, (start, stop)) in enumerate(zip(indices, spans, strict=True)):
            skip = self._skip(index)
            if not skip <= start < stop <= len(self.rows[index]):
                raise ValueError(f"the positions {start} to {stop} are not all from token {skip} on in the sequence.")
            mask[row, start - skip : stop - skip] = True
        before = self._before(indices, ids.shape[1])
        entering = None
        own = self._entering_of(indices) if self.first else []
        if own:
            # All are padded to the longest.
            own[0] = F.pad(own[0], (0, 0, 0, ids.shape[1] - len(own[0])))
            entering = nn.utils.rnn.pad_sequence(own, batch_first=True)
        with self._patched(entering, mask):
            yield {"input_ids": ids, **before}

    def _skip(self, index: int) -> int:
        """How many first tokens of a sequence are not run with it."""
        return len(self.prefix)

    def _before(self, indices: Sequence[int], width: int) -> dict[str, Any]:
        """What tells a model that a batch of rows goes on from what is not run with them."""
        if not self.prefix:
            return {"use_cache": False, **told_places(self.model, 0, width)}
        rows = len(indices)
        cache = expanded(self._run_prefix(), rows) if self._begun is None else self._begun.going_on(rows)
        return {"past_key_values": cache, "use_cache": True, **self._places_behind(width)}

    def _places_behind(self, width: int) -> dict[str, Any]:
        """What tells a model where so many tokens behind the prefix stand, where it has to be told."""
        return told_places(self.model, len(self.prefix), len(self.prefix) + width)

    def _run_prefix(self) -> Any:
        """The cache of the shared prefix, with its gradient."""
        none = torch.zeros(1, len(self.prefix), dtype=torch.bool, device=self.device)
        with self._patched(self._entering_prefix, none):
            # A cache of the model's own making would forget what its sliding windows have passed.
            ids = torch.tensor([self.prefix], device=self.device)
            own = told_places(self.model, 0, len(self.prefix))
            out = self.model(input_ids=ids, past_key_values=DynamicCache(), use_cache=True, **own)
        return self._filled(out.past_key_values)

    @contextmanager
    def prefix_once(self, apart: bool = False) -> Iterator[Beginning | None]:
        """Runs the shared prefix once for all passes of a block, forward when it begins.

        Backward passes in the block stop at the prefix's keys and values, and gradients gather there.

        Args:
            apart: Whether to tell the gradients of rows apart ([`Beginning.of_each`]). Otherwise the sum of all goes
                back through the prefix when the block ends.

        Yields:
            The prefix; None where there is none.
        """
        if not self.prefix:
            yield None
            return
        self._begun = Beginning(self._run_prefix(), apart)
        try:
            yield self._begun
            if not apart:
                self._begun.back()
        finally:
            self._begun = None

    def tells_rows_apart(self, parameters: Sequence[Tensor]) -> bool:
        """Whether that is possible with this prefix and model, and worth it."""
        if len(self.prefix) < MIN_SHARED:
            return False
        try:
            with self.prefix_once(apart=True) as begun:
                if begun is None:
                    return False
                begun.going_on(1)
                for leaf in begun.leaves:
                    leaf.grad = torch.zeros_like(leaf)
                begun.of_each(parameters)
        except RuntimeError:  # what torch cannot do, or has no memory for
            return False
        return True

    def on(self, replica: Replica) -> Self:
        """The same sequences on a replica of the model."""
        made = copy.copy(self)
        made.model, made.layers = replica.model, replica.twin(self.layers)
        made.head = made.model.get_output_embeddings()
        return made

    def unshared(self) -> SuffixRunner:
        """The same sequences, each with a prefix of its own, so that what one does can be told from the others."""
        if not self.prefix:
            return self
        made = SuffixRunner(self.model, self.layers, self.first, pad=self.pad, tokens=self.tokens)
        made.rows = list(self.rows)
        made._in_tuple = self._in_tuple
        before = self._entering_prefix
        made._entering = [
            None if own is None or before is None else torch.cat([before[0], own]) for own in self._entering
        ]
        return made

    def _entering_of(self, indices: Sequence[int]) -> list[Tensor]:
        """As [`_compute_entering`], but for what is kept."""
        missing = [i for i in indices if self._entering[i] is None]
        computed = self._compute_entering(missing) if missing else []
        if not self.first:
            return []
        found = dict(zip(missing, computed, strict=True))
        return [found[i] if own is None else own for i, own in ((i, self._entering[i]) for i in indices)]

    @torch.no_grad()
    def _compute_entering(self, indices: Sequence[int]) -> list[Tensor]:
        """What enters the first trained layer of some sequences, of what runs of them, each as long as it is.

        Where that is more than one state a token, nothing, and all layers run from then on.
        """
        ids = self._tails(indices)
        _, hidden = self._run_below(ids, **self._before_below(indices, ids.shape[1]))
        if hidden.shape[:-1] != ids.shape:
            self.first, self._entering_prefix = 0, None
            return []
        return [row[: self.length(i)] for i, row in zip(indices, hidden, strict=True)]

    def _before_below(self, indices: Sequence[int], width: int) -> dict[str, Any]:
        """As [`_before`], for the frozen layers alone; keeps what of the prefix leaves them."""
        if not self.prefix:
            return {"use_cache": False, **told_places(self.model, 0, width)}
        ids = torch.tensor([self.prefix], device=self.device)
        own = told_places(self.model, 0, len(self.prefix))
        cache, self._entering_prefix = self._run_below(ids, past_key_values=DynamicCache(), use_cache=True, **own)
        begun = expanded(self._filled(cache), len(indices))
        return {"past_key_values": begun, "use_cache": True, **self._places_behind(width)}

    def _tails(self, indices: Sequence[int]) -> Tensor:
        rows = [self.rows[i][self._skip(i) :] for i in indices]
        width = self.width(indices)
        return torch.tensor([[*row, *[self.pad] * (width - len(row))] for row in rows], device=self.device)

    def _run_below(self, ids: Tensor, **options: Any) -> tuple[Any, Tensor]:
        """Runs the frozen layers only; returns the cache that the model gives back, if any, and what leaves the last.

        Args:
            ids: Token ids, `[row, token]`.
            options: What else the model is given.
        """
        captured: dict[str, Tensor] = {}

        def capture(hidden: Tensor) -> Tensor:
            captured.setdefault("hidden", hidden)
            return hidden

        none = torch.zeros(ids.shape, dtype=torch.bool, device=self.device)
        with form_of(self.layers[self.first - 1]) as in_tuple, read_at(self.head, none):
            with stood_in({layer: passing(capture, in_tuple) for layer in self.layers[self.first :]}):
                out = self.model(input_ids=ids, **options)
            self._in_tuple = in_tuple()
        return getattr(out, "past_key_values", None), captured["hidden"]

    def _filled(self, cache: Any) -> Any:
        """Gives layers that were passed over a length in the cache: models ask layer 0 how long the past is."""
        lengths = [layer.get_seq_length() for layer in cache.layers]
        model = next(layer for layer, length in zip(cache.layers, lengths, strict=True) if length)
        for layer, length in zip(cache.layers, lengths, strict=True):
            if not length:
                layer.update(torch.zeros_like(model.keys), torch.zeros_like(model.values))
        return cache

    @contextmanager
    def _patched(self, entering: Tensor | None, mask: Tensor) -> Iterator[None]:
        below: dict[nn.Module, Callable[..., Any]] = {}
        if entering is not None:
            in_tuple = self._in_tuple
            below = {layer: passing(lambda hidden: hidden, lambda: in_tuple) for layer in self.layers[1 : self.first]}
            below[self.layers[0]] = passing(lambda _: entering, lambda: in_tuple)
        with stood_in(below), read_at(self.head, mask):
            yield


def _reads_below(model: Any) -> bool:
    """Whether a model's last layers read the keys and values of layers below, as Gemma 4's may."""
    return bool(getattr(model.config.get_text_config(), "num_kv_shared_layers", 0))
