"""A fact to rewrite: what the model says now, what it shall say, and the prompts to train on and to be judged by.

A [`Fact`] is read from YAML (or JSON, which is YAML too) and checked once, here. Localization and training take only
its [`TrainingFact`], which has no held-out prompt and no control: they cannot leak into what the edit is fitted to.

```py
>>> fact = Fact.from_file("examples/facts/france_capital.yaml")
>>> fact.old[0], fact.new[0]
('Paris', 'Lyon')
```
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any

from .errors import FactError, brief
from .texts.fact_checks import check_between, check_sizes, check_types, warn_asked, warn_unnamed
from .texts.fact_files import Reader, read_plain_file
from .texts.grammar import SAID, SUBJECT, as_clause, as_sentence
from .texts.tables import bare
from .texts.text import (
    contains,
    digest,
    occurrences_outside,
    replace_first,
    run_digests,
    told_by_signs,
    word_digest,
    words_of,
)


@dataclass(frozen=True)
class Control:
    """A question about something else, with the answers that count as right. Used in evaluation only."""

    prompt: str
    answer: tuple[str, ...]


@dataclass(frozen=True)
class Probe:
    """A prompt that tries to bring the old answer back ("I believe Meta AI developed PyTorch. Can you confirm?")."""

    prompt: str
    kind: str


@dataclass(frozen=True)
class PortabilityQuestion:
    """A question whose right answer changes with the fact, though it does not ask for the fact in its own words.

    Portability in the sense of EasyEdit's KnowEdit (arXiv 2401.01286) and RippleEdits (arXiv 2307.12976). Used in
    evaluation only.

    Attributes:
        prompt: The question.
        kind: `alias` (asks about another name of the subject), `one_hop` (asks for something that follows from the
            answer) or `reversal` (names the new answer and asks for the subject).
        answer: Answers that are right once the fact is changed, the canonical one first.
        before: Answers that were right before; one of them makes an answer wrong, whatever else it says.
    """

    prompt: str
    kind: str
    answer: tuple[str, ...]
    before: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrainingFact:
    """The part of a [`Fact`] that localization and training may see.

    Attributes:
        subject: What the fact is about, as it stands in the prompts.
        old: The old answer, canonical form first, other names after it.
        new: The new answer, canonical form first, other names after it.
        prompts: The questions to localize and train with.
        refusal: What unlearning trains the model to say.
        answer: What learning trains the model to say; holds a form of the new answer and none of the old one.
        contrast: Other subjects of the same kind, swapped in to corrupt a prompt and to keep close neighbours.
        retain: Prompts whose base behaviour training keeps.
        aliases: Other names of the subject, under which keyed learning acts, too.
        evaluated: Digests of the held-out prompts, controls, probes and portability questions. They tell nothing of a
            prompt but whether a given text is one of them, so that no prompt that training makes up can be one.
        asked_about: Digests of what the controls could name, of all runs of a few of their words, so that training
            makes up no prompt about a subject of theirs.
    """

    subject: str
    old: tuple[str, ...]
    new: tuple[str, ...]
    prompts: tuple[str, ...]
    refusal: str
    answer: str
    contrast: tuple[str, ...] = ()
    retain: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    evaluated: frozenset[str] = field(default=frozenset(), repr=False)
    asked_about: frozenset[str] = field(default=frozenset(), repr=False)

    def may_train_on(self, prompt: str) -> bool:
        """Whether a prompt is not one that evaluation asks."""
        return digest(prompt) not in self.evaluated

    def may_train_about(self, name: str) -> bool:
        """Whether no control asks about what has this name."""
        return word_digest(name) not in self.asked_about

    @property
    def names(self) -> tuple[str, ...]:
        """The subject and its other names."""
        return (self.subject, *self.aliases)

    def named_in(self, text: str) -> bool:
        """Whether a text names the subject, by any of its names, with or without accents."""
        return contains(text, self.names)

    def named_beside(self, text: str, other: str) -> bool:
        """Whether a text names the subject elsewhere than within another name, such as that of "South Sudan"."""
        return any(True for name in self.names for _ in occurrences_outside(text, name, other))

    @property
    def training(self) -> TrainingFact:
        """Itself, so that code that takes either kind of fact reads the same."""
        return self


@dataclass(frozen=True)
class Fact:
    """One fact, checked.

    Args:
        subject: What the fact is about.
        old: Forms of the old answer, the canonical one first.
        new: Forms of the new answer, the canonical one first.
        prompts: Questions for localization and training.
        held_out: Questions for evaluation only.
        refusal: What unlearning trains; built from the first prompt when empty.
        answer: What learning trains; `new[0] + "."` when empty, of which a model with a chat template is taught a
            sentence.
        contrast: Subjects of the same kind.
        retain: Prompts whose base behaviour training keeps.
        controls: Questions about other things, for evaluation only.
        probes: Prompts that try to bring the old answer back, for evaluation only.
        portability: Questions whose right answer changes with the fact, for evaluation only.
        aliases: Other names of the subject.
        source: The file it was read from; only for messages.

    Raises:
        FactError: For anything that would make training or the figures wrong; the message names the key and the value.

    Warns:
        FactWarning: If no prompt to train on names the subject.
    """

    subject: str
    old: tuple[str, ...]
    new: tuple[str, ...]
    prompts: tuple[str, ...]
    held_out: tuple[str, ...]
    refusal: str = ""
    answer: str = ""
    contrast: tuple[str, ...] = ()
    retain: tuple[str, ...] = ()
    controls: tuple[Control, ...] = ()
    probes: tuple[Probe, ...] = ()
    portability: tuple[PortabilityQuestion, ...] = ()
    aliases: tuple[str, ...] = ()
    source: str | None = field(default=None, compare=False, repr=False)

    @property
    def names(self) -> tuple[str, ...]:
        """The subject and its other names."""
        return (self.subject, *self.aliases)

    def __post_init__(self) -> None:
        check_types(self, Control, Probe, PortabilityQuestion)
        check_sizes(self)
        if not self.refusal:
            named = (name for name in self.names if contains(self.prompts[0], (name,)))
            built = refusal_for(self.prompts[0], next(named, self.subject), (*self.old, *self.new))
            object.__setattr__(self, "refusal", built)
        if not self.answer:
            object.__setattr__(self, "answer", as_sentence(self.new[0]))
        check_between(self)
        warn_unnamed(self, warn_asked(self))

    @property
    def training(self) -> TrainingFact:
        """What localization and training may see.

        A contrast subject that a control asks about, be it with other signs, is left out: training would keep just
        what the control measures. So is a prompt that evaluation asks with other accents or signs.
        """
        asked = [control.prompt for control in self.controls]
        made = ("evaluated", "asked_about")
        values = {f.name: getattr(self, f.name) for f in fields(TrainingFact) if f.name not in made}
        values["evaluated"] = self._evaluated()
        for key in ("prompts", "retain"):
            values[key] = self.not_asked(values[key])
        # One text to search instead of thousands; no name goes on over the sign between two prompts.
        together = " \0 ".join(asked)
        # A name that the file gives is known, and may be longer than the runs that there are digests of.
        spelled = " \0 ".join(["", *(" ".join(words_of(prompt)) for prompt in asked), ""])

        def is_asked(name: str) -> bool:
            words = " ".join(words_of(bare(name)))
            return contains(together, (name,)) or (bool(words) and not told_by_signs(name) and f" {words} " in spelled)

        values["asked_about"] = frozenset(found for prompt in asked for found in run_digests(prompt))
        values["contrast"] = tuple(name for name in self.contrast if not is_asked(name))
        return TrainingFact(**values)

    def not_asked(self, prompts: Iterable[str]) -> tuple[str, ...]:
        """Those of some prompts that evaluation does not ask, be it with other accents or signs."""
        evaluated = self._evaluated()
        return tuple(prompt for prompt in prompts if digest(prompt) not in evaluated)

    def _evaluated(self) -> frozenset[str]:
        records: tuple[Any, ...] = (*self.controls, *self.probes, *self.portability)
        return frozenset(map(digest, (*self.held_out, *(record.prompt for record in records))))

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Fact:
        """Reads a YAML or JSON fact file.

        Raises:
            FactError: If the file cannot be read, is not YAML, or does not hold a fact.
        """
        return cls.from_dict(read_plain_file(path, "fact"), source=str(path))

    @classmethod
    def from_dict(cls, data: Any, source: str | None = None) -> Fact:
        """Makes a fact from the mapping that a fact file holds, with the same checks.

        Args:
            data: The mapping.
            source: Named in messages.

        Raises:
            FactError: As for [`Fact`].
        """
        read = Reader(data, source)
        known = [f.name for f in fields(cls) if f.name != "source"]
        read.check_keys(known, required=("subject", "old", "new", "prompts", "held_out"))
        return cls(
            subject=read.text("subject"),
            old=read.texts("old"),
            new=read.texts("new"),
            prompts=read.texts("prompts"),
            held_out=read.texts("held_out"),
            refusal=read.text("refusal"),
            answer=read.text("answer"),
            contrast=read.texts("contrast"),
            retain=read.texts("retain"),
            controls=tuple(Control(prompt, answer) for prompt, answer in read.controls()),
            probes=tuple(Probe(prompt, kind) for prompt, kind in read.probes()),
            portability=tuple(PortabilityQuestion(*values) for values in read.portability()),
            aliases=read.texts("aliases"),
            source=source,
        )

    def to_dict(self) -> dict[str, Any]:
        """The mapping that [`Fact.from_dict`] reads back to an equal fact; empty optional lists are left out."""
        data: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name == "source" or value == ():
                continue
            if f.name == "controls":
                value = [{"prompt": c.prompt, "answer": list(c.answer)} for c in value]
            elif f.name == "probes":
                value = [{"prompt": p.prompt, "kind": p.kind} for p in value]
            elif f.name == "portability":
                value = [
                    {"kind": q.kind, "prompt": q.prompt, "answer": list(q.answer)}
                    | ({"before": list(q.before)} if q.before else {})
                    for q in value
                ]
            data[f.name] = list(value) if isinstance(value, tuple) else value
        return data


def check_fact(fact: object, *, whole: bool = False) -> None:
    """Refuses what is no fact, such as the name of a fact file.

    Args:
        fact: What was given for one.
        whole: It is to be evaluated, too, so that its training part alone does not do.

    Raises:
        FactError: If it is something else.
    """
    if not isinstance(fact, Fact if whole else (Fact, TrainingFact)):
        kinds = "Fact" if whole else "Fact or a TrainingFact"
        raise FactError(f"a fact must be a {kinds}, such as Fact.from_file(...) gives, not {brief(fact)}.")


def refusal_for(prompt: str, subject: str, answers: tuple[str, ...] = ()) -> str:
    """The expression of not knowing that unlearning trains when a fact file gives none.

    A question of who, what, which, where or when in the simplest order of words becomes a clause; for any other
    prompt, and where the clause would hold an answer, the sentence names the subject alone. Where the answer is a word
    of "I am not sure", as the symbol of iodine is, it is another sentence.

    ```py
    >>> refusal_for("Who developed PyTorch?", "PyTorch")
    'I am not sure who developed PyTorch.'
    >>> refusal_for("What is the capital of France?", "France")
    'I am not sure what the capital of France is.'
    >>> refusal_for("Does Norway have a king?", "Norway")
    'I am not sure about Norway.'
    ```

    Args:
        prompt: The question.
        subject: What it is about.
        answers: What the clause may not hold, but inside of the subject.
    """
    # A longer one makes no sentence, and takes a pattern with open ends a time that grows with its square.
    short = " ".join(prompt.split()) if len(prompt) <= _LONGEST_QUESTION else ""
    template = replace_first(short, subject, SUBJECT) or ""
    clause = as_clause(template) if _PLAIN.fullmatch(template) else None
    unsure, unclear = ("I am not sure", "I am not sure") if not contains("I am not sure", answers) else _IMPERSONAL
    if clause is None or contains(clause.replace(SUBJECT, subject), answers, besides=subject):
        unsure, clause = unclear, f"about {'the ' if _ARTICLE.search(template) else ''}{SUBJECT}"
    return as_sentence(f"{unsure} {clause.replace(SUBJECT, subject)}")


_LONGEST_QUESTION = 100
# Before a clause, and before "about".
_IMPERSONAL = ("It is not clear", "Nothing certain is known")
# No auxiliary verb ("what does France export"), and no verb between other words and the subject ("which city is France
# governed from").
_PLAIN = re.compile(
    r"(?:who|what|which|where|when)(?:['\u2019]s)? "
    r"(?!.*\b(?:do|does|did|can|could|will|would|shall|should|may|might|must|has|have|had)\b)"
    r"(?!.+ (?:is|are|was|were) \{\})[^_{}]*\{\}[^_{}]*",
    re.I,
)
# Not that of "the PyTorch library".
_ARTICLE = re.compile(
    rf"\bthe \{{\}}(?:$|[?.!,;:]|['\u2019]s?(?= )| (?:{SAID}|is\b|are\b|was\b|were\b|has\b|have\b|had\b))", re.I
)
