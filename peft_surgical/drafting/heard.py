"""The short answer in what a model said to a prompt, or none where it is not sure."""

from __future__ import annotations

import re

from ..measuring.metrics import sounds_unsure
from ..texts.tables import bare
from ..texts.text import Span, contains, normalize, occurrences
from ..texts.verbs import participle
from .capitals import ENDINGS, TITLES, names_in
from .clauses import MONTHS
from .names import PEOPLE, PLACES, kinds_of, names_of, neighbours_of
from .reading import Reading
from .recognition import NO_NOUN

_ASKS_NUMBER = re.compile(r"how (?:many|much|old)\b", re.I)
_ASKS_WHEN = re.compile(r"when\b", re.I)
_ASKS_YEAR = re.compile(r"(?:in )?wh(?:at|ich) year\b", re.I)
# "What is Poseidon the god of?", which "the Greek god of the sea" answers.
_ASKS_ROLE = re.compile(r"what (?:is|was) \{\} the (?P<noun>[\w-]+) (?P<of>of|for)\W*", re.I)
_NUMBER = re.compile(
    r"(?<![\w.,-])\d(?:[\d,.]*\d)?(?: (?:hundred|thousand|million|billion|trillion)\b)*(?![\d-]|\w)", re.I
)
# What no longer belongs to an answer that ends a sentence: "Tokyo, which", "William Shakespeare in 1600".
_END = re.compile(r",(?!\d)|[;(:]| (?:and|but|who|which|in|on|for|with|by|because|since|as|is|was|at)\b")
_NO_TITLE = "".join(rf"(?<!\b{title})" for title in TITLES)
# "Apple Inc. was founded by": the sentence goes on in small letters.
_NO_TITLE += "".join(rf"(?<!\b{ending}(?=\.,? [a-z]))" for ending in ENDINGS)
# A letter by itself may be an initial, or a unit where it is a small one: "8,849 m."
_SENTENCE_END = re.compile(
    rf"{_NO_TITLE}(?:(?<=[^\W\d_]{{2}})|(?<=\d)|(?<=\s[a-z]))[.!?][\"'\u201d\u2019)*]*(?:\s|$)|\n"
)
_FIRST_OF_LIST = re.compile(r"^1[.)] (?=[^\n]*\n\s*2[.)] )")
# What a model says before it comes to the point, and words that are no answer though they have a capital.
_PREFACE = re.compile(
    r"(?:as of (?:\w+ )?\d{4}\b,?|(?:as of|as an?|according to|based on|to the best of|to my knowledge)\b[^,]*,) ",
    re.I,
)
# How a chat begins, and how one says yes to an open question.
_OPENING = re.compile(
    r"^(?:(?:(?:certainly|of course|absolutely|definitely|indeed|sure(?: thing)?|ok(?:ay)?|no problem)[!.,:]+"
    r"|(?:hello|hi|hey|great|(?:that(?:['\u2019]s| is) an? )?(?:great|good|excellent) question)(?: there)?[!.]+)\s+)+",
    re.I,
)
_YES = re.compile(r"^(?:yes|yeah)[!.,:]+\s+", re.I)
_DAY = rf"(?:(?:{MONTHS}) \d{{1,2}}(?:st|nd|rd|th)?|\d{{1,2}}(?:st|nd|rd|th)?(?: of)? (?:{MONTHS}))(?:,? \d{{4}})?"
# What a place is, before its name: "the Indian state of Uttar Pradesh".
_SORT_OF_PLACE = re.compile(
    r"^(?:[A-Z][\w-]+ |[a-z-]+ )?(?:state|city|town|village|province|region|district|county|country|island|kingdom) of"
    r" (?=[A-Z])"
)
# A time on the way to a place or a person: "died on July 19, 1977, in Memphis", "written in 1600 by".
_TIME = re.compile(
    rf"(?:^|,? )(?:(?:(?:in|on|around|about|circa) )?(?:{_DAY}|(?:{MONTHS}),? \d{{4}})"
    rf"|(?:in|around|about|circa)(?: the year| early| mid| late)? (?:(?:{MONTHS})|\d{{4}}))(?![\w-]),?"
)
_ASKS_OPENLY = re.compile(r"(?:\w+ )?(?:who|whom|whose|what|which|where|when|why|how)\b", re.I)
_ASKS_PLACE_OR_PERSON = re.compile(
    r"where\b|(?:by )?whom?\b|(?:in|at|from|on) (?:which|what) (?:city|town|village|country|state|place|continent)\b",
    re.I,
)
# What the beginning of a sentence may go on with without an answer, and what cannot end one: "known for its", "where
# you can", "home to the".
_SAID_OF = re.compile(r"(?:\w+ )?(?:known|famous|renowned|popular|home|used) (?:for|as|to|by|in)\b")
_UNFINISHED = re.compile(
    r"(?:where|when|which|who|whose|that|to) .*|(?:located|situated|called|named|considered|regarded|based|founded)"
    r"|(?:.* )?(?:its|the|an?|to|of|for|from|and|or|can|will|would|are|be|has|have|his|her|their|your|our|my|you|we)"
)
_NO_ANSWER = re.compile(
    r"i(?:['\u2019]\w+)?|as|it|he|she|they|this|that|there|sorry|unfortunately|well|ad|bc|bce|ce|am|pm"
    r"|certainly|of course|absolutely|definitely|sure|ok|okay",
    re.I,
)
# How sure or how usual something is, and who thinks so: nothing of it belongs to the answer.
_ADVERB = r"(?:most )?[a-z]{2,}(?:ally|ently|antly|ately|[bdkrt]ely|only|arily|bly),?|(?:perhaps|maybe|today|now),"
_HEDGE = re.compile(
    rf"(?:(?:{_ADVERB}|about|around|roughly|nearly|almost|only|just|often|perhaps|maybe|now|still|also|that) "
    r"|(?:credited|considered|believed|thought|said|regarded|attributed)(?: to be| to have been| as)? "
    r"|to be |to have been )+"
)
_BEGINS_HEDGED = re.compile(rf"^(?:{_ADVERB}) ", re.I)
_YEAR_OF_TIME = re.compile(
    r"\b(?:in|since|from|until|around|about|year)(?: [A-Z][a-z]+,?| the year)? (\d{4})\b(?!-[^\W\d])"
)
# What a company's name goes on with: "The Coca-Cola Company is headquartered in Atlanta."
_COMPANY = re.compile(
    r"(?:,? (?:Motors?|Company|Corporation|Incorporated|Limited|Group|Holdings|International|Entertainment"
    rf"|(?:{'|'.join(ENDINGS)})\b\.?)(?!\w))*"
)
_THERE = re.compile(r"\b(?:in|at|from|near|outside) (?=(?:the )?[A-Z])")
_MOST_WORDS, _SHORT = 6, 3


