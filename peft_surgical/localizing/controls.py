"""Prompts about other things, to tell what a component does for this fact from what it does for any.

The early MLPs matter for every prompt: they carry the identity of whatever the subject is. To see that, the same
measurement is made on the fact's prompts about its `contrast` subjects and on its `retain` prompts, with the model's
own answer in the place of the old one. What evaluation asks is not among them, even where a swap would make it.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from ..errors import FactError
from ..facts import TrainingFact
from ..texts.prompts import answer_tokens, encode
from ..texts.text import mentions, swap_subject
from .corruption import PromptPair, blur, first_difference, template_tokens
from .runs import Runs

# So many pairs of each kind at most.
LIMIT = 3


def control_pairs(
    tokenizer: Any, fact: TrainingFact, runs: Runs, generator: torch.Generator, max_tokens: int
) -> tuple[PromptPair, ...]:
    """Pairs of contrast prompts (another contrast subject swapped in) and of retain prompts (their own words blurred).

    Args:
        tokenizer: The model's.
        fact: Gives `contrast` and `retain`.
        runs: Finds the model's own answers.
        generator: Decides which, when there are many, and the noise.
        max_tokens: Bounds the memory.

    Returns:
        Pairs whose `old` is the model's own answer to the clean prompt, and `rival` that to the corrupted one.
    """
    drafts = [*_contrast(tokenizer, fact, generator), *_retain(tokenizer, fact, runs, generator)]
    return runs.answered(drafts, max_tokens)


def _contrast(tokenizer: Any, fact: TrainingFact, generator: torch.Generator) -> list[PromptPair]:
    order = torch.randperm(len(fact.contrast), generator=generator, device="cpu").tolist()
    subjects = [fact.contrast[i] for i in order]
    prompts = [prompt for prompt in fact.prompts if mentions(prompt, fact.subject)]
    found: list[PromptPair] = []
    for turn in range(len(prompts) * len(subjects)):
        if len(found) == LIMIT:
            break
        # Walk along the diagonals, so that both prompts and subjects change from pair to pair.
        prompt = prompts[turn % len(prompts)]
        subject = subjects[(turn + turn // len(prompts)) % len(subjects)]
        clean = _context(tokenizer, fact, prompt, subject)
        if clean is None:
            continue
        for other in [*(s for s in subjects if s != subject), fact.subject]:
            corrupted = _context(tokenizer, fact, prompt, other)
            if corrupted is None or len(clean) != len(corrupted):
                continue
            first = first_difference(clean, corrupted)
            if first is not None:
                found.append(PromptPair(prompt, "swap", other, clean, corrupted, None, first, -1, -1))
                break
    return found


def _retain(tokenizer: Any, fact: TrainingFact, runs: Runs, generator: torch.Generator) -> list[PromptPair]:
    template = template_tokens(tokenizer)
    order = torch.randperm(len(fact.retain), generator=generator, device="cpu").tolist()[:LIMIT]
    found = []
    for prompt in (fact.retain[i] for i in order):
        ids = torch.tensor(encode(tokenizer, prompt), device="cpu")
        # One that is too short to be corrupted tells nothing, and is not what the user asks about.
        with suppress(FactError):
            found.append(blur(prompt, ids, -1, -1, (), runs.embed, generator, template))
    return found


def _context(tokenizer: Any, fact: TrainingFact, prompt: str, subject: str) -> Tensor | None:
    if not fact.may_train_on(swap_subject(prompt, fact.subject, subject)):
        return None
    try:
        tokens = answer_tokens(tokenizer, prompt, fact, None if subject == fact.subject else subject)
    except FactError:
        return None
    return torch.tensor(tokens.ids, device="cpu")
