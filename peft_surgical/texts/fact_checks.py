"""What a fact must be, however it was made: clean texts, not too many or too long, that do not contradict each other.

Held-out prompts, controls, probes and portability questions may stand in no other list; that is checked here, once,
for all that follows.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING, Any

from ..errors import FactError, FactWarning, brief
from .fact_files import cleaned, complaint
from .text import contains, find, mentions, normalize, same_text_key

if TYPE_CHECKING:
    from ..facts import Fact, PortabilityQuestion

# What no fact needs, and what would make comparing every name with every text take hours.
MAX_PROMPTS, MAX_NAMES, MAX_NAME_LENGTH = 100_000, 1_000, 1_000
PORTABILITY_KINDS = ("alias", "one_hop", "reversal")


def check_types(fact: Fact, control: type, probe: type, question: type) -> None:
    """Makes tuples of clean text out of what a fact was made of.

    Args:
        fact: Its fields are replaced.
        control: The class of controls.
        probe: The class of probes.
        question: The class of portability questions.

    Raises:
        FactError: If a value is no text, or a list that must hold something is empty.
    """

    def items(values: Any, kind: type, key: str) -> tuple[Any, ...]:
        if isinstance(values, str) or not isinstance(values, Iterable):
            raise complaint(f"{key!r} must be a list, not {type(values).__name__}.", fact.source)
        found = tuple(values)
        for item in found:
            if not isinstance(item, kind):
                raise complaint(f"{key!r} must hold {kind.__name__}, not {type(item).__name__}.", fact.source)
        return found

    def text(value: Any, key: str) -> str:
        if not isinstance(value, str):
            raise complaint(f"{key!r} must be text, not {type(value).__name__}.", fact.source)
        return cleaned(value, repr(key), fact.source)

    def texts(values: Any, key: str) -> tuple[str, ...]:
        return tuple(text(value, key) for value in items(values, str, key))

    found: dict[str, Any] = {key: text(getattr(fact, key), key) for key in ("subject", "refusal", "answer")}
    for key in ("old", "new", "prompts", "held_out", "contrast", "retain", "aliases"):
        found[key] = texts(getattr(fact, key), key)
        if not found[key] and key not in ("contrast", "retain", "aliases"):
            raise complaint(f"{key!r} is an empty list.", fact.source)
    found["controls"] = tuple(
        replace(item, prompt=text(item.prompt, "prompt"), answer=texts(item.answer, "answer"))
        for item in items(fact.controls, control, "controls")
    )
    found["probes"] = tuple(
        replace(item, prompt=text(item.prompt, "prompt"), kind=text(item.kind, "kind"))
        for item in items(fact.probes, probe, "probes")
    )
    found["portability"] = tuple(
        replace(
            item,
            prompt=text(item.prompt, "prompt"),
            kind=text(item.kind, "kind"),
            answer=texts(item.answer, "answer"),
            before=texts(item.before, "before"),
        )
        for item in items(fact.portability, question, "portability")
    )
    if any(not item.kind for item in found["probes"]):
        raise complaint("a probe in 'probes' has no kind.", fact.source)
    for key, value in found.items():
        object.__setattr__(fact, key, value)


def check_sizes(fact: Fact) -> None:
    """Refuses more, or longer names, than a fact can have.

    Raises:
        FactError: If a list or a name is too long.
    """
    lists = {key: getattr(fact, key) for key in ("old", "new", "contrast", "aliases")}
    names = [("subject", (fact.subject,)), *lists.items(), *(("controls", c.answer) for c in fact.controls)]
    names += [("portability", given) for q in fact.portability for given in (q.answer, q.before)]
    for key, values in names:
        if len(values) > MAX_NAMES:
            raise complaint(f"{key!r} holds {len(values):,} names; {MAX_NAMES:,} are the most.", fact.source)
        for name in values:
            if len(name) > MAX_NAME_LENGTH:
                length = f"{len(name):,} characters; {MAX_NAME_LENGTH:,} are the most"
                raise complaint(f"the name {brief(name)} in {key!r} has {length}.", fact.source)
    for key in ("prompts", "held_out", "retain", "controls", "probes", "portability"):
        count = len(getattr(fact, key))
        if count > MAX_PROMPTS:
            raise complaint(f"{key!r} holds {count:,} prompts; {MAX_PROMPTS:,} are the most.", fact.source)


def check_apart(olds: Iterable[str], news: Iterable[str], source: str | None = None) -> None:
    """Refuses names of the new answer that are, or hold, one of the old answer.

    Raises:
        FactError: For the first such name.
    """
    for new, old in product(news, tuple(olds)):
        if same_text_key(new) == same_text_key(old):
            raise complaint(f"the name {brief(new)} stands in both 'old' and 'new'.", source)
        if contains(new, (old,)):
            why = "so no answer could count as new"
            raise complaint(f"the name {brief(new)} in 'new' contains {brief(old)} from 'old', {why}.", source)


def answer_names(answer: Any, key: str) -> tuple[str, ...]:
    """The names of an answer that is one text or a list of texts.

    Args:
        answer: The answer.
        key: `old` or `new`, for the message.

    Raises:
        FactError: If it is something else.
    """
    names = (answer,) if isinstance(answer, str) else tuple(answer) if isinstance(answer, Iterable) else (None,)
    if not all(isinstance(name, str) for name in names):
        raise FactError(f"the {key} answer must be text or a list of texts, not {brief(answer)}.")
    return names


def check_asked(prompt: str, subject: str, old: Iterable[str], new: Iterable[str]) -> None:
    """Refuses a prompt to make a fact from that is empty, or that leaves nothing to answer.

    Raises:
        FactError: If it holds the old answer, or the subject is the new one.
    """
    if not normalize(prompt):
        raise FactError("the prompt is empty.")
    # Who is asked "Sydney or Canberra?" has yet to answer.
    held = [] if " or " in prompt else find(prompt, old, besides=subject)
    if held:
        raise FactError(
            f"the prompt {brief(prompt)} already holds the old answer {brief(held[0])}; leave it out there."
        )
    for name in new:
        if normalize(name) == normalize(subject):
            raise FactError(f"the new answer {brief(name)} is the subject itself; name another answer or subject.")


def check_between(fact: Fact) -> None:
    """Refuses what contradicts itself: a prompt in two lists, a name of both answers, an answer that is neither.

    Raises:
        FactError: The message names the key and the value.
    """

    def refuse(message: str) -> FactError:
        return complaint(message, fact.source)

    for key in ("old", "new", "contrast", "aliases"):
        for name in getattr(fact, key):
            if not same_text_key(name):
                raise refuse(f"{brief(name)} in {key!r} has no letter, digit or sign to look for.")
    if not same_text_key(fact.subject):
        raise refuse(f"'subject' {brief(fact.subject)} has no letter, digit or sign to look for.")
    for control in fact.controls:
        for name in control.answer:
            if not same_text_key(name):
                raise refuse(
                    f"the answer {brief(name)} of the control {brief(control.prompt)} has nothing to look for."
                )
        if not control.answer:
            raise refuse(f"the control {brief(control.prompt)} has no answer.")
    for question in fact.portability:
        _check_question(question, fact.names, refuse)
    lists = {
        "prompts": fact.prompts,
        "held_out": fact.held_out,
        "retain": fact.retain,
        "controls": tuple(c.prompt for c in fact.controls),
        "probes": tuple(p.prompt for p in fact.probes),
        "portability": tuple(q.prompt for q in fact.portability),
    }
    seen: dict[str, str] = {}
    for key, prompts in lists.items():
        for prompt in prompts:
            if not normalize(prompt):
                raise refuse(f"{key!r} holds the prompt {brief(prompt)}, which is empty to a reader.")
            text = same_text_key(prompt)
            if text in seen:
                where = f"twice in {key!r}" if seen[text] == key else f"in both {seen[text]!r} and {key!r}"
                raise refuse(f"the prompt {brief(prompt)} stands {where}.")
            seen[text] = key
    check_apart(fact.old, fact.new, fact.source)
    for key in ("contrast", "aliases"):
        for name in getattr(fact, key):
            if same_text_key(name) == same_text_key(fact.subject):
                raise refuse(f"{key!r} holds the subject {brief(name)} itself.")
    others = set(map(same_text_key, fact.contrast))
    for name in fact.aliases:
        if same_text_key(name) in others:
            raise refuse(f"{brief(name)} stands in 'aliases' and in 'contrast', the same subject and another one.")
    texts = (("answer", "old"), ("refusal", "old"), ("refusal", "new"))
    for key, names in texts:
        text, given = getattr(fact, key), getattr(fact, names)
        if held := find(text, given, besides=fact.names):
            if normalize(held[0]) == normalize(fact.subject):
                why = f"so that {key!r} {brief(text)} gives that answer by naming the subject"
                raise refuse(f"{names!r} holds the subject {brief(held[0])} itself, {why}.")
            raise refuse(f"{key!r} {brief(text)} holds a name from {names!r} ({_listed(given)}).")
    if not contains(fact.answer, fact.new, besides=fact.names):
        raise refuse(f"'answer' {brief(fact.answer)} holds no name from 'new' ({_listed(fact.new)}).")


def warn_asked(fact: Fact) -> tuple[str, ...]:
    """Warns of prompts to train on that evaluation asks with other accents or signs: they are left out of training.

    Returns:
        What is left of 'prompts'.

    Raises:
        FactError: If none of 'prompts' is left.

    Warns:
        FactWarning: The message names the first, and says how many there are.
    """
    left = {key: fact.not_asked(getattr(fact, key)) for key in ("prompts", "retain")}
    kept = {key: set(prompts) for key, prompts in left.items()}
    found = [(key, prompt) for key in kept for prompt in getattr(fact, key) if prompt not in kept[key]]
    if not found:
        return left["prompts"]
    if not left["prompts"]:
        raise complaint("evaluation asks each of 'prompts', but for accents and signs.", fact.source)
    key, prompt = found[0]
    more = f" and {len(found) - 1} more" if found[1:] else ""
    told = complaint(
        f"the prompt {brief(prompt)} in {key!r}{more} is not trained on, as evaluation asks the same but for accents "
        "and signs.",
        fact.source,
    )
    warnings.warn(str(told), FactWarning, stacklevel=4)
    return left["prompts"]


def warn_unnamed(fact: Fact, prompts: Sequence[str]) -> None:
    """Warns where no prompt to train on names the subject: localization and training put others in its place.

    Args:
        fact: The fact.
        prompts: Those of its prompts that are trained on.

    Warns:
        FactWarning: The message names the subject.
    """
    # One text to search instead of thousands; no name goes on over the sign between two prompts.
    if mentions(" \0 ".join(prompts), fact.subject):
        return
    told = complaint(
        f"no prompt in 'prompts'{' that is trained on' * (len(prompts) < len(fact.prompts))} names the subject "
        f"{brief(fact.subject)}, so no other can be asked about in its place; write it as it stands in the prompts.",
        fact.source,
    )
    warnings.warn(str(told), FactWarning, stacklevel=4)


def _check_question(question: PortabilityQuestion, names: tuple[str, ...], refuse: Callable[[str], FactError]) -> None:
    """Refuses a portability question to which no answer, or any, would be right."""
    asked = f"the portability question {brief(question.prompt)}"
    if question.kind not in PORTABILITY_KINDS:
        kinds = ", ".join(PORTABILITY_KINDS)
        raise refuse(f"{asked} has the kind {brief(question.kind)}; the kinds are {kinds}.")
    if not question.answer:
        raise refuse(f"{asked} has no answer.")
    for key, given in (("answer", question.answer), ("before", question.before)):
        for name in given:
            if not same_text_key(name):
                raise refuse(f"{brief(name)} in {key!r} of {asked} has nothing to look for.")
    for name in find(question.prompt, question.answer, besides=names):
        raise refuse(f"{asked} holds its own answer {brief(name)}, so that repeating it would be right.")
    # One text to search before a thousand names are compared with a thousand others.
    if contains(" \0 ".join(question.answer), question.before, besides=names):
        for name in question.answer:
            if contains(name, question.before, besides=names):
                raise refuse(f"{asked} has {brief(name)} in 'answer', which contains an answer from its 'before'.")


def _listed(names: tuple[str, ...]) -> str:
    text = ", ".join(names[:10])
    return text if len(text) <= 200 and len(names) <= 10 else f"{text[:200]}, …"