def guess_answer(said: str, reading: Reading) -> str | None:
    """The short answer in what a model said to a prompt; None where there is none to be seen.

    ```py
    >>> guess_answer("The capital of Japan is Tokyo.", read_prompt("What is the capital of Japan?", "Japan"))
    'Tokyo'
    ```
    """
    sentence = _first_sentence(said, reading)
    if not sentence or sounds_unsure(sentence):
        return None
    rest = _after_a_wording(sentence, reading)
    if not reading.asks and _SAID_OF.match(sentence if rest is None else rest):
        return None
    asks_year = reading.relation.answer == "year" or _ASKS_YEAR.match(reading.core)
    year = _year_in((rest or sentence).replace(reading.subject, "")) if asks_year else None
    if year:
        return year
    if rest is not None:
        return _beginning(rest, reading)
    role = _ASKS_ROLE.fullmatch(reading.core)
    if role and (told := re.search(rf"\b{role['noun']} {role['of']} (.+)", sentence)):
        return _beginning(told[1], reading)
    if _ASKS_WHEN.match(reading.core):
        # A name in such a sentence is not the time.
        return _year_in(sentence.replace(reading.subject, ""))
    names = (bare(name) for name in names_of(reading.relation.answer))
    known = [span for name in names for span in occurrences(sentence, name) if _may_answer(name, sentence, reading)]
    if known:
        return sentence[slice(*min(known, key=lambda span: (span[0], -span[1])))]
    if asks_year or _ASKS_NUMBER.match(reading.core):
        numbers = (number[0] for number in _NUMBER.finditer(sentence))
        return next((number for number in numbers if _may_answer(number, sentence, reading)), None)
    return _name_near(sentence, reading)


