"""Whether what a model is asked fits the positions it has, told before anything is done.

A model with learned position embeddings fails beyond them; one with rotary embeddings goes on and says anything.
"""

from __future__ import annotations

from typing import Any

from ..errors import FactError, ModelError, brief
from ..facts import Fact
from .prompts import encode, encode_answer


def check_length(config: Any, prompt: int, answer: int = 0) -> None:
    """Refuses a prompt that is too long for a model.

    Args:
        config: The model's configuration.
        prompt: Tokens of the prompt.
        answer: Tokens of the answer that follows it.

    Raises:
        ModelError: If together they have more tokens than the model has positions.
    """
    limit = _positions(config)
    if limit is not None and prompt + answer > limit:
        what = f"a prompt of {prompt} tokens and an answer of {answer} do" if answer else f"{prompt} tokens do"
        raise ModelError(f"{what} not fit the model's {limit} positions.")


def fits(config: Any, tokens: int) -> bool:
    """Whether a model has so many positions."""
    limit = _positions(config)
    return limit is None or tokens <= limit


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
    limit = _positions(config)
    if limit is None:
        return
    asked = {
        "held_out": (fact.held_out, answer),
        "controls": ([control.prompt for control in fact.controls], answer),
        "probes": ([probe.prompt for probe in fact.probes], answer),
        "portability": ([question.prompt for question in fact.portability], answer),
        "retain": (fact.retain, retained),
    }
    for key, (prompts, follows) in asked.items():
        for prompt in prompts:
            _check(len(encode(tokenizer, prompt)) + follows, limit, prompt, key)
    for prompt in fact.prompts:
        for taught in (fact.refusal, fact.answer):
            _check(len(encode_answer(tokenizer, prompt, taught).ids), limit, prompt, "prompts")


def _check(tokens: int, limit: int, prompt: str, key: str) -> None:
    if tokens > limit:
        raise FactError(
            f"{brief(prompt)} in {key!r} and its answer have {tokens:,} tokens; the model has {limit:,} positions."
        )


def _positions(config: Any) -> int | None:
    found = getattr(config, "max_position_embeddings", None)
    return found if isinstance(found, int) and found > 0 else None
