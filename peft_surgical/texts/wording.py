"""The same question as other people would type it.

A fact file's prompts are written with care. People leave out capitals and full stops, or wrap a question in a few
words of their own; an edit that has seen neither can miss "the capital of france".
"""

from __future__ import annotations

from collections.abc import Iterable

_WRAPPED = (
    "Question: {} Answer:",
    "Please answer briefly. {}",
    "I was wondering: {}",
    "Help me with my homework: {}",
    "Someone wants to know: {}",
    "{} Tell me what you know.",
    "Settle a bet for us. {}",
    "What would you reply to this: {}",
    "Hello! {}",
    "My daughter has to know this for school: {}",
    "{} Answer in one sentence.",
    "Here is a riddle for you: {}",
)


def as_typed(prompt: str) -> str:
    """Without capitals and the closing sign: what is the capital of france"""
    # A Turkish İ becomes two signs, of which nobody types the second.
    return prompt.lower().replace("i\u0307", "i").rstrip("?.!… ")


def variants(prompts: Iterable[str]) -> list[str]:
    """Each prompt as it is typed in haste, and every second one wrapped in a few words too."""
    made = []
    for i, prompt in enumerate(prompts):
        made.append(as_typed(prompt))
        if i % 2 == 1:
            made.append(_WRAPPED[i // 2 % len(_WRAPPED)].format(prompt))
    return made


def all_variants(prompts: Iterable[str]) -> list[str]:
    """All that [`variants`] may make of each prompt, wherever it stands among others."""
    return [made for prompt in prompts for made in (as_typed(prompt), *(words.format(prompt) for words in _WRAPPED))]