def _year_in(text: str) -> str | None:
    """The first number of four digits, one behind "in" before others: "The 1000-room palace was built in 1762"."""
    found = _YEAR_OF_TIME.search(text) or re.search(r"\b(\d{4})\b", text)
    return found and found[1]


def _first_sentence(said: str, reading: Reading) -> str:
    """The first sentence that may answer, without what comes before the point and without the time of a place."""
    text = _OPENING.sub("", _FIRST_OF_LIST.sub("", said.strip()))
    if _ASKS_OPENLY.match(reading.core) or not reading.asks:
        text = _YES.sub("", text)
    text = _BEGINS_HEDGED.sub("", _PREFACE.sub("", text, count=1))
    sentence = _SENTENCE_END.split(text, maxsplit=1)[0].strip(" .!?\"'*")
    if not (_ASKS_PLACE_OR_PERSON.match(reading.core) or reading.relation.answer in (*PLACES, "place", "person")):
        return sentence
    asked = re.sub(r"\W+", " ", reading.prompt)
    return _TIME.sub(lambda found: found[0] if contains(asked, [found[0].strip(" ,")]) else "", sentence)


def _beginning(rest: str, reading: Reading) -> str | None:
    """The answer that what follows a wording of the fact begins with."""
    hedge = _HEDGE.match(rest)
    cut = _END.split(rest[hedge.end() :] if hedge else rest, maxsplit=1)[0].strip()
    cut = re.sub(r"^(?:the|an?) ", "", cut.strip(" \"'*\u201c\u201d"))
    if reading.relation.answer in (*PLACES, "place"):
        cut = _SORT_OF_PLACE.sub("", cut)
    if reading.relation.answer == "person" and re.search(r"(?:^| )[A-Z]\S+ [a-z-]{4,} [A-Z]", cut):
        # "Italian artist Leonardo da Vinci"
        cut = _name_near(cut, reading) or cut
    cut = _core(cut, reading)
    # "Ford was founded by Henry Ford."
    namesake = reading.relation.answer == "person" and cut.endswith(f" {reading.subject}")
    fits = 0 < len(cut.split()) <= _MOST_WORDS and (namesake or not contains(cut, [reading.subject]))
    return cut if fits and not _UNFINISHED.fullmatch(cut) and _may_answer(cut, rest, reading) else None


def _may_answer(name: str, sentence: str, reading: Reading) -> bool:
    """Whether a name may be the answer: the prompt has not named it, and who asks for somebody gets somebody.

    Args:
        name: As it stands in the sentence.
        sentence: What was said.
        reading: The prompt.
    """
    asked = set(map(_word, reading.prompt.split()))
    if all(_word(word) in asked for word in name.split()) and " or " not in reading.prompt:
        return False
    if _NO_ANSWER.fullmatch(name) or contains(reading.subject, [name]):
        return False
    who = re.match(r"who\b", reading.core, re.I) is not None
    if not (who or reading.relation.answer == "person"):
        return True
    # "Amazon.com" has not founded Amazon; Henry Ford has founded Ford.
    is_subject = re.match(rf"{re.escape(normalize(reading.subject))}\b", normalize(name)) is not None
    # The "National Anthem of the United States of America" has not written the US national anthem.
    rest = reading.phrase.rpartition(f"{reading.subject} ")[2] if reading.is_part else ""
    is_thing = bool(rest) and contains(name, [rest])
    return not (is_subject or is_thing) and _may_be_somebody(name, sentence, reading)


