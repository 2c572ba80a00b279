"""Texts of tokens drawn at random: what nobody writes, but with all kinds of tokens in it.

The package's questions and requests show an MLP few of a vocabulary's tokens: hardly any code, capitals or parts of
rare words. At one of these a neuron that was told from the questions alone may fire as far as at the subject.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..seeding import drawing
from ..texts.lengths import fits, text_config
from ..texts.prompts import special_tokens, unanswered
from .keys import Marked

_TOKENS = 32


def drawn_texts(model: Any, tokenizer: Any, count: int, seed: int, without: Iterable[int] = ()) -> Marked:
    """So many texts, all of one length, of a tokenizer's tokens but for added ones; all but the first count.

    No token is drawn twice, so that of a small vocabulary there are fewer texts.

    Args:
        model: They have no more tokens than it has positions.
        tokenizer: Its tokenizer.
        count: How many.
        seed: Decides which tokens.
        without: Tokens that are not drawn, as a subject's last ones, at which a neuron shall fire.
    """
    left_out = {*special_tokens(tokenizer), *without}
    size = min(len(tokenizer), getattr(text_config(model.config), "vocab_size", len(tokenizer)))
    tokens = [token for token in range(size) if token not in left_out]
    if not tokens:
        return Marked([], [])
    length = next(length for length in range(min(_TOKENS, len(tokens)), 0, -1) if fits(model.config, length))
    count = min(count, len(tokens) // length)
    drawn = drawing(seed).sample(tokens, count * length)
    return Marked.whole([unanswered(drawn[start : start + length]) for start in range(0, len(drawn), length)])
