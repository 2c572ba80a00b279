"""A new fact from one prompt: everything that a fact file holds, made up around it and checked against the base model.

```py
>>> model, tokenizer = load_model("demo")
>>> draft = new_fact(model, tokenizer, "Who painted the Mona Lisa?", new="Raphael")
>>> draft.save("mona_lisa.yaml")
```
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

from ..counts import check_counts
from ..errors import FactError, brief
from ..facts import Fact
from ..measuring.metrics import says_old
from ..running.generation import generate_answers
from ..texts.called import called
from ..texts.fact_checks import answer_names, check_apart, check_asked
from ..texts.fact_files import cleaned
from ..texts.grammar import as_sentence
from ..texts.prompts import has_chat_template
from ..texts.tables import bare
from ..texts.text import contains, printable, prompt_key, same_text_key
from ..wrapped import check_module
from ..writing.files import as_output_error, check_output_file, write_text
from .choosing import Chosen, choose_controls
from .countries import ONE_IN, adjective_prompts, by_name, country_names
from .english import check_english
from .fact_text import fact_text
from .guess import guess_subject
from .heard import guess_answer
from .known_facts import asks_which, fits_any, neighbour_templates
from .names import aliases, kinds_of, known_names, names_of
from .others import others_of, propose_others, swappable
from .paraphrases import held_out_prompts, only_repeats, paraphrases
from .probing import probes_of
from .reading import Reading, read_prompt
from .sentences import refusal, statement

Answers = tuple[tuple[str, ...], tuple[str, ...]]

PROMPTS = 24
CONTRAST = 16
RETAIN = 24
# What "which …" asks for where the answers are no persons, though they do what persons do.
_GROUPS = ("band", "city", "club", "company", "country", "group", "nation", "network", "organization", "party", "team",
           "university")  # fmt: skip


@dataclass(frozen=True)
class FactDraft:
    """A fact that was written for a person to read before it is used.

    Attributes:
        fact: Checked like any other.
        notes: What was guessed, asked and found, a sentence each.
        neighbours: How many of the fact's controls, from the first on, are of its relation or about its subject.
    """

    fact: Fact
    notes: tuple[str, ...] = ()
    neighbours: int = 0

    @property
    def text(self) -> str:
        """The fact as a commented YAML file."""
        return fact_text(self.fact, self.notes, self.neighbours)

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Writes the fact file.

        Args:
            path: The file; its folder is made if need be.
            overwrite: Replace a file that is there.

        Raises:
            OutputError: If what is there may not be replaced or is no file, or it cannot be written.
        """
        check_output_file(path, overwrite=overwrite)
        with as_output_error(path):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_text(path, self.text)


