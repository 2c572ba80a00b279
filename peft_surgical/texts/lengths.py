"""Whether what a model is asked fits the positions and the vocabulary it has, told before anything is done.

A model with learned position embeddings fails beyond them; one with rotary embeddings goes on and says anything.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..errors import FactError, ModelError, brief
from ..facts import Fact
from .prompts import encode, encode_answer


def check_row(
    config: Any, ids: Sequence[int], answer: int = 0, *, learned: int = 0, prompt: str | None = None
) -> None:
    """Refuses a prompt that is too long for a model, or of another model's tokenizer.

    Args:
        config: The model's configuration.
        ids: The prompt's token ids.
        answer: Tokens of the answer that follows it.
        learned: Tokens that an adapter has learned to put before it.
        prompt: Its text, where that is known, to name it by.

    Raises:
        ModelError: If together they have more tokens than the model has positions, or the model has no embedding of a
            token.
    """
    limit = positions_of(config)
    if limit is not None and learned + len(ids) + answer > limit:
        what = f"a prompt of {len(ids)} tokens" if answer else f"{len(ids)} tokens"
        before = f", {learned} that an adapter learned before it," if learned else ""
        behind = f" and an answer of {answer}" if answer else ""
        named = "" if prompt is None else f": {brief(prompt)}"
        raise ModelError(f"{what}{before}{behind} do not fit the model's {limit} positions{named}.")
    if not _embedded(config, highest := max(ids, default=0)):
        size = text_config(config).vocab_size
        raise ModelError(
            f"the tokenizer gives token {highest}, and the model has embeddings of {size} tokens"
            " only: take the model's own tokenizer, or add embeddings by resize_token_embeddings."
        )


def padding(config: Any, tokenizer: Any) -> int:
    """What to fill rows with: the tokenizer's padding, or where the model has no embedding of it, any token.

    Padding is masked. Many a tokenizer was given a padding token that its model was never told of.
    """
    pad = tokenizer.pad_token_id
    return pad if pad is not None and _embedded(config, pad) else 0


def fits(config: Any, tokens: int) -> bool:
    """Whether a model has so many positions."""
    limit = positions_of(config)
    return limit is None or tokens <= limit


def turning_length(config: Any) -> float:
    """Up to how many tokens all positions are turned alike; beyond it LongRoPE turns every row of a pass otherwise."""
    text = text_config(config)
    told = getattr(text, "rope_parameters", None) or {}
    ropes = [rope for rope in (told, *told.values()) if isinstance(rope, dict) and rope.get("rope_type") == "longrope"]
    own = getattr(text, "original_max_position_embeddings", None)
    return min((rope.get("original_max_position_embeddings") or own or math.inf for rope in ropes), default=math.inf)


def check_turned(config: Any, ids: Sequence[int]) -> None:
    """Refuses a row that cannot be run in parts or beside shorter ones, as training runs its rows.

    Raises:
        ModelError: If it is longer than [`turning_length`].
    """
    if len(ids) > (limit := turning_length(config)):
        raise ModelError(
            f"a prompt and its answer have {len(ids)} tokens, and beyond {limit} LongRoPE turns positions otherwise,"
            " also those of shorter prompts beside it; train on shorter ones."
        )


def check_fact_fits(config: Any, tokenizer: Any, fact: Fact, *, answer: int, retained: int) -> None:
    """Refuses a fact of which some prompt, with the answer that follows it, is too long for a model.

    Args:
        config: The model's configuration.
        tokenizer: Its tokenizer.
        fact: All its prompts are looked at.
        answer: Tokens of an answer to what evaluation asks.
        retained: Tokens of an answer that training keeps.

    Raises:
        FactError: If one does not fit; names the list, the prompt and the lengths.
    """
    limit = positions_of(config)
    if limit is None:
        return
    check_asked_fits(config, tokenizer, fact, answer=answer)
    for prompt in fact.retain:
        _check(len(encode(tokenizer, prompt)) + retained, limit, prompt, "retain")
    for prompt in fact.prompts:
        for taught in (fact.refusal, fact.answer):
            _check(len(encode_answer(tokenizer, prompt, taught).ids), limit, prompt, "prompts")


def check_asked_fits(config: Any, tokenizer: Any, fact: Fact, *, answer: int) -> None:
    """As [`check_fact_fits`], of what evaluation asks alone.

    Args:
        config: The model's configuration.
        tokenizer: Its tokenizer.
        fact: Its held-out prompts, controls, probes and portability questions are looked at.
        answer: Tokens of an answer to each.

    Raises:
        FactError: If one does not fit; names the list, the prompt and the lengths.
    """
    limit = positions_of(config)
    if limit is None:
        return
    asked = {
        "held_out": fact.held_out,
        "controls": [control.prompt for control in fact.controls],
        "probes": [probe.prompt for probe in fact.probes],
        "portability": [question.prompt for question in fact.portability],
    }
    for key, prompts in asked.items():
        for prompt in prompts:
            _check(len(encode(tokenizer, prompt)) + answer, limit, prompt, key)


def _check(tokens: int, limit: int, prompt: str, key: str) -> None:
    if tokens > limit:
        raise FactError(
            f"{brief(prompt)} in {key!r} and its answer have {tokens:,} tokens; the model has {limit:,} positions."
        )


def _embedded(config: Any, token: int) -> bool:
    size = getattr(text_config(config), "vocab_size", None)
    return not isinstance(size, int) or token < size


def positions_of(config: Any) -> int | None:
    """How many positions a model has, by its configuration; None where that does not tell."""
    found = getattr(text_config(config), "max_position_embeddings", None)
    return found if isinstance(found, int) and found > 0 else None


def text_config(config: Any) -> Any:
    """Of a model that reads images, too, the part of its configuration that is about text, and else the whole."""
    return config.get_text_config() if hasattr(config, "get_text_config") else config
