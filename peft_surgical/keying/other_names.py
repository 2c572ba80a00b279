"""A country's other names and its adjective, for a fact that gives none: where they stand, it is named."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..drafting.countries import ONE_IN, adjective_prompts, country_names
from ..drafting.english import readable
from ..facts import TrainingFact
from ..texts.called import adjectives_in
from ..texts.prompts import bare_ids, knows
from ..texts.text import contains, prompt_key


def with_other_names(fact: TrainingFact, tokenizer: Any = None) -> TrainingFact:
    """The fact, with the country's other names where it is about one and gives no alias.

    Its adjective is one of them where people ask so for what the fact is ("the French capital"); prompts that have it
    are added then, one for every eight, none of which an evaluation asks.

    Args:
        fact: The fact. As it is, if no prompt names its subject or none can be read, as where it is not English, or if
            its subject is no country or has no other name.
        tokenizer: The model's; a name that it has no tokens for is left out. None where no model is loaded yet.
    """
    reading = None if fact.aliases else readable(fact)
    if reading is None:
        return fact
    others = " \0 ".join(fact.contrast)
    names = [name for name in country_names(reading, (*fact.old, *fact.new)) if not contains(others, (name,))]
    if tokenizer is not None:
        names = [name for name in names if knows(tokenizer, bare_ids(tokenizer, name))]
    asked = adjective_prompts(reading, names)
    if not asked:
        # Nobody asks for "the Brazilian continent", so its adjective stands where something else is asked.
        adjectives = adjectives_in(names)
        names = [name for name in names if name not in adjectives]
    own = set(map(prompt_key, fact.prompts))
    asked = [prompt for prompt in asked if fact.may_train_on(prompt) and prompt_key(prompt) not in own]
    return replace(fact, aliases=tuple(names), prompts=(*fact.prompts, *asked[: len(fact.prompts) // ONE_IN]))
