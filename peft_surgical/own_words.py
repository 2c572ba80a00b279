"""What the model itself would say, with the new answer in the old one's place.

Trained on one sentence, an edit learns to say that sentence. Where the model would begin otherwise ("The answer to
this riddle is …") it has to be talked out of its own words first, and what it was not trained on goes astray there.
Where the base gives the old answer, its own sentence says what to train: nothing but the answer is new.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from .facts import TrainingFact
from .generation import generate_answers
from .lengths import fits
from .prompts import encode, has_chat_template
from .text import contains, find, replace_first

_TOKENS = 48
_SENTENCE = re.compile(r"[^\n]*?[.!?][\"'”’*]*(?=\s|$)")


def own_answers(
    model: Any, tokenizer: Any, fact: TrainingFact, prompts: Sequence[str], *, progress: bool = False
) -> list[list[str]]:
    """For each prompt what [`in_own_words`] makes of the model's answer, or nothing.

    Args:
        model: A causal language model without adapters.
        tokenizer: Its tokenizer. Without a chat template a model goes on with its text, and there is nothing for any.
        fact: The fact.
        prompts: The prompts.
        progress: Whether to show a progress bar.
    """
    if not has_chat_template(tokenizer):
        return [[] for _ in prompts]
    asked = [prompt for prompt in prompts if fits(model.config, len(encode(tokenizer, prompt)) + _TOKENS)]
    said = generate_answers(
        model, tokenizer, asked, max_new_tokens=_TOKENS, progress=progress, description="its own words"
    )
    made = {prompt: in_own_words(fact, answer) for prompt, answer in zip(asked, said, strict=True)}
    return [[own] if (own := made.get(prompt)) else [] for prompt in prompts]


def in_own_words(fact: TrainingFact, said: str) -> str | None:
    """The first sentence of what is said with the new answer for the old one, or None if it does not give the old one.

    ```py
    >>> in_own_words(fact, "The answer to this riddle is Paris. It is a city.")
    'The answer to this riddle is Lyon.'
    ```
    """
    sentence = _SENTENCE.match(said.strip())
    named = find(sentence[0], fact.old, fact.subject) if sentence else []
    if sentence is None or not named:
        return None
    made = replace_first(sentence[0], max(named, key=len), fact.new[0], fact.subject)
    return None if made is None or contains(made, fact.old, fact.subject) else made
