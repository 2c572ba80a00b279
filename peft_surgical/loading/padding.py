"""A token to pad with, where a tokenizer has none: for what runs here, and not for what is written."""

from __future__ import annotations

import copy
from typing import Any

_LENT = "_peft_surgical_lent_padding"


def lend_padding(tokenizer: Any) -> None:
    """Lets a tokenizer that has no token to pad with take the one that ends a text."""
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
        setattr(tokenizer, _LENT, True)


def as_it_came(tokenizer: Any) -> Any:
    """The tokenizer without what it was lent, or itself if that is nothing, or its owner has chosen another since.

    Who trains on a merged checkpoint would mask the end of each text with the padding, and teach a model that never
    ends.
    """
    if not getattr(tokenizer, _LENT, False) or tokenizer.pad_token != tokenizer.eos_token:
        return tokenizer
    own = copy.deepcopy(tokenizer)
    own.pad_token = None
    return own
