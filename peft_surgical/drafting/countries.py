"""What a country is called beside its name, and what is asked by its adjective: "the French capital"."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import chain, zip_longest

from ..texts.called import adjectives_in, other_names
from ..texts.tables import bare, read_table
from ..texts.text import contains, same_text_key
from .names import kinds_of
from .reading import Reading

_OF_IT = re.compile(r"\b(?P<the>[Tt]he(?: official)?) (?P<noun>[\w ]+?) of \{\}")


def country_names(reading: Reading, answers: Sequence[str]) -> tuple[str, ...]:
    """What else the country is called that a prompt is about, and the adjective that is said of it.

    Args:
        reading: Of the prompt; what is about no country has no such names here.
        answers: None of the names is, holds or is a part of one of these: French is a language, too.

    Returns:
        As small as the prompt is written; none holds the subject or another, which would be met there already.
    """
    country = re.sub("^the ", "", reading.phrase, flags=re.I)
    called = (country, *other_names(country))
    if "country" not in kinds_of(called):
        return ()
    keys = {same_text_key(bare(name)) for name in called}
    adjectives = [said for name, said in read_table("adjectives.yaml").items() if same_text_key(name) in keys]
    found = [country]
    for name in chain(called, *adjectives):
        if not contains(name, (*found, *answers)) and not any(contains(answer, (name,)) for answer in answers):
            found.append(name.lower() if reading.prompt.islower() else name)
    return tuple(found[1:])


def adjective_prompts(reading: Reading, names: Sequence[str]) -> list[str]:
    """Questions and sentences in which a country's adjective stands for its name: "What is the French capital?"

    Only where a relation of the table or an office is asked for: what is the name of France, or its largest city, is
    said otherwise.

    Args:
        reading: Of a prompt about the country.
        names: Other names of it; the first adjective among them is taken.
    """
    words = reading.wordings()
    prompts = []
    for adjective in adjectives_in(names)[:1]:
        for template in filter(None, chain(*zip_longest(words.questions, words.sentences))):
            found = _OF_IT.search(template)
            if found and (reading.relation.name or "office" in kinds_of([found["noun"].lower()])):
                prompts.append(reading.fill(_OF_IT.sub(rf"\g<the> {adjective} \g<noun>", template)))
    return prompts