def _may_be_somebody(name: str, sentence: str, reading: Reading) -> bool:
    kinds = kinds_of([name])
    if kinds and not kinds & PEOPLE:
        # A country wins a cup; none has written a book or is a president.
        acts = not reading.relation.name and not re.match(r"who (?:is|are|was|were) ", reading.core, re.I)
        return acts and "language" not in kinds and bool(kinds & {"place", "state"})
    if " " in name:
        return True
    # "an Italian painter", "painter" being known; "American author Harper Lee"
    found = re.search(rf"(\b[Aa]n? )?(?<!\w){re.escape(name)} ([a-z][\w-]*)(?: [a-z][\w-]*)? [A-Z]\S+ [A-Z]", sentence)
    near = re.search(rf"(\b[Aa]n? )?(?<!\w){re.escape(name)} ([a-z][\w-]*)", sentence)
    if near and (near[1] or kinds_of([near[2]]) & {"occupation", "office"}):
        return False
    return found is None or _acts(found[2])


def _acts(word: str) -> bool:
    """Whether a word after a name is no noun that the name describes: "wrote", "released", "is", "with"."""
    return participle(word) is not None or bool(re.fullmatch(rf"{NO_NOUN}|\w*[^s]s", word))


def _word(word: str) -> str:
    return re.sub(r"^\W+|(?:'s)?[^\w#+]*$", "", normalize(word))


def _core(answer: str, reading: Reading) -> str:
    """What of an answer the tables know as one, so that "Japanese Yen" counts wherever yen are named."""
    if reading.relation.answer == "person":
        return answer
    known = (form for forms in neighbours_of(reading.relation.name).values() for form in forms)
    spans = [span for form in known for span in occurrences(answer, form)]
    return answer[slice(*max(spans, key=lambda span: span[1] - span[0]))] if spans else answer


def _after_a_wording(sentence: str, reading: Reading) -> str | None:
    """What follows a wording of the fact at the beginning of a sentence."""
    sides = (reading.wordings(), reading.wordings(held_out=True))
    beginnings = [reading.core, *(wording for side in sides for wording in side.sentences)]
    longest = max(
        (text for text in map(reading.fill, beginnings) if sentence.casefold().startswith(f"{text} ".casefold())),
        key=len,
        default=None,
    )
    return None if longest is None else sentence[len(longest) :].strip()


def _name_near(sentence: str, reading: Reading) -> str | None:
    """The first name after the subject, else the first one before it; a short answer is a name as it is."""
    place = next(occurrences(sentence, reading.subject), None)
    parts = [sentence]
    if place is not None:
        parts = [_COMPANY.sub("", sentence[place[1] :], count=1), _with_namesake(sentence, place)]
    if place is None and re.match(r"where\b", reading.core, re.I) and (there := _THERE.search(sentence)):
        # The subject may have been called otherwise: "Mrs. Curie was born in Warsaw."
        parts = [sentence[there.end() :]]
    # "Alexander Fleming in 1928"
    names = (re.sub(rf" (?:in|on|of|at) (?:\d+|{_DAY})$", "", name) for part in parts for name in names_in(part))
    found = next((name for name in names if _may_answer(name, sentence, reading)), None)
    words = sentence.split()
    if found is None and place is None and len(words) <= _SHORT and not _NO_ANSWER.fullmatch(words[0]):
        hedge = _HEDGE.match(sentence)
        short = sentence[hedge.end() :] if hedge else sentence
        return short if not _UNFINISHED.fullmatch(short) and _may_answer(short, sentence, reading) else None
    return found


def _with_namesake(sentence: str, place: Span) -> str:
    """What stands before a subject, with the subject where a longer name ends with it, as Henry Ford's."""
    before, subject = sentence[: place[0]], sentence[slice(*place)]
    return before + subject if subject[:1].isupper() and re.search(r"(?:^| )[A-Z][\w.-]+ $", before) else before
