"""What is measured of a CounterFact case, before and after an edit."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import peft_surgical as ps
from peft_surgical.running.generation import generate_answers

from .baselines import Method
from .broken import unless_broken
from .cases import Case
from .known_facts import KnownFact
from .plain_text import greedily_follows, log_likelihoods

NEW_TOKENS = 10
"""How many tokens of a greedy continuation are looked at."""


def likelihoods(model: Any, tokenizer: Any, case: Case) -> dict[str, dict[str, float]]:
    """Mean log-likelihoods per token of the new and the old answer after each of a case's prompts."""
    asked = {
        "prompt": (case.prompt, case.old),
        "paraphrase": (case.paraphrase, case.old),
        "neighbour": (case.neighbour, case.neighbour_answer),
    }
    pairs = [(prompt, answer) for prompt, old in asked.values() for answer in (case.new, old)]
    found = iter(log_likelihoods(model, tokenizer, pairs))
    return {part: {"new": next(found), "old": next(found)} for part in asked}


def measure(model: Any, tokenizer: Any, case: Case) -> dict[str, dict[str, Any]]:
    """All that is measured of a case in the state that the model is in."""
    prompts = [case.prompt, case.paraphrase, case.neighbour]
    said = unless_broken(
        lambda: generate_answers(model, tokenizer, prompts, max_new_tokens=NEW_TOKENS), [""] * len(prompts)
    )
    found = likelihoods(model, tokenizer, case)
    return {part: {**found[part], "said": text} for part, text in zip(found, said, strict=True)}


def known_neighbours(model: Any, tokenizer: Any, case: Case, known: Sequence[KnownFact]) -> dict[str, int]:
    """Of facts that the base knows, how many the model still completes with their answers, or with the new one."""
    kept = greedily_follows(model, tokenizer, [(fact.prompt, fact.answer) for fact in known])
    leaked = greedily_follows(model, tokenizer, [(fact.prompt, case.new) for fact in known])
    return {"n": len(known), "kept": sum(kept), "leaked": sum(leaked)}


def edit_and_measure(
    model: Any,
    tokenizer: Any,
    method: Method,
    case: Case,
    contexts: tuple[str, ...],
    seed: int,
    known: Sequence[KnownFact] = (),
) -> dict[str, Any]:
    """Edits one case, measures it, and makes sure that the model is the base again.

    Args:
        model: The base.
        tokenizer: Without a chat template.
        method: Edits it.
        case: What to edit.
        contexts: Beginnings that the edit may put before the prompt.
        seed: Of the method.
        known: More neighbours, which the base knows.

    Raises:
        SurgicalError: If the method left the model changed.
    """
    before = likelihoods(model, tokenizer, case)
    started = time.perf_counter()
    with method.edit(model, tokenizer, case.request(contexts, [fact.prompt for fact in known]), seed):
        seconds = time.perf_counter() - started
        measured: dict[str, Any] = measure(model, tokenizer, case)
        if known:
            measured["known_neighbours"] = known_neighbours(model, tokenizer, case, known)
    if likelihoods(model, tokenizer, case) != before:
        raise ps.SurgicalError(f"the method {method.name!r} left the model changed after the case {case.case_id}.")
    return {"seconds": round(seconds, 3), **measured}
