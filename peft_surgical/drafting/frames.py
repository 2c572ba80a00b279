"""The frames that a question, a clause, a noun or the beginning of a sentence is put into, and taken out of again.

```py
>>> frames("clause")[0].replace(SLOT, "who wrote Hamlet")
'Tell me who wrote Hamlet.'
```
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import Literal

from ..texts.grammar import SUBJECT, WORLDWIDE, is_question
from ..texts.tables import read_table

Form = Literal["question", "clause", "noun", "sentence"]
SLOT = SUBJECT

# "the capital of {}", "the highest mountain in {}", "{}'s capital", "the name of {}'s owl": what a subject has one of.
NOUN = (
    r"(?:the|an?) [\w' -]+? (?:of|in|on|at|for|behind|to|from) (?:the |an? )?\{\}"
    r"|the [\w' -]+? by (?:the )?\{\}"
    r"|the (?:[\w'-]+ ){1,3}of (?:the )?\{\}'s?(?: (?!is\b|are\b|was\b|were\b)[\w'-]+){1,3}"
    r"|\{\}'s?(?: (?!is\b|are\b|was\b|were\b)[\w'-]+){1,4}"
    rf"|\{{\}} {WORLDWIDE}"
)


def frames(kind: str, *, held_out: bool = False) -> tuple[str, ...]:
    """The frames of a kind (`question`, `clause`, `noun`, `named`, `sentence`), and neutral sentences (`context`)."""
    return tuple(read_table("frames.yaml")["held_out" if held_out else "training"][kind])


def forms_of(template: str) -> Iterator[tuple[Form, str]]:
    """What a template may be: itself as a question or a sentence, and what stands in each frame that it fits.

    Args:
        template: A prompt with `{}` for its subject.

    Yields:
        The form, and the template without its frame.
    """
    yield _own_form(template), template
    for kind, pattern in _patterns():
        found = pattern.fullmatch(template.strip())
        if found is None or SUBJECT not in found[1]:
            continue
        inner = found[1].strip()
        if kind not in ("question", "sentence") and re.fullmatch(NOUN, inner, re.I):
            yield "noun", inner
        elif kind == "clause" and re.match(r"(?:\w+ )?(?:who|whom|whose|what|which|where|when|how)\b", inner):
            yield "clause", inner
        elif kind == "sentence" or (kind == "question" and _own_form(inner) == "question"):
            yield _own_form(inner), inner


def _own_form(template: str) -> Form:
    return "question" if is_question(template) else "sentence"


@cache
def _patterns() -> tuple[tuple[str, re.Pattern[str]], ...]:
    """How each frame is recognized, whatever the mark at its end."""
    found = []
    for held_out in (False, True):
        for kind in ("question", "clause", "noun", "named", "sentence"):
            for frame in frames(kind, held_out=held_out):
                before, after = (part.strip() for part in frame.split(SLOT))
                ending = re.escape(after) if after.strip("?!. ") else r"[?!.\s]*"
                found.append((kind, re.compile(rf"{re.escape(before)}\s*(.+?){ending}", re.I)))
    return tuple(found)
