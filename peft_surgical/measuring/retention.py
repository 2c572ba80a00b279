"""Whether the model still speaks as it did: KL to the base and perplexity on text that no fact is about."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from ..counts import check_counts
from ..errors import ModelError
from ..progress import progress_bar
from ..running.alike import check_alike
from ..running.at_once import deal
from ..running.devices import input_device
from ..running.freed import release_freed
from ..running.modes import evaluating, learned_tokens, told_places
from ..running.replicas import Replica, replicas_of, replicate
from ..running.sharing import check_shareable, merged, share
from ..texts.lengths import check_row, positions_of
from ..texts.tables import read_data
from .metrics import Figure, clustered_mean
from .states import State

WINDOW = 256


def check_text_fits(model: Any, tokenizer: Any, tokens: int) -> None:
    """Refuses, before anything is measured, what [`measure_retention`] would of the package's own text.

    Raises:
        ModelError: If the model has no embedding of a token.
    """
    _windows(model, tokenizer, read_data("retention.txt"), tokens, WINDOW)


@torch.no_grad()
def measure_retention(
    model: Any,
    tokenizer: Any,
    states: Mapping[str, State],
    *,
    tokens: int = 2048,
    window: int = WINDOW,
    text: str | None = None,
    progress: bool = False,
) -> dict[str, dict[str, Figure]]:
    """KL to the base and perplexity ratio, on running text.

    A few windows of the text, as many as there are replicas of the model, are read by every state in turn, so that no
    distribution is kept for longer than that.

    Args:
        model: The model; read in evaluation mode, its mode is left as it was.
        tokenizer: Its tokenizer.
        states: State name to a function that returns a context; `base` is the reference.
        tokens: How many tokens to read, from the text's beginning.
        window: Tokens a forward, fewer where the model has fewer positions or `tokens` would make but one window; each
            is predicted from those before it in its window.
        text: The text; the package's own when None.
        progress: Whether to show a progress bar.

    Returns:
        State to `kl_per_token` (mean KL(base‖state), nats) and `perplexity_ratio` (state over base), with intervals by
        windows, as tokens of one are alike; to nothing when there is no token to predict.

    Raises:
        ModelError: If `window` is less than 2 or `tokens` less than 0, the model has no embedding of a token, or a
            state gives logits that are not finite.
    """
    check_counts(2, window=window)
    check_counts(0, tokens=tokens)
    if text is None:
        text = read_data("retention.txt")
    check_shareable(model)
    windows = _windows(model, tokenizer, text, tokens, window)
    check_alike(text=windows, states=[*states])
    if not windows:
        return {name: {} for name in states}
    release_freed()
    every = merged(lambda: _read(model, states, windows, progress))
    numbers = range(len(windows))

    def surprised(name: str) -> list[list[float]]:
        pairs = [(every[number, name][0], every[number, "base"][0]) for number in numbers]
        return [[s - b for s, b in zip(own, base, strict=True)] for own, base in pairs]

    return {
        name: {
            "kl_per_token": _at_least_none(clustered_mean([every[number, name][1] for number in numbers])),
            "perplexity_ratio": _exponential(clustered_mean(surprised(name))),
        }
        for name in states
    }


def _read(
    model: Any, states: Mapping[str, State], windows: list[list[int]], progress: bool
) -> dict[tuple[int, str], tuple[list[float], list[float]]]:
    """Of this process's windows, by their number and the state: surprise and divergence of each token."""
    read: dict[tuple[int, str], tuple[list[float], list[float]]] = {}
    own = share(list(enumerate(windows)))
    order = ["base", *(name for name in states if name != "base")]
    with evaluating(model), progress_bar(len(own) * len(order), "unrelated text", enabled=progress) as bar:
        at_a_time = replicas_of(model)
        for start in range(0, len(own), at_a_time):
            some = own[start : start + at_a_time]
            base: dict[int, Tensor] = {}
            for name in order:
                with states[name]():
                    looks = deal(replicate(model, most=len(some)), some, partial(_look, name=name, base=base))
                for number, log_probs, surprise, divergence in chain(*looks):
                    if log_probs is not None:
                        base[number] = log_probs
                    read[number, name] = surprise, divergence
                bar.update(len(some))
    return read


def _look(
    replica: Replica, windows: Iterator[tuple[int, list[int]]], *, name: str, base: Mapping[int, Tensor]
) -> list[tuple[int, Tensor | None, list[float], list[float]]]:
    """Of some windows the number, what the base predicts at each token but the last if that is not known yet, and how
    far the next token surprises and the prediction diverges from the base's, nats.

    Raises:
        ModelError: If the logits are not finite but where they mask a token, or mask one that is in the text or that
            the base does not.
    """
    model = replica.model
    found = []
    for number, chunk in windows:
        row = torch.tensor([chunk], device=input_device(model))
        own = told_places(model, 0, len(chunk))
        # What a learned prompt predicts of itself comes before.
        log_probs = model(input_ids=row, use_cache=False, **own).logits[0, -len(chunk) : -1].float().log_softmax(-1)
        if log_probs.isnan().any():
            raise ModelError(f"the {name} model gives logits that are not finite in {model.dtype}.")
        surprise = -log_probs.gather(1, row[0, 1:, None])[:, 0]
        of_base = base.get(number, log_probs)
        weights = of_base.exp()
        # A model may mask a part of its vocabulary by infinity, or nearly: what has no weight adds nothing.
        divergence = (of_base - log_probs).mul_(weights).masked_fill_(weights == 0, 0).sum(-1)
        if not (surprise.isfinite().all() and divergence.isfinite().all()):
            raise ModelError(f"the {name} model gives no probability to a token that the text or the base has.")
        # Rounding makes a KL of two equal distributions a little less than the zero it is.
        divergence = divergence.clamp_min_(0)
        found.append((number, None if number in base else log_probs, surprise.tolist(), divergence.tolist()))
    return found


def _windows(model: Any, tokenizer: Any, text: str, tokens: int, window: int) -> list[list[int]]:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"][:tokens]
    begin = tokenizer("a")["input_ids"][:1]
    # Models that expect a beginning-of-sequence token are at a loss without one.
    begin = begin if begin == [tokenizer.bos_token_id] else []
    positions = positions_of(model.config)
    window = (min(window, positions - learned_tokens(model)) if positions else window) - len(begin)
    if window < 1:  # where learned tokens take all positions
        return []
    # An interval by windows needs two of them.
    window = min(window, max(2 - len(begin), math.ceil(len(ids) / 2)))
    cut = [[*begin, *ids[start : start + window]] for start in range(0, len(ids), window)]
    rows = [row for row in cut if len(row) > 1]
    for row in rows:
        check_row(model.config, row)
    return rows


def _at_least_none(figure: Figure) -> Figure:
    """The interval of what cannot be negative."""
    return replace(figure, low=max(figure.low, 0.0))


def _exponential(figure: Figure) -> Figure:
    def exp(value: float) -> float:
        return math.exp(min(value, 700.0))  # the largest that a float holds, nearly; JSON has no infinity

    return Figure(exp(figure.value), figure.n, exp(figure.low), exp(figure.high))
