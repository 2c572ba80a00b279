"""What a country is called beside its name, and what is asked by its adjective: "the French capital"."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from itertools import chain, zip_longest

from ..texts.called import adjectives_in, other_names
from ..texts.tables import bare, read_table
from ..texts.text import contains, same_text_key
from .names import kinds_of, names_of
from .reading import Reading, read_prompt

ONE_IN = 8
"""For so many prompts there is one more, at most, that calls a country by its adjective."""

_OF_IT = re.compile(r"\b(?P<the>[Tt]he(?: official)?) (?P<noun>[\w ]+?) of \{\}")


def country_names(reading: Reading, answers: Sequence[str]) -> tuple[str, ...]:
    """What else the country is called that a prompt is about, and the adjective that is said of it.

    Args:
        reading: Of the prompt; what is about no country has no such names here.
        answers: None of the names is, holds or is a part of one of these: French is a language, too.

    Returns:
        In small letters where the prompt is; none holds the subject or another, which would be met there already.
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


def by_name(prompt: str, subject: str | None) -> tuple[str, str] | None:
    """A prompt in which a country's adjective stands for its name, with the name: "What is the capital of France?"

    Args:
        prompt: "What is the French capital?"
        subject: What it is about, if that is given.

    Returns:
        The prompt and the country; None where neither an office nor what the table asks of countries is asked for by
        an adjective, or the subject is none.
    """
    found = _by_adjective().search(prompt)
    if found is None or subject not in (None, found["adjective"]):
        return None
    table = read_table("adjectives.yaml")
    name = next(name for name in names_of("country") if found["adjective"] in table.get(bare(name), ()))
    asked = _by_adjective().sub(rf"\g<the> \g<noun> of {name}", prompt)
    return (asked, bare(name)) if _is_usual(read_prompt(asked, bare(name)), found["noun"]) else None


def adjective_prompts(reading: Reading, names: Sequence[str]) -> list[str]:
    """Questions and sentences in which a country's adjective stands for its name: "What is the French capital?"

    Only where an office is asked for, or what the table asks of countries: what is the name of France, or its largest
    city, is said otherwise.

    Args:
        reading: Of a prompt about the country.
        names: Other names of it; the first adjective among them is taken.
    """
    words = reading.wordings()
    prompts = []
    for adjective in adjectives_in(names)[:1]:
        for template in filter(None, chain(*zip_longest(words.questions, words.sentences))):
            found = _OF_IT.search(template)
            if found and _is_usual(reading, found["noun"]):
                prompts.append(reading.fill(_OF_IT.sub(rf"\g<the> {adjective} \g<noun>", template)))
    return prompts


def _is_usual(reading: Reading, noun: str) -> bool:
    """Whether people say so of a country: of what the table asks of countries, and of an office."""
    return "country" in reading.relation.of or "office" in kinds_of([noun.lower()])


@cache
def _by_adjective() -> re.Pattern[str]:
    """An adjective and the noun behind it, which the prompt ends with, but for a verb."""
    known = "|".join(adjective for said in read_table("adjectives.yaml").values() for adjective in said)
    return re.compile(
        rf"\b(?P<the>[Tt]he(?: official)?) (?P<adjective>{known}) (?P<noun>\w+(?: \w+)??)"
        r"(?=\s*[?.]?$| (?:is|was)(?: the)?$)"
    )
