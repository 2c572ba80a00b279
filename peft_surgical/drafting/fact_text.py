"""A fact as the text of a fact file, with comments that say what each key is for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence

import yaml

from ..facts import Fact
from ..texts.text import printable

_WIDTH = 116
# What YAML refuses in a file, or reads as a space or the end of a line.
_NOT_IN_YAML = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")
_COMMENTS = {
    "old": "Every form that counts as the old answer, the canonical one first; more of them make the report stricter.",
    "new": "Every form that counts as the new answer, the canonical one first.",
    "refusal": "What unlearning trains the model to say.",
    "answer": "What learning trains it to say.",
    "prompts": "For localization and training.",
    "held_out": "For evaluation only: nothing is fitted to these.",
    "contrast": "Subjects of the same kind, to corrupt prompts when localizing and to keep close neighbours.",
    "aliases": "Other names of the subject, under which edit-keyed acts, too.",
    "retain": "Prompts whose answers, right or wrong, training keeps as they are.",
    "probes": "Prompts that try to bring the old answer back; for evaluation only.",
    "portability": "Questions whose right answer changes with the fact; for evaluation only.",
}


def fact_text(fact: Fact, notes: Sequence[str] = (), neighbours: int = 0) -> str:
    """A commented YAML file that [`Fact.from_file`] reads back to an equal fact.

    Args:
        fact: The fact.
        notes: Sentences for the head of the file.
        neighbours: How many of the controls, from the first on, are close to the fact.
    """
    return "\n".join(_lines(fact, notes, neighbours)) + "\n"


def _lines(fact: Fact, notes: Sequence[str], neighbours: int) -> Iterator[str]:
    for note in (f'"{fact.prompts[0]}" moved from {fact.old[0]} to {fact.new[0]}.', *notes):
        yield from _comment(note)
    yield f"subject: {_plain(fact.subject)}"
    for key in ("old", "new"):
        yield from _comment(_COMMENTS[key])
        yield f"{key}: {_names(getattr(fact, key))}"
    for key in ("refusal", "answer"):
        yield f"{key}: {_plain(getattr(fact, key))}  # {_COMMENTS[key]}"
    for key in ("prompts", "held_out"):
        yield from _listed(fact, key)
    for key in ("contrast", "aliases"):
        if getattr(fact, key):
            yield from _comment(_COMMENTS[key])
            yield f"{key}: {_names(getattr(fact, key))}"
    if fact.retain:
        yield from _listed(fact, "retain")
    if fact.controls:
        yield from _comment("For evaluation only, and all answered right by the base model.")
        yield "controls:"
        for number, control in enumerate(fact.controls):
            if number == 0 and neighbours:
                yield "  # Close: the same relation with other subjects, and other facts about the same subject."
            if number == neighbours:
                yield "  # Unrelated."
            prompt = _quoted(control.prompt)
            yield f"  - {{prompt: {prompt}, answer: {_names(control.answer)}}}"
    if fact.probes:
        yield from _comment(_COMMENTS["probes"])
        yield "probes:"
        for probe in fact.probes:
            prompt = _quoted(probe.prompt)
            yield f"  - {{prompt: {prompt}, kind: {_plain(probe.kind, inside=True)}}}"
    if fact.portability:
        yield from _comment(_COMMENTS["portability"])
        yield "portability:"
        for question in fact.portability:
            prompt = _quoted(question.prompt)
            before = f", before: {_names(question.before)}" if question.before else ""
            yield f"  - {{kind: {question.kind}, prompt: {prompt}, answer: {_names(question.answer)}{before}}}"


def _listed(fact: Fact, key: str) -> Iterator[str]:
    yield from _comment(_COMMENTS[key])
    yield f"{key}:"
    for text in getattr(fact, key):
        yield f"  - {_plain(text)}"


def _names(names: Sequence[str]) -> str:
    return f"[{', '.join(_plain(name, inside=True) for name in names)}]"


def _comment(text: str) -> Iterator[str]:
    line = "#"
    for word in map(printable, text.split()):
        if len(line) + len(word) >= _WIDTH:
            yield line
            line = "#"
        line += f" {word}"
    yield line


def _plain(text: str, *, inside: bool = False) -> str:
    """A text as a YAML scalar, quoted only where it has to be.

    Args:
        text: The text.
        inside: Whether it stands in [] or {}, where commas and brackets end it.
    """
    risky = r"[,\[\]{}?]" if inside else r"[\[\]{}]"
    odd = re.search(rf"{risky}|: | #|:$|\s$|\\|\"|[^\x20-\uffff]", text) or _NOT_IN_YAML.search(text)
    if re.fullmatch(r"\w.*", text) and not odd:
        try:
            # As any reader of YAML takes it: 1945 and No would be no text to most.
            if yaml.safe_load(text) == text:
                return text
        except yaml.YAMLError:
            pass
    return _quoted(text)


def _quoted(text: str) -> str:
    return _NOT_IN_YAML.sub(lambda sign: f"\\u{ord(sign[0]):04x}", json.dumps(text, ensure_ascii=False))
