"""The answers of a report, for its page: what was said before and after, which words count, what became of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..facts import Control, Fact, PortabilityQuestion
from ..measuring.margins import SIDES, margin
from ..measuring.metrics import is_right, leaks, refuses, says_new, says_old
from ..measuring.portability import as_before, follows, longer_names
from ..measuring.soft_forgetting import Outcome, probe_outcome
from ..report import Report
from ..texts.text import normalize, normalize_in_place, occurrences_outside

Piece = tuple[str, str]


@dataclass(frozen=True)
class Row:
    """One prompt: the answers before and after in pieces, by how much they win, and what became of it."""

    prompt: str
    note: str
    answers: tuple[tuple[str, tuple[Piece, ...]], ...]
    status: str
    tone: str
    changed: bool
    margins: Mapping[str, str]


@dataclass(frozen=True)
class Section:
    """The prompts of one kind, the changed ones first."""

    name: str
    about: str
    rows: tuple[Row, ...]

    @property
    def changed(self) -> int:
        """How many of the answers changed."""
        return sum(row.changed for row in self.rows)


def held_out(report: Report) -> Section:
    """The held-out prompts: which answer each is given now."""

    def status(answer: str) -> Piece:
        fact = report.fact
        if says_old(answer, fact):
            return "old answer", "bad"
        if says_new(answer, fact):
            return "new answer", "good"
        return ("does not know", "plain") if refuses(answer, fact) else ("something else", "plain")

    rows = [_row(report, "held_out", i, prompt, "", status) for i, prompt in enumerate(report.fact.held_out)]
    return _section("Held-out prompts", "Questions about the fact that nothing was trained on.", rows)


def controls(report: Report) -> Section:
    """The controls: whether each is still answered as it should be."""
    base = report.answers.get("base", {}).get("controls", ())

    def row(index: int, control: Control) -> Row | None:
        def status(answer: str) -> Piece:
            before = base[index] if index < len(base) else ""
            if leaks(answer, before, report.fact):
                return "leaked: says the new answer", "bad"
            right = is_right(answer, control)
            if is_right(before, control):
                return ("right", "good") if right else ("no longer right", "bad")
            return ("right now", "good") if right else ("wrong before, too", "plain")

        return _row(report, "controls", index, control.prompt, "right: " + " / ".join(control.answer), status, control)

    rows = [row(i, control) for i, control in enumerate(report.fact.controls)]
    return _section("Controls", "Other facts, which should stay as the base has them.", rows)


def portability(report: Report) -> Section:
    """The portability questions: whether what follows from the fact was changed with it."""

    def row(index: int, question: PortabilityQuestion) -> Row | None:
        def status(answer: str) -> Piece:
            if as_before(answer, question, report.fact):
                return "as before", "bad"
            return ("follows", "good") if follows(answer, question, report.fact) else ("something else", "plain")

        note = f"{question.kind}; right: {' / '.join(question.answer)}"
        if question.before:
            note += f"; before: {' / '.join(question.before)}"
        return _row(report, "portability", index, question.prompt, note, status, question)

    rows = [row(i, question) for i, question in enumerate(report.fact.portability)]
    return _section("Portability", "What follows from the fact, asked in other words.", rows)


_OUTCOMES: dict[Outcome, Piece] = {
    "old": ("old answer", "bad"),
    "both": ("both answers", "bad"),
    "new": ("new answer", "good"),
    "neither": ("neither answer", "plain"),
}


def probes(report: Report) -> Section:
    """The probes: whether the old answer comes back."""

    def status(answer: str) -> Piece:
        return _OUTCOMES[probe_outcome(answer, report.fact)]

    rows = [_row(report, "probes", i, probe.prompt, probe.kind, status) for i, probe in enumerate(report.fact.probes)]
    about = "Prompts that try to bring the old answer back. To name it counts as saying it, be it to contradict."
    return _section("Probes", about, rows)


def _section(name: str, about: str, rows: Sequence[Row | None]) -> Section:
    found = [row for row in rows if row is not None]
    worst = {"bad": 0, "good": 1, "plain": 2}
    return Section(name, about, tuple(sorted(found, key=lambda row: (not row.changed, worst[row.tone]))))


def _row(
    report: Report,
    kind: str,
    index: int,
    prompt: str,
    note: str,
    status: Callable[[str], Piece],
    question: Control | PortabilityQuestion | None = None,
) -> Row | None:
    """The row of one prompt; None where a report holds no answers to it."""
    given = {
        stage: answers[kind][index] for stage, answers in report.answers.items() if index < len(answers.get(kind, ()))
    }
    if not given:
        return None
    last = list(given.values())[-1]
    text, tone = status(last)
    return Row(
        prompt=prompt,
        note=note,
        answers=tuple((stage, tuple(mark(answer, report.fact, question))) for stage, answer in given.items()),
        status=text,
        tone=tone,
        changed=normalize(last) != normalize(given.get("base", last)),
        margins=_margins(report, kind, index),
    )


def _margins(report: Report, kind: str, index: int) -> dict[str, str]:
    """By how much one answer to a prompt is likelier than another, for each state in which that was measured."""
    if kind not in SIDES:
        return {}
    # Which of a control's right answers was measured is the base's to say.
    named = {"new": report.fact.new[0], "old": report.fact.old[0], "right": "the right answer"}
    wanted, against = (named[side] for side in SIDES[kind])
    found = {}
    for stage, given in report.margins.items():
        pairs = given.get(kind, ())
        if index < len(pairs) and (pair := pairs[index]) is not None:
            found[stage] = f"{wanted} over {against}: {margin(kind, pair):+.2f} nats per token"
    return found


def mark(answer: str, fact: Fact, question: Control | PortabilityQuestion | None = None) -> Iterator[Piece]:
    """An answer in pieces, each with what it is: `old`, `new`, `right` (the question's own answer) or nothing.

    ```py
    >>> list(mark("Not Paris: Lyon.", fact))
    [('', 'Not '), ('old', 'Paris'), ('', ': '), ('new', 'Lyon'), ('', '.')]
    ```
    """
    before = question.before if isinstance(question, PortabilityQuestion) else ()
    # With the longer names inside of which none of them counts.
    kinds: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
        "old": ((*fact.old, *before), fact.names),
        "new": (fact.new, (*fact.names, *fact.old)),
        "right": (
            question.answer if question else (),
            longer_names(question, fact) if isinstance(question, PortabilityQuestion) else (),
        ),
    }
    # As what counts is found: in the text as a reader sees it.
    text, places = normalize_in_place(answer)
    spans = [
        (places[start], max(places[stop], places[stop - 1] + 1), name)
        for name, (aliases, besides) in kinds.items()
        for alias in aliases
        for start, stop in occurrences_outside(text, normalize(alias), [normalize(longer) for longer in besides])
    ]
    position = 0
    # The longest alias at a place is what was said there.
    for start, stop, name in sorted(spans, key=lambda span: (span[0], -span[1])):
        if start < position:
            continue
        if start > position:
            yield "", answer[position:start]
        yield name, answer[start:stop]
        position = stop
    if position < len(answer):
        yield "", answer[position:]
