"""Beginnings that a model makes up and a prompt is put behind, as ROME samples them (Meng et al. 2022).

An edit that is fitted behind several beginnings holds wherever in a text the subject stands. All methods get the same.
"""

from __future__ import annotations

from typing import Any

import torch

from peft_surgical.prompts import encode

STARTS = ("The", "Therefore", "Because", "I", "You")
LENGTHS = (5, 10)
TOP = 5


@torch.no_grad()
def sample_contexts(model: Any, tokenizer: Any, count: int, seed: int) -> tuple[str, ...]:
    """Beginnings of sentences, each ended by a full stop and a space.

    Args:
        model: The base.
        tokenizer: Without a chat template.
        count: How many, over five first words and two lengths in turn.
        seed: Decides what is drawn among the five likeliest tokens.
    """
    generator = torch.Generator().manual_seed(seed)
    made = []
    for number in range(count):
        start = encode(tokenizer, STARTS[number % len(STARTS)])
        ids = list(start)
        while len(ids) - len(start) < LENGTHS[number // len(STARTS) % len(LENGTHS)]:
            logits = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits[0, -1]
            best = logits.float().cpu().topk(TOP)
            ids.append(int(best.indices[torch.multinomial(best.values.softmax(-1), 1, generator=generator)]))
        made.append(tokenizer.decode(ids, skip_special_tokens=True).strip() + ". ")
    return tuple(made)
