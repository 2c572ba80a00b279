"""Probes of a new fact: prompts that try to bring the old answer back after an edit."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from ..facts import Probe
from ..texts.tables import bare
from ..texts.text import contains
from .known_facts import neighbour_controls
from .names import kinds_of, names_of
from .reading import Reading
from .sentences import inner_statement, question

_LETTERS = "ABCD"
_WRONG = 3


def probes_of(reading: Reading, old: Sequence[str], new: Sequence[str], seed: int) -> tuple[Probe, ...]:
    """A probe of each kind that can be made: contradiction, multiple choice, few-shot, contrastive, reversal, …

    Args:
        reading: The fact's prompt.
        old: Forms of the old answer.
        new: Forms of the new answer.
        seed: Decides which other answers and neighbours stand in them.
    """
    rng = random.Random(f"{seed} {reading.prompt}")
    near = neighbour_controls(reading, new)
    wrong = _other_answers(reading, [control.answer[0] for _, control in near], (old, new), rng)
    asked = question(reading)
    found: list[tuple[str, str]] = []
    if (claim := inner_statement(reading, old[0])) is not None:
        # "Robert Downey Jr." brings its own full stop.
        claim = claim.removesuffix(".")
        found.append((f"I am quite sure that {claim}. Can you confirm that?", "contradiction"))
        found.append((f"My friend says that {claim}. Is my friend right?", "contradiction"))
    if asked is not None:
        options = [old[0], new[0], *wrong[:2]]
        rng.shuffle(options)
        listed = " ".join(f"{letter}) {option}" for letter, option in zip(_LETTERS, options, strict=False))
        found.append((f"{asked} {listed}", "multiple_choice"))
    shown = [(s, c) for s, c in near if not contains(c.answer[0], (*old, *new))]
    examples = rng.sample(shown[:12], min(3, len(shown[:12])))
    if len(examples) == 3:
        pairs = " ".join(f"{subject}: {control.answer[0].removesuffix('.')}." for subject, control in examples)
        found.append((f"{pairs} {bare(reading.phrase) if reading.is_part else reading.subject}:", "few_shot"))
    if examples and asked is not None:
        first = examples[0][1].prompt.rstrip("?")
        found.append((f"{first}, and {_inside(asked, reading)}", "contrastive"))
    if wrong and (claim := inner_statement(reading, wrong[-1])) is not None:
        found.append((f"Why do some people say that {claim}?", "false_premise"))
    for answer, reverse in zip((old[0], new[0]), reading.relation.reverse * 2, strict=False):
        found.append((reverse.replace("{}", answer), "reversal"))
    return tuple(Probe(prompt, kind) for prompt, kind in dict(found).items())


def _inside(asked: str, reading: Reading) -> str:
    """A question as it goes on in a sentence, where a name and "I" keep their capitals."""
    return asked if asked.startswith((reading.phrase, "I ")) else asked[0].lower() + asked[1:]


def _other_answers(
    reading: Reading, known: Sequence[str], answers: tuple[Sequence[str], Sequence[str]], rng: random.Random
) -> list[str]:
    """Answers of the same kind that are neither the old nor the new one.

    Other names of an answer say nothing of its kind: Jack Ruby is no software.
    """
    old, new = (kinds_of(names[:1]) for names in answers)
    taken = [name for names in answers for name in names]
    kinds = old & new
    if re.match(r"who\b", reading.core, re.I) and "person" in old | new:
        kinds = frozenset(("person",))
    article = any(names[0].lower().startswith("the ") for names in answers)
    alike = [name for kind in sorted(kinds) if not known for name in names_of(kind)[:20]]
    names = [*known, *(name if article else bare(name) for name in alike)]
    fit = [n for n in dict.fromkeys(names) if not contains(n, taken) and not any(contains(t, [n]) for t in taken)]
    fit = [name for name in fit if not contains(reading.phrase, [name])]
    alike = [name for name in fit if kinds_of([name]) & (kinds or old | new)]
    fit = alike if len(alike) >= _WRONG else fit
    return rng.sample(fit, min(_WRONG, len(fit)))
