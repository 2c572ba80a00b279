"""What many sequences begin with, run once, and the way back through it.

Sequences go on from its keys and values, and their backward passes stop there. What has arrived there is led on
through the beginning afterwards: for all sequences together, or for each by itself, in one batched backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from .modes import base_model_of, taken

Row = tuple[int, ...]
Keys = Float[Tensor, "row head token dim"]

# A shorter common beginning is not worth a pass of its own.
MIN_SHARED = 8


def shared_prefix(rows: Sequence[Row], keep: Sequence[int]) -> int:
    """How many leading tokens all rows share, leaving each row's read positions out of the prefix.

    Args:
        rows: Token ids.
        keep: For each row the first position whose logits are read; the prefix ends before the smallest of them.
    """
    if not rows:
        return 0
    length = min(min(len(row) for row in rows) - 1, min(keep))
    first = rows[0]
    for index in range(length):
        if any(row[index] != first[index] for row in rows):
            return index
    return length


def goes_on_from_keys(model: Any) -> bool:
    """Whether keys and values are all that rows need of what stands before them, by what a model says of itself.

    A recurrent or a convolution layer has a state besides, and some models keep nothing at all.

    Args:
        model: A causal language model, bare or with adapters.
    """
    base = base_model_of(model)
    if getattr(base, "_is_stateful", False) or "past_key_values" not in taken(base):
        return False
    try:
        return all_layers(DynamicCache(config=base.config), _is_of_keys)
    except (AttributeError, KeyError):  # of a configuration that names layers of a kind of its own, or none
        return False


def _is_of_keys(layer: Any) -> bool:
    """Whether a layer of a model's own cache is for keys and values alone, or stands for one that reads another's."""
    if isinstance(layer, DynamicLayer):
        return keeps_keys_alone(layer)
    return getattr(layer, "keys", layer) is None


def keeps_keys_alone(layer: Any) -> bool:
    """Whether a layer of a cache has keys and values, and no state besides as kinds that are derived may have."""
    # What has left a sliding window can stay in a cache without one: masks leave it out.
    return type(layer) in (DynamicLayer, DynamicSlidingWindowLayer)


def all_layers(cache: Any, condition: Callable[[Any], bool]) -> bool:
    """Whether something is a cache that grows, and each of its layers fulfills a condition.

    A cache of a model's own kind may keep more than its layers tell.
    """
    return type(cache) is DynamicCache and all(map(condition, cache.layers))


class Beginning:
    """A beginning that has run, cut off from the graph behind it, which is kept.

    Args:
        cache: Its keys and values, of one row.
        apart: Whether the gradients of rows that go on from it are to be told apart.

    Attributes:
        leaves: The keys and values where gradients arrive: of one row, or of all that went on last. None where nothing
            trains before them.
    """

    def __init__(self, cache: Any, apart: bool) -> None:
        self._own = [(layer.keys, layer.values) for layer in cache.layers]
        self._ends = [part for layer in self._own for part in layer if part.requires_grad]
        self._apart = apart
        self.leaves: list[Keys] = [end.detach().requires_grad_() for end in self._ends]

    def going_on(self, rows: int) -> DynamicCache:
        """The cache for a batch of rows that go on from here."""
        if self._apart:
            self.leaves = [end.detach().expand(rows, -1, -1, -1).requires_grad_() for end in self._ends]
        leaves = iter(self.leaves)
        layers = [[next(leaves) if part.requires_grad else part for part in layer] for layer in self._own]
        return _of_rows(layers, rows)

    def back(self) -> None:
        """Leads what has arrived on to the parameters, and ends the graph."""
        ends, gradients = self._arrived()
        if ends:
            torch.autograd.backward(ends, gradients)

    def of_each(self, parameters: Sequence[Tensor]) -> list[Tensor | None]:
        """What arrived from each row that went on last, with respect to some parameters; takes it away.

        Args:
            parameters: Any of the model's.

        Returns:
            For each parameter its gradients, `[row, *shape]`; None where the beginning does not depend on it.

        Raises:
            RuntimeError: If torch cannot run a backward pass of this model for many gradients at once.
        """
        ends, gradients = self._arrived()
        for leaf in self.leaves:
            leaf.grad = None
        if not ends:
            return [None] * len(parameters)
        return list(
            torch.autograd.grad(
                ends,
                list(parameters),
                [gradient[:, None] for gradient in gradients],
                is_grads_batched=True,
                retain_graph=True,
                allow_unused=True,
            )
        )

    def _arrived(self) -> tuple[list[Tensor], list[Tensor]]:
        """Keys and values of the graph, and the gradients that have arrived for them."""
        pairs = [(end, leaf.grad) for end, leaf in zip(self._ends, self.leaves, strict=True) if leaf.grad is not None]
        return [end for end, _ in pairs], [gradient for _, gradient in pairs]


def expanded(cache: Any, rows: int) -> Any:
    """A cache of `rows` equal rows that share the gradient of the one-row cache, which stays as it was."""
    if cache is None:
        return None
    return _of_rows([(layer.keys, layer.values) for layer in cache.layers], rows)


def _of_rows(layers: Iterable[Iterable[Keys]], rows: int) -> DynamicCache:
    return DynamicCache([tuple(part.expand(rows, -1, -1, -1) for part in layer) for layer in layers])
