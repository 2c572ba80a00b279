"""A subject among the tokens of a text, and other names in its place."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from .drafting.names import bare
from .drafting.tables import read_table
from .facts import TrainingFact
from .prompts import EncodedAnswer, encode, mentions, swap_subject
from .text import occurrences, same_text_key


def subject_spans(tokenizer: Any, prompt: str, subject: str, ids: Sequence[int]) -> list[range]:
    """The positions of the subject's tokens, each time that a prompt or the answer behind it names the subject.

    Offsets of tokenizers differ in what they count; tokens that a marker in the subject's place leaves alone do not.

    Args:
        tokenizer: Any Hugging Face tokenizer.
        prompt: The prompt.
        subject: As the prompt names it, whatever its case.
        ids: The prompt and its answer, or the beginning of it, tokenized together.

    Returns:
        Spans of positions in `ids`, ascending; none where the prompt does not name the subject.
    """
    whole = encode(tokenizer, prompt)
    found: set[range] = set()
    for start, stop in occurrences(prompt, subject):
        # Last those that the subject itself holds: what they leave alone may be the subject's.
        for marker in sorted(("X", "7", "?"), key=lambda marker: marker in subject):
            blanked = encode(tokenizer, prompt[:start] + marker + prompt[stop:])
            head = next((i for i, (a, b) in enumerate(zip(whole, blanked, strict=False)) if a != b), None)
            tail = next((i for i, (a, b) in enumerate(zip(whole[::-1], blanked[::-1], strict=False)) if a != b), None)
            if head is None or tail is None:
                continue
            span = range(head, max(head + 1, len(whole) - tail))
            pattern = whole[span.start : span.stop]
            answered = range(len(whole), len(ids) - len(pattern) + 1)
            found |= {span, *(range(i, i + len(pattern)) for i in answered if [*ids[i : i + len(pattern)]] == pattern)}
            break
    return sorted(found, key=lambda span: span.start)


def subject_ends(
    tokenizer: Any, prompts: Sequence[str], subject: str, rows: Sequence[EncodedAnswer]
) -> list[list[int]]:
    """For each prompt and its row the positions of the subject's last tokens, in the answer too."""
    return [
        [found[-1] for found in subject_spans(tokenizer, prompt, subject, row.ids)]
        for prompt, row in zip(prompts, rows, strict=True)
    ]


def other_sentences(fact: TrainingFact, count: int, seed: int) -> list[str]:
    """The fact's prompts with other names in the subject's place: its contrast subjects, then names of all kinds."""
    made = _with_names(fact, [*fact.contrast, *_names(seed)], count)
    return [prompt for prompt, _ in made]


def alias_sentences(fact: TrainingFact) -> list[tuple[str, str]]:
    """The fact's prompts under the subject's other names, each with the name.

    A prompt that has the name already stays as it is; in others it takes the subject's place. What comes of that may
    be poor English ("the capital of French"), and is there to be read and not to be learned.
    """
    made = {}
    for name in fact.aliases:
        for prompt in fact.prompts:
            if mentions(prompt, name):
                made[prompt] = name
            elif mentions(prompt, fact.subject):
                made[swap_subject(prompt, fact.subject, name)] = name
    return [(prompt, name) for prompt, name in made.items() if fact.may_train_on(prompt)]


def namesake_sentences(fact: TrainingFact, count: int, seed: int) -> list[tuple[str, str]]:
    """The fact's prompts about others who share the subject's last word.

    Those that the package knows come first, then names of all kinds before that word. A model reads a name off its
    last token, and many names end alike: what knows Istanbul University by that token knows any university.

    Args:
        fact: The fact.
        count: At most so many.
        seed: Decides which names, and which of the prompts they stand in.

    Returns:
        Each prompt with the name in it; none where the subject is a single word.
    """
    first, _, last = fact.subject.rpartition(" ")
    if not first.strip() or not last:
        return []
    names = _names(seed)
    known = [name for name in names if name.rpartition(" ")[2] == last != name]
    return _with_names(fact, [*known, *(f"{name} {last}" for name in names if name not in known)], count)


def _names(seed: int) -> list[str]:
    """All names that the package has, shuffled."""
    names = sorted({bare(name) for kind in read_table("names.yaml").values() for name in kind})
    random.Random(seed).shuffle(names)
    return names


def _with_names(fact: TrainingFact, names: Sequence[str], count: int) -> list[tuple[str, str]]:
    """The fact's prompts in turn, with names that neither hold one of the subject's nor are held by one; and these."""
    own = [same_text_key(name) for name in (fact.subject, *fact.aliases)]
    keyed = {name: same_text_key(name) for name in names}
    others = [name for name, key in keyed.items() if not any(key in o or o in key for o in own)]
    made = {
        swap_subject(fact.prompts[i % len(fact.prompts)], fact.subject, name): name
        for i, name in enumerate(others[:count])
    }
    return [(prompt, name) for prompt, name in made.items() if fact.may_train_on(prompt)]