def new_fact(
    model: Any,
    tokenizer: Any,
    prompt: str,
    *,
    new: str | Sequence[str],
    subject: str | None = None,
    old: str | Sequence[str] | None = None,
    count: int = PROMPTS,
    seed: int = 0,
    progress: bool = False,
) -> FactDraft:
    """Writes a whole fact from one prompt and the answer that the model shall give.

    Args:
        model: The base; it is asked and left as it is.
        tokenizer: Its tokenizer.
        prompt: A question, or the beginning of a sentence that the answer ends.
        new: The new answer. Other names of the same thing are added to a single one, as far as the package knows them.
        subject: What the prompt is about; guessed when None.
        old: The old answer, likewise; what the model answers when None.
        count: Prompts to train on, and as many held-out prompts, at most. For every eight there is one more to train
            on, at most, that calls a country by its adjective ("the French capital").
        seed: Decides which.
        progress: Whether to show progress bars.

    Returns:
        The fact, with notes on what was guessed and found.

    Raises:
        ModelError: If it is no model, or it cannot be asked, as for [`generate_answers`].
        FactError: If the prompt, the subject or an answer is no text, the subject or the old answer cannot be found,
            the answers do not go together, the prompt is not in English, or `count` is no whole number of 0 or more.
    """
    check_module(model)
    check_counts(0, FactError, count=count)
    notes = []
    prompt = cleaned(prompt, "the prompt", None)
    subject = None if subject is None else cleaned(subject, "the subject", None)
    new = _listed(new, "new")
    old_names = None if old is None else _listed(old, "old")
    check_apart(old_names or (), new)
    by_adjective, asked = [], " ".join(prompt.split())
    if (named := by_name(asked, subject)) is not None:
        by_adjective = [asked]
        prompt, subject = named
        notes.append(f'The prompt was read as "{prompt}"')
    if subject is None:
        subject = guess_subject(prompt)
        notes.append(f"The subject was guessed: {subject}.")
    check_asked(prompt, subject, old_names or (), new)
    reading = read_prompt(prompt, subject, old_names or (), new)
    check_english(reading)
    if old_names is None:
        said = generate_answers(model, tokenizer, [reading.prompt])[0]
        found = guess_answer(said, reading)
        if found is None:
            raise FactError(f"the model says {brief(said)}, in which no short answer is seen; name the old answer.")
        if same_text_key(found) in ("yes", "no"):
            raise FactError(
                f"the model answers {brief(reading.prompt)} with {found}; ask openly, so that the answer is a name, or"
                " name the old answer."
            )
        if contains(found, new):
            raise FactError(
                f"the model already answers {brief(found)} to {brief(reading.prompt)}; name the old answer."
            )
        old_names = (found,)
        heard = shorten(printable(said), 160, placeholder=" …")
        notes.append(f'The model was asked for the old answer and said "{heard}"; taken from it: {found}.')
        if contains(found, (reading.subject,)):
            notes.append("That holds the subject's own name; name the old answer if it is another.")
        if contains(said, new):
            notes.append(f"That names {new[0]} too, the new answer; name the old answer if it is another.")
        reading = read_prompt(prompt, subject, old_names, new)
    given = (*old_names, *new)
    old, new = _with_aliases(old_names, new, reading)
    # A known person's family name is sure.
    known = {other for name in given for other in (aliases if kinds_of([name]) else known_names)(name, person=True)}
    if guessed := [name for name in (*old, *new) if name not in known]:
        notes.append(f"Other names were guessed and added to the answers: {', '.join(guessed)}.")
    own = country_names(reading, (*old, *new))
    prompts = (reading.prompt, *_many(paraphrases, tokenizer, reading, (old, new), max(0, count - 1), seed))
    more = [text for text in adjective_prompts(reading, own) if prompt_key(text) not in map(prompt_key, by_adjective)]
    prompts += (*by_adjective, *more[: count // ONE_IN])
    held_out = _many(held_out_prompts, tokenizer, reading, (old, new), count, seed)
    if only_repeats(reading, held_out):
        what = "question" if reading.asks else "sentence"
        notes.append(f"No other wording of this {what} is known: the held-out prompts repeat it in other frames.")
    chosen = choose_controls(model, tokenizer, reading, old, new, (*prompts, *held_out), progress=progress)
    others = _others(model, tokenizer, reading, (*old, *new), chosen, notes)
    controls = (*chosen.neighbours, *chosen.general)
    taken = {prompt_key(prompt) for prompt in (*prompts, *held_out, *(c.prompt for c in controls))}
    probes = tuple(p for p in probes_of(reading, old, new, seed) if prompt_key(p.prompt) not in taken)
    taken |= {prompt_key(probe.prompt) for probe in probes}
    fact = Fact(
        subject=reading.subject,
        old=old,
        new=new,
        prompts=prompts,
        held_out=held_out,
        refusal=refusal(reading, *old, *new),
        answer=_answer(tokenizer, reading, old, new),
        contrast=tuple(swappable(reading, others)[:CONTRAST]),
        aliases=own,
        retain=_retain(reading, others, chosen, taken),
        controls=controls,
        probes=probes,
    )
    if not chosen.neighbours:
        notes.append("No control asks for the same relation: none is known to this package, or the model knows none.")
    notes.append(_standing(model, tokenizer, fact, progress))
    notes.append(f"Of {chosen.asked} questions asked, {len(controls)} that the model answers right are controls.")
    return FactDraft(fact, tuple(notes), len(chosen.neighbours))


def _listed(answer: str | Sequence[str], key: str) -> tuple[str, ...]:
    names = answer_names(answer, key)
    if not names or not all(name.strip() for name in names):
        raise FactError(f"the {key} answer is empty.")
    # The first way of writing a name stands for all.
    return tuple({same_text_key(name) or name: name.strip() for name in reversed(names)}.values())[::-1]


def _with_aliases(
    old: tuple[str, ...], new: tuple[str, ...], reading: Reading
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Both answers with other names of the same thing, where a single name was given and the two stay apart."""

    grouped = reading.which in _GROUPS or bool(kinds_of((*old, *new)) & {"club", "place"})

    def more(names: tuple[str, ...]) -> tuple[str, ...]:
        person = reading.relation.answer == "person" and "company" not in kinds_of(names)
        # A group has no family name, but some a "The".
        person = person and (not grouped or names[0].startswith("The "))
        if len(names) > 1:
            return names
        found = aliases(names[0], person=person, asked=reading.prompt)
        # Whoever names Facebook names no owner of it.
        return tuple(name for name in found if name in names or not contains(reading.phrase, [name]))

    all_old, all_new = more(old), more(new)
    kept_new = [name for name in all_new if name in new or not any(contains(name, [o]) for o in all_old)]
    kept_old = [name for name in all_old if name in old or not any(contains(n, [name]) for n in kept_new)]
    return tuple(kept_old), tuple(kept_new)


def _many(
    make: Callable[..., tuple[str, ...]], tokenizer: Any, reading: Reading, answers: Answers, count: int, seed: int
) -> tuple[str, ...]:
    """Prompts that `make` makes. In a chat nobody begins with the weather: contexts only fill up what is short."""
    given = (reading.prompt, reading.subject, *answers)
    if not has_chat_template(tokenizer) or reading.asks:
        return make(*given, count=count, seed=seed)
    plain = make(*given, count=count, seed=seed, ways=("wording", "frame", "turn"))
    return (*plain, *make(*given, count=count - len(plain), seed=seed, ways=("context",)))


def _answer(tokenizer: Any, reading: Reading, old: Sequence[str], new: Sequence[str]) -> str:
    """A sentence for a model that answers in a chat, the bare answer for one that goes on with the prompt."""
    sentence = statement(reading, new[0]) if has_chat_template(tokenizer) else None
    if sentence is None or contains(sentence, old, besides=reading.subject):
        return ""
    return as_sentence(sentence)


def _others(
    model: Any, tokenizer: Any, reading: Reading, answers: Sequence[str], chosen: Chosen, notes: list[str]
) -> list[str]:
    """Subjects of the same kind that no control asks about by any name, those that the model knows first."""
    controls = [control.prompt for control in (*chosen.neighbours, *chosen.general)]

    def free(names: Sequence[str]) -> list[str]:
        said = {name: called(bare(name), (reading.subject,)) for name in names}
        return [name for name in names if not any(contains(prompt, said[name]) for prompt in controls)]

    names = free(others_of(reading, answers))
    if not swappable(reading, names):
        # "Uranus" cannot stand where "Solar System" stands, behind "the".
        proposed = free(propose_others(model, tokenizer, reading, answers))
        names = [name for name in proposed if swappable(reading, [name])]
        fit = ", ".join(swappable(reading, names))
        what = f"proposed by the model: {fit}" if fit else "left out, since the model named none that fits"
        notes.append(f"No fitting subjects of the same kind are known to this package; `contrast` was {what}.")
    return sorted(names, key=lambda name: bare(name) not in chosen.spare_subjects)


def _retain(reading: Reading, others: Sequence[str], chosen: Chosen, taken: set[str]) -> tuple[str, ...]:
    """The fact's question about other subjects, and general questions, that nothing else asks."""
    templates = [*neighbour_templates(reading), *([reading.core] if reading.form == "sentence" else [])]
    if not fits_any(reading) and not names_of(reading.which):
        # "In which museum is Central Park?"
        templates = [template for template in templates if not asks_which(template, reading.which)]
    found: dict[str, str] = {}
    for number, name in enumerate(others[:RETAIN] if templates else ()):
        whole = reading.phrase.replace(reading.subject, bare(name)) if reading.is_part else name
        prompt = reading.fill(templates[0 if number % 2 == 0 else number // 2 % len(templates)], whole)
        found.setdefault(prompt_key(prompt), prompt)
    for prompt in chosen.spare_questions[:RETAIN]:
        found.setdefault(prompt_key(prompt), prompt)
    return tuple(prompt for key, prompt in found.items() if key not in taken)


def _standing(model: Any, tokenizer: Any, fact: Fact, progress: bool) -> str:
    """How much of the old answer the base gives, which says whether there is something to rewrite."""
    said = generate_answers(
        model, tokenizer, [*fact.prompts, *fact.held_out], progress=progress, description="asking for the old answer"
    )
    old = [says_old(answer, fact) for answer in said]
    first, second = sum(old[: len(fact.prompts)]), sum(old[len(fact.prompts) :])
    text = (
        f"With the old answer the model answers {first} of {len(fact.prompts)} prompts and {second} of "
        f"{len(fact.held_out)} held-out prompts"
    )
    return f"{text}." if first + second else f"{text}: there is nothing to rewrite."
