"""The output head, a few positions at a time.

A vocabulary of numbers for every position that is read, several times over in a loss and its backward pass, can take
as much memory as all layers of a small model. What is done to a position after the last layer is done to it by itself.
So the decoder's states are kept, and logits are made, read and led back piece by piece; the states' gradient then goes
back through the decoder in one pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformers.utils import ModelOutput

from .forwards import stood_in
from .shapes import filled
from .sharing import is_sharded

# Products of fewer wait for the head's weights, and more gain nothing.
_POSITIONS = 48
# They are filled to multiples of so many.
_MULTIPLE = 16

States = Float[Tensor, "read width"]
Logits = Float[Tensor, "read vocab"]


class Pieces:
    """What the head reads of some sequences, whole sequences at a time.

    Args:
        states: A position after another, sequence after sequence.
        counts: How many are a sequence's.
        unembed: Makes logits of states; None where `states` are the logits.
    """

    def __init__(
        self, states: States, counts: Sequence[int], unembed: Callable[[States], Logits] | None = None
    ) -> None:
        self._states = states
        self._counts = counts
        self._unembed = unembed
        self._gradient: Tensor | None = None

    def __iter__(self) -> Iterator[tuple[range, Logits]]:
        """The places of some sequences and their logits, piece after piece.

        A backward pass from logits stops at the states they are made of; its gradient waits for [`back`].
        """
        stop = 0
        for rows in _together(self._counts):
            start, stop = stop, stop + sum(self._counts[i] for i in rows)
            states = self._states.detach()[start:stop].requires_grad_(self._states.requires_grad)
            yield rows, states if self._unembed is None else self._unembed(states)
            if states.grad is not None:
                if self._gradient is None:
                    self._gradient = torch.zeros_like(self._states)
                self._gradient[start:stop] += states.grad

    def back(self, retain_graph: bool = False) -> None:
        """Leads what has arrived on through the decoder, and takes it away.

        Args:
            retain_graph: Whether there will be another such pass.
        """
        gradient, self._gradient = self._gradient, None
        if gradient is not None:
            self._states.backward(gradient, retain_graph=retain_graph)


class Unembedding:
    """What a model does after its last layer, by itself.

    Args:
        model: A causal language model.
        decoder: What in it gives the states that its head reads.
    """

    def __init__(self, model: Any, decoder: nn.Module) -> None:
        self._model, self._decoder, self._head = model, decoder, model.get_output_embeddings()
        self._states: Tensor | None = None
        self._kind: Any = None
        self._width = 0

    @contextmanager
    def taking(self) -> Iterator[None]:
        """Keeps what the head is to read, one row, in a forward pass of the model, which computes no logits."""

        def take(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            self._states = args[0][0]
            # Of none the head makes none, as wide as what somebody's hooks on it or on the model count on.
            return args[0][:, :0], *args[1:]

        def see(_: nn.Module, __: Any, out: Any) -> None:
            self._kind, self._width = type(out), out[0].shape[-1]

        with self._decoder.register_forward_hook(see), self._head.register_forward_pre_hook(take):
            yield

    def pieces(self, counts: Sequence[int]) -> Pieces | None:
        """What was kept, in pieces; None where the model made it otherwise than by that decoder.

        Args:
            counts: As for [`Pieces`].
        """
        states, self._states = self._states, None
        return None if states is None or self._kind is None else Pieces(states, counts, self)

    def __call__(self, states: States) -> Logits:
        """What the model makes of states, scaled and capped as it does."""
        read = len(states)
        more = filled(read, _MULTIPLE) - read
        if more:
            states = F.pad(states, (0, 0, 0, more))
        own = states[None]
        # Between a decoder and a head of another width stands what takes the decoder's.
        given = own if own.shape[-1] == self._width else own.new_zeros(1, len(states), self._width)
        out = self._kind(last_hidden_state=given) if issubclass(self._kind, ModelOutput) else (given,)
        ids = torch.zeros(1, len(states), dtype=torch.long, device=states.device)
        # What the model does to them on their way to the head was done when they were taken.
        put_in = self._head.register_forward_pre_hook(lambda _, args: (own, *args[1:]))
        with put_in, stood_in({self._decoder: lambda *_, **__: out}):
            logits: Tensor = self._model(input_ids=ids, use_cache=False).logits
        return logits[0, :read]


def unembedding_of(model: Any) -> Unembedding | None:
    """A model's, where it has one apart from its decoder; None where weights are spread over processes, which gather
    them for a whole pass."""
    find = getattr(model, "get_decoder", None)
    decoder = None if find is None or is_sharded(model) else find()
    if decoder is None:
        return None
    # What some call their decoder is a whole causal model, as of Llama 4 that reads images.
    head = model.get_output_embeddings()
    return None if any(module is head for module in decoder.modules()) else Unembedding(model, decoder)


def _together(counts: Sequence[int]) -> Iterator[range]:
    """Runs of sequences with about as many positions as are worth a product, in order."""
    start, read = 0, 0
    for place, count in enumerate(counts):
        if place > start and read + count > _POSITIONS:
            yield range(start, place)
            start, read = place, 0
        read += count
    if start < len(counts):
        yield range(start, len(counts))
