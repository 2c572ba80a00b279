"""How likely a model finds answers that it is given, batched: nothing is read twice, and no logits that nobody needs.

What all rows begin with runs once, and two answers to one prompt share a row where what has to be read of the one
begins what has to be read of the other: two names of a token each are read off one position.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..counts import check_counts
from ..errors import ModelError
from ..progress import progress_bar
from ..texts.lengths import turning_length
from ..texts.prompts import EncodedAnswer, span
from .alike import check_alike
from .at_once import deal
from .beginnings import MIN_SHARED, Row, shared_prefix
from .devices import input_device
from .freed import release_freed
from .generation import even_batches
from .halving import in_turn
from .modes import base_model_of, evaluating, learns_prompts, told_places
from .replicas import Replica, replicate
from .sharing import check_shareable, is_run_together, merged, share
from .suffix import SuffixRunner


@torch.no_grad()
def log_likelihoods(
    model: Any,
    rows: Sequence[EncodedAnswer],
    *,
    pad: int = 0,
    batch_size: int = 64,
    progress: bool = False,
    description: str = "likelihoods",
) -> list[float]:
    """The mean log-likelihood per token, in nats, of each row's answer behind what stands before it.

    Args:
        model: A causal language model, bare or with adapters; its mode is left as it was.
        rows: Prompts and answers.
        pad: Token id that fills rows on the right.
        batch_size: Rows in one forward pass; replicas of the model run several passes at the same time.
        progress: Whether to show a progress bar.
        description: Stands before the bar.

    Returns:
        One number a row, in the order of `rows`.

    Raises:
        ModelError: If `batch_size` is less than 1, or a token of an answer has no finite log-likelihood.
        ArchitectureError: If the model's output head reads anything but a state for each token.
    """
    check_counts(1, batch_size=batch_size)
    check_shareable(model)
    check_alike(rows=[row.ids for row in rows], batch_size=batch_size)
    reads = _read_once(rows)
    release_freed()
    with evaluating(model), progress_bar(len(reads), description, enabled=progress) as bar:
        found = merged(lambda: _own_likelihoods(model, rows, reads, pad, batch_size, bar))
    return [found[place] for place in range(len(rows))]


def _read_once(rows: Sequence[EncodedAnswer]) -> list[tuple[Row, list[int]]]:
    """What has to be read for some rows, none of it the beginning of another, and the rows that each serves."""
    by_read: dict[Row, list[int]] = {}
    for place, row in enumerate(rows):
        by_read.setdefault(row.read, []).append(place)
    found: list[tuple[Row, list[int]]] = []
    # What begins another stands right before one that it begins, so the longer comes first here.
    for read in sorted(by_read, reverse=True):
        if found and found[-1][0][: len(read)] == read:
            found[-1][1].extend(by_read[read])
        else:
            found.append((read, by_read[read]))
    return found


def _own_likelihoods(
    model: Any, rows: Sequence[EncodedAnswer], reads: list[tuple[Row, list[int]]], pad: int, batch_size: int, bar: Any
) -> dict[int, float]:
    """Those of this process's share, by the places of the rows."""
    spans = [_hull([span(rows[place]) for place in places]) for _, places in reads]
    longest = max((len(read) for read, _ in reads), default=0)
    # The longest row of a pass may decide how positions are turned. What is learned to stand before one is seen by the
    # head, too.
    plain = learns_prompts(model) or longest > turning_length(base_model_of(model).config)
    order = sorted(range(len(reads)), key=lambda place: -len(reads[place][0]))
    batch_size = 1 if plain else batch_size
    replicas = replicate(model, most=-(-len(reads) // batch_size))
    batches = share(even_batches(order, batch_size, len(replicas)))
    prefix = 0 if plain else shared_prefix([read for read, _ in reads], [start for start, _ in spans])
    runner = None
    if not plain:
        begun = reads[0][0][:prefix] if prefix >= MIN_SHARED and len(reads) > 1 else ()
        runner = SuffixRunner(model, nn.ModuleList(), 0, begun, pad)
        runner.add([read for read, _ in reads])

    def read(replica: Replica, own: Iterator[Sequence[int]]) -> dict[int, float]:
        found: dict[int, float] = {}
        if runner is None:
            for place in (place for batch in own for place in batch):
                found |= _of_read(
                    rows, reads[place][1], spans[place], _plainly(replica.model, reads[place][0], spans[place])
                )
                bar.update(1)
            return found
        reading = runner.on(replica)
        with reading.prefix_once():
            for batch in own:
                passes = in_turn([[*batch]], partial(_logits, reading, spans), together=is_run_together(model))
                for places, apart in passes:
                    for place, logits in zip(places, apart, strict=True):
                        found |= _of_read(rows, reads[place][1], spans[place], logits)
                    bar.update(len(places))
        return found

    return {place: value for found in deal(replicas, batches, read) for place, value in found.items()}


def _hull(spans: Sequence[tuple[int, int]]) -> tuple[int, int]:
    return min(start for start, _ in spans), max(stop for _, stop in spans)


def _logits(
    runner: SuffixRunner, spans: Sequence[tuple[int, int]], places: Sequence[int]
) -> list[Float[Tensor, "read vocab"]]:
    asked = [spans[place] for place in places]
    return list(runner.logits(places, asked).split([stop - start for start, stop in asked]))


def _plainly(model: Any, read: Row, asked: tuple[int, int]) -> Float[Tensor, "read vocab"]:
    """The same of one row in a forward pass of its own, behind what an adapter has learned to put before it."""
    ids = torch.tensor([read], device=input_device(model))
    logits: Tensor = model(input_ids=ids, use_cache=False, **told_places(model, 0, len(read))).logits
    return logits[0, -len(read) :][slice(*asked)]


def _of_read(
    rows: Sequence[EncodedAnswer], places: Sequence[int], asked: tuple[int, int], logits: Float[Tensor, "read vocab"]
) -> dict[int, float]:
    """The likelihoods of the rows that one read serves.

    Raises:
        ModelError: If one is not finite.
    """
    log_probs = logits.float().log_softmax(-1)
    found = {}
    for place in places:
        row = rows[place]
        start, stop = (position - asked[0] for position in span(row))
        labels = torch.tensor(row.ids[row.answer_start :], device=log_probs.device)
        value = log_probs[start:stop].gather(1, labels[:, None]).mean()
        if not value.isfinite():
            raise ModelError("the model's logits are not finite, or hide a token of an answer that it is asked about.")
        found[place] = float(value)
    return found
