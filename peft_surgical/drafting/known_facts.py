"""Facts that a new fact's controls are chosen from: neighbours of it, other facts about its subject, general ones.

Nothing here asks a model; [`choose_controls`] in `choosing.py` does, and keeps what the model answers right.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest

from ..facts import Control
from ..texts.text import contains, same_text_key
from .names import bare, neighbours_of
from .reading import Reading
from .relations import Relation, relations, settle
from .tables import read_table

# Every second neighbour is asked as the fact itself is, the others in turn by these many of its other wordings.
_WORDINGS = 5
# "Which company developed Linux?" fits not every developer; "which city" fits every capital.
_SURE_KINDS = ("city", "country", "continent", "language", "currency", "instrument", "sport", "network")


def neighbour_controls(reading: Reading, answers: Sequence[str]) -> list[tuple[str, Control]]:
    """Facts of the same relation about other subjects, from the tables: each subject, with its question and answers.

    Args:
        reading: The fact's prompt.
        answers: Forms of the new answer. A subject that is one of them is left out.
    """
    found = []
    templates = neighbour_templates(reading)
    for number, (name, right) in enumerate(neighbours_of(reading.relation.name).items()):
        apart = not contains(name, [reading.subject]) and not contains(reading.subject, [bare(name)])
        if templates and apart and not contains(name, answers):
            template = templates[0] if number % 2 == 0 else templates[(number // 2) % len(templates)]
            found.append((bare(name), Control(reading.fill(template, name), right)))
    return found


def same_subject_controls(reading: Reading, old: Sequence[str]) -> list[Control]:
    """Other facts about the same subject, from the tables, less those with the old answer: where the prompt's wording
    is not known, one of them is the fact itself."""
    found = []
    for relation in relations():
        if relation.name == reading.relation.name:
            continue
        for name, right in neighbours_of(relation.name).items():
            same = same_text_key(bare(name)) == same_text_key(reading.subject)
            if same and not any(contains(answer, old) for answer in right):
                found.append(Control(_first_question(relation).replace("{}", name), right))
    return found


def general_controls(reading: Reading, old: Sequence[str]) -> list[Control]:
    """General questions, topic by topic in turn, less those that ask for the fact itself or for a neighbour of it."""
    topics = read_table("questions.yaml").values()
    rows: Iterator[tuple[tuple[str, list[str]] | None, ...]] = zip_longest(*(topic.items() for topic in topics))
    questions = [Control(row[0], tuple(row[1])) for turn in rows for row in turn if row is not None]
    neighbours = neighbours_of(reading.relation.name)
    found = []
    for control in questions:
        itself = contains(control.prompt, [reading.subject]) and any(contains(a, old) for a in control.answer)
        reverse = contains(control.prompt, old) and any(contains(a, [reading.subject]) for a in control.answer)
        close = any(
            contains(control.prompt, [bare(n)]) and set(right) & set(control.answer) for n, right in neighbours.items()
        )
        if not (itself or reverse or close):
            found.append(control)
    return found


def neighbour_templates(reading: Reading) -> list[str]:
    """The question as the fact has it, and a few other wordings that fit any subject."""
    own = [reading.core] if reading.form == "question" else []
    which = reading.which if reading.which in _SURE_KINDS else ""
    others = [settle(question, which, past=reading.past) for question in reading.relation.training.questions]
    if not own:
        others = [settle(question, which) for question in reading.relation.training.questions]
    return list(dict.fromkeys([*own, *(other for other in others if other and "{}'s" not in other)]))[: _WORDINGS + 1]


def _first_question(relation: Relation) -> str:
    settled = (settle(question, relation.which) for question in relation.training.questions)
    return next(question for question in settled if question)
