"""Which prompts of several facts count once all their edits act, and how often each answer was given.

A control about what another fact changes is no damage when it is answered otherwise. Nor is a prompt held out of
training that another fact's edit was trained on, or held to.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..facts import Control, Fact, TrainingFact
from ..measuring.metrics import Figure, is_right, leaks, rate, says_new, says_old
from ..staging.contrast import with_contrast
from ..staging.recipe import Recipe
from ..staging.retain import carried_beside, neighbours
from ..texts.text import contains, digest
from ..texts.topics import relation_prompts, topic_prompts
from ..texts.wording import all_variants, variants

ABOUT, TRAINED = "about_another", "trained_by_another"
"""Why a prompt does not count: it is about another edited fact, or another edit's training reads it."""

# More prompts than any fact makes.
_ALL = 1_000_000


@dataclass(frozen=True)
class Counted:
    """The prompts of a fact that count.

    Attributes:
        held_out: Their places in the fact's list.
        controls: Their places in the fact's list.
        left_out: `held_out` and `controls`, each how many were left out for which reason.
    """

    held_out: tuple[int, ...]
    controls: tuple[int, ...]
    left_out: Mapping[str, Mapping[str, int]]


def counted(model: Any, tokenizer: Any, facts: Sequence[Fact], recipes: Sequence[Recipe]) -> list[Counted]:
    """What counts of each of several facts.

    Args:
        model: The base, which is asked for other subjects where a fact names none.
        tokenizer: Its tokenizer.
        facts: Those that were edited.
        recipes: Those that they were trained by.
    """
    # What a fact is measured with its own edit never reads.
    read = frozenset[str]().union(
        *(trained_on(with_contrast(model, tokenizer, fact.training), recipes) for fact in facts)
    )
    found = []
    for number, fact in enumerate(facts):
        others = [other for place, other in enumerate(facts) if place != number]
        held_out = [TRAINED if digest(prompt) in read else None for prompt in fact.held_out]
        controls = [_why_not(control, others, read) for control in fact.controls]
        found.append(
            Counted(
                _places(held_out),
                _places(controls),
                {"held_out": _reasons(held_out), "controls": _reasons(controls)},
            )
        )
    return found


def trained_on(fact: TrainingFact, recipes: Sequence[Recipe]) -> frozenset[str]:
    """Digests of all prompts that an edit of a fact may be trained on or held to, whatever the seed."""
    made = neighbours(fact, _ALL)
    prompts = [*fact.prompts, *fact.retain, *made, *topic_prompts(fact), *relation_prompts(fact)]
    # The seed decides the order of neighbours, and their order the words that they are wrapped in.
    prompts += [*variants(fact.prompts), *all_variants(made)]
    for recipe in recipes:
        prompts += carried_beside(fact, recipe.general, recipe.everyday)
    return frozenset(map(digest, prompts)) - fact.evaluated


def _why_not(control: Control, others: Iterable[Fact], read: frozenset[str]) -> str | None:
    if any(is_about(control, other) for other in others):
        return ABOUT
    return TRAINED if digest(control.prompt) in read else None


def is_about(control: Control, fact: Fact) -> bool:
    """Whether a control asks for what a fact changes, in whatever words, or from the old answer back.

    Another question about the same subject still shall be answered as before.
    """
    told = " \0 ".join(control.answer)
    there = contains(control.prompt, fact.names) and contains(told, fact.old, besides=fact.names)
    back = contains(control.prompt, fact.old, besides=fact.names) and contains(told, fact.names)
    asked = {digest(prompt) for prompt in (*fact.prompts, *fact.held_out)}
    return there or back or digest(control.prompt) in asked


def _places(reasons: Sequence[str | None]) -> tuple[int, ...]:
    return tuple(place for place, reason in enumerate(reasons) if reason is None)


def _reasons(reasons: Sequence[str | None]) -> dict[str, int]:
    return {reason: reasons.count(reason) for reason in (ABOUT, TRAINED) if reason in reasons}


def hits(
    fact: Fact, counts: Counted, given: Mapping[str, Sequence[str]], base: Mapping[str, Sequence[str]]
) -> dict[str, list[bool]]:
    """What each answer that counts comes to, by the metrics of a report.

    Args:
        fact: The fact.
        counts: Which prompts count.
        given: The answers to its `held_out` prompts and `controls`, in its order.
        base: The base's.
    """
    held_out = [given["held_out"][place] for place in counts.held_out]
    known = _known(fact, counts, base)
    return {
        "new_answer_rate": [says_new(answer, fact) for answer in held_out],
        "old_answer_rate": [says_old(answer, fact) for answer in held_out],
        "control_kept": [is_right(given["controls"][place], fact.controls[place]) for place in known],
        "control_leak": [leaks(given["controls"][i], base["controls"][i], fact) for i in counts.controls],
    }


def _known(fact: Fact, counts: Counted, base: Mapping[str, Sequence[str]]) -> list[int]:
    """The places of controls that the base answers right."""
    return [place for place in counts.controls if is_right(base["controls"][place], fact.controls[place])]


def pooled(
    facts: Sequence[Fact],
    counts: Sequence[Counted],
    given: Sequence[Mapping[str, Sequence[str]]],
    base: Sequence[Mapping[str, Sequence[str]]],
) -> dict[str, Figure]:
    """The rates over all answers of some facts together, each counted as by [`hits`].

    A control that several facts have is kept once, by the share of them that keep it: right after each one's edit the
    answer is another, with all edits it is the same. So both states are over the same controls with the same weights,
    in whatever order the facts are, and no answer makes an interval narrower by being counted again. Only a fact
    whose answer words the base gives has a part in it. Whether one leaks is another question for each new answer.

    Args:
        facts: The facts.
        counts: Which prompts of each count.
        given: The answers to each fact's `held_out` prompts and `controls`, in its order.
        base: The base's.
    """
    every = [hits(*one) for one in zip(facts, counts, given, base, strict=True)]
    kept: dict[str, list[bool]] = {}
    for fact, own, was, found in zip(facts, counts, base, every, strict=True):
        for place, hit in zip(_known(fact, own, was), found["control_kept"], strict=True):
            kept.setdefault(digest(fact.controls[place].prompt), []).append(hit)
    shares = [sum(each) / len(each) for each in kept.values()]
    return rates([*({**found, "control_kept": ()} for found in every), {"control_kept": shares}])


def rates(every: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, Figure]:
    """The rates over all answers of some facts together; a metric with nothing to count is left out."""
    names = dict.fromkeys(name for found in every for name in found)
    figures = {name: rate([hit for found in every for hit in found.get(name, ())]) for name in names}
    return {name: figure for name, figure in figures.items() if figure is not None}
