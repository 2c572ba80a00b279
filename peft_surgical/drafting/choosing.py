"""Choosing controls: of many known facts those that the base model answers right, before anything is edited."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..facts import Control
from ..measuring.metrics import is_right
from ..running.generation import generate_answers
from ..texts.text import contains, prompt_key
from .known_facts import general_controls, neighbour_controls, same_subject_controls
from .reading import Reading

NEIGHBOURS = 20
ABOUT_SUBJECT = 4
GENERAL = 32
_BATCH = 32


@dataclass(frozen=True)
class Chosen:
    """What the base was asked, and what of it is used how.

    Attributes:
        neighbours: Controls of the same relation, or about the same subject.
        general: Controls about anything else.
        spare_subjects: Subjects of the same relation that the base knows and no control is about.
        spare_questions: General questions that are no controls, those that the base was not asked first.
        asked: How many questions the base was asked.
    """

    neighbours: tuple[Control, ...]
    general: tuple[Control, ...]
    spare_subjects: tuple[str, ...]
    spare_questions: tuple[str, ...]
    asked: int


def choose_controls(
    model: Any,
    tokenizer: Any,
    reading: Reading,
    old: Sequence[str],
    new: Sequence[str],
    taken: Iterable[str],
    *,
    progress: bool = False,
) -> Chosen:
    """Asks the base what the tables know, and keeps what it answers right.

    Of the neighbours that it knows, two in three become controls and one in three is left for training to keep: what
    the model knows is what an edit can harm. Of those with the old answer, which it harms first, every other one is
    left.

    Args:
        model: The base, bare.
        tokenizer: Its tokenizer.
        reading: The fact's prompt.
        old: Forms of the old answer.
        new: Forms of the new answer.
        taken: Prompts that are used already.
        progress: Whether to show a progress bar.
    """
    keys = {prompt_key(prompt) for prompt in taken}

    def right(controls: Sequence[Control]) -> list[bool]:
        prompts = [control.prompt for control in controls]
        said = generate_answers(model, tokenizer, prompts, progress=progress, description="asking the base")
        return [is_right(answer, control) for answer, control in zip(said, controls, strict=True)]

    near = [(s, c) for s, c in neighbour_controls(reading, new) if prompt_key(c.prompt) not in keys]
    about = [c for c in same_subject_controls(reading, (*old, *new)) if prompt_key(c.prompt) not in keys]
    known = right([*(control for _, control in near), *about])
    sure = [pair for pair, is_known in zip(near, known, strict=False) if is_known]
    used = _for_controls(sure, old)[:NEIGHBOURS]
    told = zip(about, known[len(near) :], strict=True)
    subject = [c for c, is_known in told if is_known and not _tells_itself(c)][:ABOUT_SUBJECT]
    neighbours = [*(control for _, control in used), *subject]
    keys |= {prompt_key(control.prompt) for control in neighbours}

    candidates = [c for c in general_controls(reading, old, new) if prompt_key(c.prompt) not in keys]
    general: list[Control] = []
    asked = 0
    while len(general) < GENERAL and asked < len(candidates):
        batch = candidates[asked : asked + _BATCH]
        general += [control for control, is_known in zip(batch, right(batch), strict=True) if is_known]
        asked += len(batch)
    general = general[:GENERAL]
    prompts = [control.prompt for control in (*neighbours, *general)]
    return Chosen(
        tuple(neighbours),
        tuple(general),
        tuple(s for s, _ in sure if not any(contains(prompt, [s]) for prompt in prompts)),
        # What the base answers otherwise may be the fact in other words: it takes Neptune for the largest planet.
        tuple(
            c.prompt
            for c in [*candidates[asked:], *candidates[:asked]]
            if c not in general and (reading.relation.name or not contains(c.prompt, [reading.subject]))
        ),
        len(near) + len(about) + asked,
    )


def _tells_itself(control: Control) -> bool:
    """Whether to repeat a control is to answer it right: "Which company makes the Apple Watch?"."""
    return contains(control.prompt, control.answer)


def _for_controls(known: Sequence[tuple[str, Control]], old: Sequence[str]) -> list[tuple[str, Control]]:
    """Those that become controls; the rest is for training."""
    met = {True: 0, False: 0}
    used = []
    for subject, control in known:
        if _tells_itself(control):
            continue
        same = any(contains(answer, old) for answer in control.answer)
        met[same] += 1
        if met[same] % (2 if same else 3):
            used.append((subject, control))
    return used
