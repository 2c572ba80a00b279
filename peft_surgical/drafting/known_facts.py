"""Facts that a new fact's controls are chosen from: neighbours of it, other facts about its subject, general ones.

Nothing here asks a model; [`choose_controls`] in `choosing.py` does, and keeps what the model answers right.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import zip_longest

from ..facts import Control
from ..texts.called import other_names
from ..texts.tables import bare, read_table
from ..texts.text import contains, normalize, same_text_key
from .names import is_small, kinds_of, neighbours_of
from .reading import Reading
from .relations import Relation, relations, settle

# Every second neighbour is asked as the fact itself is, the others in turn by these many of its other wordings.
_WORDINGS = 5
# Words that begin alike are taken for forms of one: "Brazil", "Brazilians".
_STEM = 5
_NO_STEMS = frozenset(("which", "where", "whose", "about", "their", "there", "would", "could"))
# "Which company developed Linux?" fits not every developer; "which city" fits every capital.
_SURE_KINDS = ("city", "country", "continent", "language", "currency", "instrument", "sport", "network")


def neighbour_controls(reading: Reading, answers: Sequence[str]) -> list[tuple[str, Control]]:
    """Facts of the same relation about other subjects, from the tables: each subject, with its question and answers.

    Args:
        reading: The fact's prompt.
        answers: Forms of the new answer. A subject that is one of them is left out.
    """
    found = []
    every = neighbour_templates(reading)
    neutral = [template for template in every if not asks_which(template, reading.which)]
    for number, (name, right) in enumerate(neighbours_of(reading.relation.name).items()):
        # "In which city is the Great Wall?" is not answered by "China".
        templates = every if _is_asked(reading, right) else neutral
        if templates and is_another(reading, name) and not contains(name, answers):
            template = templates[0] if number % 2 == 0 else templates[(number // 2) % len(templates)]
            found.append((bare(name), Control(reading.fill(template, name), right)))
    return found


def asks_which(template: str, which: str) -> bool:
    """Whether a question asks for such a thing by that name."""
    return bool(which) and contains(template, [f"which {which}", f"what {which}"])


def _is_asked(reading: Reading, right: Sequence[str]) -> bool:
    """Whether an answer of the relation is what "which …" asks for."""
    return fits_any(reading) or reading.which in kinds_of(right)


def fits_any(reading: Reading) -> bool:
    """Whether "which …" asks for what all subjects of the relation have: a city, where capitals are asked for, and no
    museum, where it is places."""
    return reading.which in ("", reading.relation.answer, reading.relation.which)


def same_subject_controls(reading: Reading, answers: Sequence[str]) -> list[Control]:
    """Other facts about the same subject, from the tables, less those with one of the fact's answers, or that are the
    fact itself: where the prompt's wording is not known, one of them may be."""
    found = []
    for relation in relations():
        if relation.name == reading.relation.name:
            continue
        for name, right in neighbours_of(relation.name).items():
            control = Control(_first_question(relation).replace("{}", name), right)
            if is_subject(reading, name) and not _is_itself(reading, control, answers):
                found.append(control)
    return found


def is_subject(reading: Reading, name: str) -> bool:
    """Whether a name of the tables is the subject as it stands in its prompt: "the Amazon" is not the company, and
    "python" not the software."""
    if same_text_key(bare(name)) != same_text_key(reading.subject):
        return False
    article = reading.phrase.casefold() == f"the {reading.subject}".casefold()
    small = is_small(reading.subject, reading.prompt)
    return (name.startswith("the ") or not article) and (name.islower() or not small)


def is_another(reading: Reading, name: str) -> bool:
    """Whether a name is that of something else than the subject: by no name that is known for it does it hold the
    subject's, as "United States of America" holds "America", and it is no part of that."""
    own = any(contains(said, [reading.subject]) for said in (name, *other_names(name)))
    return not own and not contains(reading.subject, [bare(name)])


def _is_itself(reading: Reading, control: Control, answers: Sequence[str]) -> bool:
    """Whether a control may be the fact in other words.

    It may if it is about the subject or what is named after it ("Brazil", "Brazilians") and has one of its answers or
    the like ("Argentina", "Argentine"), or if it asks for what the prompt tells.
    """
    right = " ".join(control.answer)
    close = contains(control.prompt, [reading.subject]) or _share_a_stem(control.prompt, reading.subject)
    if close and (any(contains(a, answers) for a in control.answer) or _share_a_stem(right, " ".join(answers))):
        return True
    # "Is Berlin the capital of Germany?"
    return contains(reading.prompt, control.answer, besides=reading.subject) and _share_a_stem(
        control.prompt, reading.prompt
    )


def _share_a_stem(text: str, other: str) -> bool:
    first, second = ({word[:_STEM] for word in re.findall(rf"\w{{{_STEM},}}", normalize(t))} for t in (text, other))
    return not first.isdisjoint(second - _NO_STEMS)


def general_controls(reading: Reading, old: Sequence[str], new: Sequence[str] = ()) -> list[Control]:
    """General questions, topic by topic in turn, less those that ask for the fact itself or for a neighbour of it."""
    topics = read_table("questions.yaml").values()
    rows: Iterator[tuple[tuple[str, list[str]] | None, ...]] = zip_longest(*(topic.items() for topic in topics))
    questions = [Control(row[0], tuple(row[1])) for turn in rows for row in turn if row is not None]
    neighbours = neighbours_of(reading.relation.name)
    found = []
    for control in questions:
        reverse = contains(control.prompt, old) and any(contains(a, [reading.subject]) for a in control.answer)
        close = any(
            contains(control.prompt, [bare(n)]) and set(right) & set(control.answer) for n, right in neighbours.items()
        )
        # Without a table of the relation nothing tells "the tallest mountain on Earth" from "the highest mountain".
        same = not neighbours and any(contains(a, old) or contains(" ".join(old), [a]) for a in control.answer)
        if not (reverse or close or same or _is_itself(reading, control, (*old, *new))):
            found.append(control)
    return found


def neighbour_templates(reading: Reading) -> list[str]:
    """The question as the fact has it, and a few other wordings that fit any subject."""
    own = [reading.core] if reading.form == "question" else []
    which = reading.which if reading.which in _SURE_KINDS else ""
    past = bool(own) and reading.past
    others = [settle(question, which, past=past) for question in reading.relation.training.questions]
    return list(dict.fromkeys([*own, *(other for other in others if other and "{}'s" not in other)]))[: _WORDINGS + 1]


def _first_question(relation: Relation) -> str:
    settled = (settle(question, relation.which) for question in relation.training.questions)
    return next(question for question in settled if question)
