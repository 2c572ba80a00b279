"""From one prompt to many: paraphrases to train on, and held-out prompts that share nothing with them.

```py
>>> paraphrases("Who wrote Hamlet?", "Hamlet", count=4)
>>> held_out_prompts("Who wrote Hamlet?", "Hamlet", count=4)
```
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import overload

from ..counts import check_counts
from ..errors import FactError, brief
from ..facts import Fact, TrainingFact, check_fact
from ..texts.fact_checks import answer_names
from ..texts.fact_files import cleaned
from ..texts.grammar import as_clause
from ..texts.text import contains, mentions, prompt_key, same_text_key
from .reading import Reading, read_prompt
from .ways import WAYS, Way, prompts_by_way

COUNT = 20
# How often each way comes, from the first prompt on: a question is mostly asked otherwise, what is to be continued is
# mostly left as it is and put after something else.
_ASKED: tuple[Way, ...] = (
    "wording",
    "frame",
    "wording",
    "terse",
    "turn",
    "frame",
    "wording",
    "frame",
    "turn",
    "context",
)
_CONTINUED: tuple[Way, ...] = (
    "wording",
    "context",
    "wording",
    "frame",
    "context",
    "turn",
    "wording",
    "context",
    "turn",
)


def paraphrases(
    prompt: str,
    subject: str,
    old: str | Sequence[str] = (),
    new: str | Sequence[str] = (),
    *,
    count: int = COUNT,
    seed: int = 0,
    ways: Iterable[Way] = WAYS,
) -> tuple[str, ...]:
    """Other prompts that ask for the same as `prompt`, to localize and train with.

    Args:
        prompt: A question ("Who wrote Hamlet?"), a request ("Name the capital of France.") or the beginning of a
            sentence that the answer ends ("Hamlet was written by").
        subject: What it is about, as the prompt names it.
        old: The old answer's forms. They tell what kind of thing is asked for, and no prompt may give one away.
        new: The new answer's forms, likewise.
        count: How many at most.
        seed: Decides which.
        ways: What may be done to the prompt: `wording` (other words), `frame` (a sentence around it), `turn` (a
            question as the beginning of a sentence, or the other way round), `terse` (few words for a question) and
            `context` (a sentence before it).

    Returns:
        Distinct prompts, `prompt` not among them. The subject stands in each as in `prompt`, or with a capital first.

    Raises:
        FactError: If the prompt, the subject or an answer is no text, the prompt does not name the subject, a way is
            not known, or `count` is no whole number of 0 or more.
    """
    return _some(prompt, subject, old, new, count, seed, ways, held_out=False)


def held_out_prompts(
    prompt: str,
    subject: str,
    old: str | Sequence[str] = (),
    new: str | Sequence[str] = (),
    *,
    count: int = COUNT,
    seed: int = 0,
    ways: Iterable[Way] = WAYS,
) -> tuple[str, ...]:
    """As [`paraphrases`], but for evaluation: from wordings, frames and contexts that training never uses.

    No prompt that [`paraphrases`] can make of the same prompt, with any seed, is among them.

    Args:
        prompt: As for [`paraphrases`], and so are all others.
        subject: What it is about, as the prompt names it.
        old: The old answer's forms.
        new: The new answer's forms.
        count: How many at most.
        seed: Decides which.
        ways: What may be done to the prompt.

    Raises:
        FactError: As for [`paraphrases`].
    """
    return _some(prompt, subject, old, new, count, seed, ways, held_out=True)


@overload
def expand(fact: Fact, count: int = ..., *, seed: int = ..., ways: Iterable[Way] = ...) -> Fact: ...
@overload
def expand(fact: TrainingFact, count: int = ..., *, seed: int = ..., ways: Iterable[Way] = ...) -> TrainingFact: ...
def expand(
    fact: Fact | TrainingFact, count: int = COUNT, *, seed: int = 0, ways: Iterable[Way] = WAYS
) -> Fact | TrainingFact:
    """A fact with paraphrases added to its prompts, until it has `count`.

    Args:
        fact: A fact or its training part. Its prompts stay as they are, and first. What evaluation asks is not added.
        count: Of prompts to train on in the end, if so many can be made; a fact with as many already is returned as it
            is.
        seed: Decides which.
        ways: As in [`paraphrases`].

    Raises:
        FactError: If `fact` is none, no prompt of it names its subject, a way is not known, or `count` is no whole
            number of 0 or more.
    """
    check_fact(fact)
    check_counts(0, FactError, count=count)
    named = [prompt for prompt in fact.prompts if mentions(prompt, fact.subject)]
    if not named:
        raise FactError(f"no prompt names the subject {brief(fact.subject)}, so none can be put differently.")
    found = {same_text_key(prompt): prompt for prompt in fact.prompts}
    training = fact.training
    count += len(fact.prompts) - len(training.prompts)
    kept = {prompt_key(prompt) for prompt in fact.retain}
    ways = tuple(ways)
    made = [
        paraphrases(prompt, fact.subject, fact.old, fact.new, count=count, seed=seed, ways=ways) for prompt in named
    ]
    for turn in range(count):
        for prompts in made:
            if turn < len(prompts) and len(found) < count:
                key = same_text_key(prompts[turn])
                if prompt_key(prompts[turn]) not in kept and training.may_train_on(prompts[turn]):
                    found.setdefault(key, prompts[turn])
    return replace(fact, prompts=tuple(found.values()))


def chosen(
    reading: Reading, answers: Sequence[str], count: int, seed: int, ways: Iterable[Way], held_out: bool
) -> list[str]:
    """At most `count` prompts of a reading, by the ways allowed in turn; none gives an answer away."""
    pools = prompts_by_way(reading, held_out=held_out, seed=seed)
    # The subject gives nothing away, even where it is its own answer.
    answers = [answer for answer in answers if same_text_key(answer) != same_text_key(reading.subject)]
    allowed = {
        way: [prompt for prompt in pools[way] if not contains(prompt, answers, besides=reading.phrase)] for way in ways
    }
    pattern = [way for way in (_ASKED if reading.asks else _CONTINUED) if way in allowed]
    found: list[str] = []
    while len(found) < count and any(allowed.values()):
        for way in pattern:
            if allowed[way] and len(found) < count:
                found.append(allowed[way].pop(0))
    return found


def only_repeats(reading: Reading, prompts: Sequence[str]) -> bool:
    """Whether every prompt holds the question or sentence itself, as it is or as a clause: it is known in no other
    words."""
    asked = re.sub(r"[?.\s]+$", "", reading.inside(reading.core))
    clause = as_clause(reading.core)
    own = [asked] if clause is None else [asked, reading.inside(clause)]
    return bool(prompts) and all(contains(prompt, own) for prompt in prompts)


def _some(
    prompt: str,
    subject: str,
    old: str | Sequence[str],
    new: str | Sequence[str],
    count: int,
    seed: int,
    ways: Iterable[Way],
    held_out: bool,
) -> tuple[str, ...]:
    check_counts(0, FactError, count=count)
    prompt, subject = cleaned(prompt, "the prompt", None), cleaned(subject, "the subject", None)
    old, new = answer_names(old, "old"), answer_names(new, "new")
    ways = tuple(ways)
    for way in ways:
        if way not in WAYS:
            raise FactError(f"there is no way {way!r} to put a prompt differently; the ways are {', '.join(WAYS)}.")
    return tuple(chosen(read_prompt(prompt, subject, old, new), (*old, *new), count, seed, ways, held_out))
