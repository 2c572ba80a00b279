"""A subject among the tokens of a text, and other names in its place."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from .drafting.names import bare
from .drafting.tables import read_table
from .facts import TrainingFact
from .prompts import encode, swap_subject
from .text import occurrences, same_text_key


def subject_ends(tokenizer: Any, prompt: str, subject: str, ids: Sequence[int]) -> list[int]:
    """The position of the subject's last token, each time that a prompt or the answer behind it names the subject.

    Args:
        tokenizer: Any Hugging Face tokenizer.
        prompt: Names the subject.
        subject: As the prompt names it, whatever its case.
        ids: The prompt and its answer, tokenized together.
    """
    whole = encode(tokenizer, prompt)
    found: set[int] = set()
    for start, stop in occurrences(prompt, subject):
        # Offsets of tokenizers differ in what they count; what a marker in the subject's place changes does not.
        for marker in ("X", "7", "?"):
            blanked = encode(tokenizer, prompt[:start] + marker + prompt[stop:])
            pairs = enumerate(zip(whole[::-1], blanked[::-1], strict=False))
            tail = next((i for i, (a, b) in pairs if a != b), None)
            if tail is None:
                continue
            head = next(i for i, (a, b) in enumerate(zip(whole, blanked, strict=False)) if a != b)
            end = max(head, len(whole) - tail - 1)
            found.add(end)
            pattern = whole[head : end + 1]
            for at in range(len(whole), len(ids) - len(pattern) + 1):
                if list(ids[at : at + len(pattern)]) == pattern:
                    found.add(at + len(pattern) - 1)
            break
    return sorted(found)


def other_sentences(fact: TrainingFact, count: int, seed: int) -> list[str]:
    """The fact's prompts with other names in the subject's place: its contrast subjects, then names of all kinds."""
    names = sorted({bare(name) for kind in read_table("names.yaml").values() for name in kind})
    random.Random(seed).shuffle(names)
    own = same_text_key(fact.subject)
    others = [
        name
        for name in dict.fromkeys([*fact.contrast, *names])
        if same_text_key(name) not in own and own not in same_text_key(name)
    ]
    made = [
        swap_subject(fact.prompts[i % len(fact.prompts)], fact.subject, name) for i, name in enumerate(others[:count])
    ]
    return [prompt for prompt in dict.fromkeys(made) if fact.may_train_on(prompt)]
