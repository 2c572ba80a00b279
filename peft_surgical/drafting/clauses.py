"""Other wordings of a question that no table knows, from the order of its words alone.

```py
>>> training, held_out = from_clause("Which river flows through {}?")
>>> training.sentences
('The river that flows through {} [is/was]',)
```
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial

from ..texts.grammar import SUBJECT, as_clause, capitalized
from ..texts.verbs import has_adverb
from .names import kinds_of
from .recognition import PERSON
from .relations import Wordings, from_noun, shortened

# What "how …" measures, where that is sure.
_MEASURES = {
    "tall": "height",
    "high": "height",
    "long": "length",
    "old": "age",
    "deep": "depth",
    "wide": "width",
    "heavy": "weight",
    "big": "size",
    "large": "size",
    "fast": "speed",
    "thick": "thickness",
}
MONTHS = "January|February|March|April|May|June|July|August|September|October|November|December"
# By how its answers look: the noun for a time, and what stands before the answer in a sentence.
_TIMES = (
    (re.compile(r"\d{3,4}"), "year", "in"),
    (re.compile(rf".*\b(?:{MONTHS})\b.*\d.*|.*\d.*\b(?:{MONTHS})\b.*", re.I), "date", "on"),
    (re.compile(r"\d{1,2}(?:[:.]\d\d)? ?(?:[ap]\.?m\.?|o'clock)|\d{1,2}:\d\d|noon|midnight", re.I), "time", "at"),
)
_PREPOSITIONS = ("of", "in", "on", "at", "for", "from", "by", "to", "with", "under", "after", "through", "near")
_FINITE = (
    r"(?:is|are|was|were|has|have|had|can|will|\w{2,}(?<![su])s|\w{2,}ed|won|made|wrote|sold|led|built|held|ran"
    r"|broadcast|cut|hit|hurt|put|set|beat|split|shut|cast)"
)
_LEAD = "If I remember correctly,"

Made = tuple[Wordings, Wordings] | None


def from_clause(core: str, answers: Sequence[str] = ()) -> tuple[Wordings, Wordings]:
    """Wordings of a question for training and for held-out prompts; none where no other wording is sure English.

    Args:
        core: A template.
        answers: What may be answered; they tell a year from a date.
    """
    clause = as_clause(core)
    if clause is None or re.search(r"\byou\b", clause) or "," in clause:
        return Wordings(), Wordings()
    when = partial(_when, answers=answers)
    for make in (_measure, when, _within, _called, _which, _number, _where, _why, _at_that_time, _who, _what):
        made = make(clause)
        if made is not None:
            return made
    return Wordings(), Wordings()


def _measure(clause: str) -> Made:
    """ "how tall {} is", "what colour the flag of {} is", "how much {} costs"."""
    found = re.fullmatch(r"how (?P<how>\w+) (?P<of>(?:(?:the|an?) )?(?:[\w -]+ )?\{\}) (?:is|are|was|were)", clause)
    noun = _MEASURES.get(found["how"]) if found else None
    if noun is None:
        found = re.fullmatch(
            r"(?:what|which) "
            r"(?P<noun>colou?r|size|age|shape|height|weight|length|width|depth|nationality|gender|genre) "
            r"(?P<of>(?:(?:the|an?) )?(?:[\w -]+ )?\{\}) (?:is|are|was|were)",
            clause,
        )
        noun = found["noun"] if found else None
    if noun is None:
        found = re.fullmatch(r"how much (?P<of>(?:an? )?\{\}) costs?", clause)
        noun = "price"
    if found is None:
        return None
    possessive = f"{SUBJECT}'s {noun}" if found["of"] == SUBJECT else ""
    return from_noun(f"the {noun} of {found['of']}", who=False, possessive=possessive)


def _when(clause: str, answers: Sequence[str]) -> Made:
    found = re.fullmatch(
        r"(?:when|(?:in|on|at) (?:which|what) (?:year|date|time)|what year) (?P<rest>.*\{\}.*)", clause
    )
    kinds = [kind for kind in _TIMES if answers and all(kind[0].fullmatch(answer.strip()) for answer in answers)]
    if found is None or not kinds:
        return None
    rest = found["rest"]
    _, noun, before = kinds[0]
    held = Wordings(
        (f"What would you say [is/was] the {noun} {before} which {rest}?",),
        (f"{_LEAD} {rest} {before} the year" if noun == "year" else f"{_LEAD} {rest} {before}",),
    )
    training = Wordings(
        (f"What [is/was] the {noun} {before} which {rest}?",),
        (f"{capitalized(rest)} {before}", f"The {noun} {before} which {rest} [is/was]"),
    )
    # "The Battle was in" says when as little as where.
    bare = re.fullmatch(r".*\{\} (?:is|are|was|were)", rest)
    return None if bare else (training, held)


def _which(clause: str) -> Made:
    """ "which river flows through {}", "which club {} plays for", "on which street {} is", "which actor plays {}"."""
    found = re.fullmatch(
        r"(?P<before>(?:in|on|at|for|from|by|to|with|under|after) )?(?:which|what) "
        r"(?P<noun>(?!(?:is|are|was|were|has|have|year|time)\b)[a-z][a-z -]*?) (?P<rest>.*\{\}.*)",
        clause,
    )
    if found is None:
        return None
    noun, rest = _split(clause[len(found["before"] or "") :].partition(" ")[2])
    # "The street on which it is is" trips over its verbs.
    if (
        not noun
        or rest == SUBJECT
        or re.search(r"(?<!s)(?<!\b(?:ga|bu))s$", noun)
        # "The astronaut first that walked on {}"; without the adverb it would be another question.
        or has_adverb(noun)
        # "which two countries share {}": the verb is behind the plural.
        or re.match(r"(?:two|three|four|five|six|seven|eight|nine|ten|\d+|many|several|other)\b", noun)
        or re.search(r" (?:is|are|was|were)$", rest)
        or re.fullmatch(r"nationality|colou?r|size|age|(?:kind|type|sort) of .*|time", noun)
    ):
        return None
    who = bool(PERSON.search(noun) or kinds_of([noun.split()[-1]]) & {"occupation", "office"})
    link = f"{found['before']}{'whom' if who else 'which'}" if found["before"] else "who" if who else "that"
    training, held_out = from_noun(f"the {noun} {link} {rest}", who=who)
    more = () if found["before"] else (f"What {noun} {rest}?", f"Which {noun} is it that {rest}?")
    return training + Wordings(more, terse=shortened(noun)), held_out


def _within(clause: str) -> Made:
    """ "in which month {} is", "which ocean {} is in"."""
    noun = r"(?P<noun>[a-z]+(?: [a-z]+)?)"
    found = re.fullmatch(rf"in (?:which|what) {noun} \{{\}} (?P<be>is|are)", clause) or re.fullmatch(
        rf"(?:which|what) {noun} \{{\}} (?P<be>is|are) in", clause
    )
    if found is None or has_adverb(found["noun"]):
        return None
    noun, be = found["noun"], found["be"]
    training = Wordings(
        (f"In which {noun} {be} {SUBJECT}?", f"Which {noun} {be} {SUBJECT} in?"),
        (f"{SUBJECT} {be} in",),
        terse=shortened(noun),
    )
    held = Wordings((f"In which {noun} would you say {be} {SUBJECT}?",), (f"{_LEAD} {SUBJECT} {be} in",))
    return training, held


def _called(clause: str) -> Made:
    """ "what a baby {} is called"."""
    found = re.fullmatch(r"what (?P<what>(?:(?:the|an?) (?:[a-z-]+ )?)?\{\}) (?P<be>is|are) called", clause)
    if found is None:
        return None
    what, be = found["what"], found["be"]
    training = Wordings(
        (f"What {be} {what} called?", f"What do people call {what}?", f"What is the word for {what}?"),
        terse=(f"Word for {what}?",),
    )
    return training, Wordings((f"What name does one give to {what}?", f"By what name {be} {what} known?"))


def _split(text: str) -> tuple[str, str]:
    """The noun that "which" asks for and what is said of it; nothing where the two cannot be told apart."""
    before, _, _ = text.partition(SUBJECT)
    words = before.split()
    # Up to an article the noun ends before the verb: "river flows through", "club {} plays for".
    if not words or any(word in ("the", "a", "an") for word in words[:1]):
        return "", ""
    finite = [n for n, word in enumerate(words) if n and re.fullmatch(_FINITE, word)]
    finite = [n for n in finite if words[n - 1] not in ("is", "are", "was", "were", "has", "have")]
    if len(finite) == 1:
        return " ".join(words[: finite[0]]), " ".join(text.split(" ")[finite[0] :])
    nouns = words[:-1] if words[-1] in ("the", "a", "an") else words
    if finite or len(nouns) > 2 or any(word in _PREPOSITIONS for word in nouns):
        return "", ""
    return " ".join(nouns), " ".join(text.split(" ")[len(nouns) :])


def _number(clause: str) -> Made:
    """ "how many moons {} has", "how many planets are in {}"."""
    found = re.fullmatch(
        r"how many (?P<of>[a-z-]+) (?:there )?(?:is|are|was|were) (?P<rest>in|on) (?P<slot>\{\})", clause
    )
    if found is not None:
        return from_noun(f"the number of {found['of']} {found['rest']} {SUBJECT}", who=False)
    found = re.fullmatch(r"how many (?P<of>[a-z-]+) (?P<rest>(?P<slot>(?:an? )?\{\}) (?:has|have|had))", clause)
    if found is None:
        return None
    training, held_out = from_noun(f"the number of {found['of']} that {found['rest']}", who=False)
    of, slot = found["of"], found["slot"]
    more = (f"{capitalized(found['rest'])} how many {of}?", f"What [is/was] the number of {of} of {slot}?")
    training += Wordings(more, (f"The number of {of} of {slot} [is/was]",), terse=shortened(of))
    return training, held_out


def _where(clause: str) -> Made:
    found = re.fullmatch(r"where (?P<rest>.*\{\} (?!(?:is|are|was|were)$).+)", clause)
    return from_noun(f"the place where {found['rest']}", who=False) if found else None


def _why(clause: str) -> Made:
    found = re.fullmatch(r"why (?P<rest>.*\{\}.*)", clause)
    return from_noun(f"the reason why {found['rest']}", who=False) if found else None


def _at_that_time(clause: str) -> Made:
    """ "who the leader of {} during World War II was", "what the capital of {} in 1900 was"."""
    found = re.fullmatch(
        r"(?P<asks>who|what) (?P<noun>the (?!names? )[\w' -]+ of (?:the )?\{\}"
        r" (?P<time>(?:during|in|on|at|before|after) [^{}]+?)) (?P<be>is|was)",
        clause,
    )
    if found is None:
        return None
    training, held_out = from_noun(found["noun"], who=found["asks"] == "who")
    time, noun = capitalized(found["time"]), found["noun"].removesuffix(f" {found['time']}")
    first = Wordings((f"{time}, {found['asks']} {found['be']} {noun}?",), (f"{time}, {noun} {found['be']}",))
    return training + first, held_out


def _who(clause: str) -> Made:
    found = re.fullmatch(
        r"who (?P<rest>(?:(?:is|was) (?:known|regarded|considered|credited)"
        r"|(?!is |are |was |were |the |\{\}|(?:do|did|does) )[a-z]+) .*)",
        clause,
    )
    if found is None:
        return None
    rest = found["rest"]
    training = Wordings((f"Who is it that {rest}?",), (f"The one who {rest} is",))
    return training, Wordings((f"Who would you say {rest}?",), (f"{_LEAD} the one who {rest} is",))


def _what(clause: str) -> Made:
    """ "what {} eats", "what {} is famous for"."""
    found = re.fullmatch(r"what (?P<rest>(?:an? )?\{\} (?!(?:is|are|was|were|do|does|did)$).+)", clause)
    if found is None or re.search(r"\b(?:called|named)$", clause):
        return None
    rest = found["rest"]
    training = Wordings((f"What is it that {rest}?",), (f"What {rest} is",))
    held_out = Wordings((f"What would you say {rest}?",), (f"{_LEAD} what {rest} is",))
    # "{} is famous for" is ended by the answer; "{} means in Greek" is not.
    if rest.split()[-1] in (*_PREPOSITIONS, "as"):
        training = Wordings(sentences=(rest,)) + training
        stated = re.fullmatch(r"(?P<of>\{\}) (?P<be>is|are|was|were) (?P<what>.+) (?P<last>\w+)", rest)
        if stated:
            asked = f"{capitalized(stated['last'])} what {stated['be']} {stated['of']} {stated['what']}?"
            training += Wordings((asked,))
        held_out += Wordings(sentences=(f"{_LEAD} {rest}",))
    return training, held_out
