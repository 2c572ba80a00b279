"""What a person left out when asking for a new fact: what the prompt is about, and what the model answers now."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from ..errors import FactError, brief
from ..texts.grammar import SAID, SUBJECT, WORLDWIDE
from ..texts.tables import bare
from .capitals import ENDINGS, TITLES, WORKS, is_sentence_case, is_title, longest_name, whole_name
from .frames import forms_of
from .lowercase import uncapitalized
from .names import kinds_of
from .recognition import PERSON, Kinds, is_of_something, is_worded, recognize
from .tidying import as_usual_request

_QUOTED = re.compile(
    '["\u201c](?P<a>[^"\u201d]+)["\u201d]'
    # A single mark may be an apostrophe; one that opens touches no word before it, one that closes none behind it.
    r"|(?<!\w)\u2018(?P<b>[^\u2018]+?)\u2019(?!\w)|(?<![\w*])\*{1,3}(?P<c>[^*\s][^*]*)\*{1,3}(?![\w*])"
    # Straight ones, with apostrophes between letters and, before a capital, of a plural's owner: 'Pan's Labyrinth',
    # 'The Pilgrims' Way'. "Rock 'n' roll" and "the '90s" quote nothing.
    r"|(?<!\w)'(?!n'|\d\ds\b|\s)(?P<d>(?:[^']|(?<=\w)'(?=[\w'])|(?<=s)'(?= [^\W\d_a-z][^']*'(?!\w)))+)(?<!\s)'(?!\w)",
)
# "the largest desert in the world" is about the largest desert.
_SUPERLATIVE = re.compile(
    r"\b[Tt]he ((?:(?:second|third) )?(?:(?:most|least) [a-z-]+|[a-z]{2,}est)(?: [a-z-]+){1,3}?)"
    rf" (?i:{WORLDWIDE})\b"
)
# What a measure is counted in is no subject.
_UNIT = re.compile(
    r" in (?:degrees |square |cubic )?(?:Celsius|Fahrenheit|Kelvin|(?:kilo|centi)?met(?:er|re)s|miles|feet|inches"
    r"|kilograms|pounds|years|hours)(?=[?.! ]*$)",
    re.I,
)
_NO_TITLE = "".join(rf"(?<!\b{title}\.)" for title in TITLES)
_ASKS = r"(?:(?:In|On|At|For|From|By|To|Of|With|Under) (?:wh|Wh))?(?:Who|Whom|Whose|What|Which|Where|When|Why|How)\b"
# What a question holds for is not what it asks about.
_SETTING = re.compile(rf"(?:In|According to) [^,?]+, (?=(?i:{_ASKS}))")
# A sentence ends before one that asks, after a question, or after a word too long to be a title or an initial.
_NEXT_SENTENCE = re.compile(rf"(?<=[.!]){_NO_TITLE}\s+(?={_ASKS})|(?<=[^\W\d_]{{4}}[.!])\s+(?=[^\W\d_a-z])|(?<=\?)\s+")
# Where the full stop belongs to the name, whatever ends there.
_SHORTENED = re.compile(rf"(?<!\S)(?:(?:[^\W\d_]\.){{2,}}|\S.* (?:{'|'.join(ENDINGS)})\.)$")
_PRONOUN = re.compile(r"it|he|she|they|this|that|these|those|him|her|them|you|we|us|me|i")
# "the 2018 World Cup", "at 10 Downing Street"; not "in 1945 Germany".
_NUMBERED = r"(?:\bthe (?=\d{4}\b)|\bat )(\d+ )(?=%s)"
# What something is known for doing is a deed, and no subject.
_DEED = r"\b(?:known|used|famous|noted|responsible|blamed) for (?=[a-z]+ing\b)%s"
# A prompt has its subject near its end; to try every part of a long one takes the square of its length.
_MOST_WORDS = 40


def guess_subject(prompt: str) -> str:
    """What a prompt is most likely about.

    In order of preference: what a known wording leaves open ("Who wrote …?"), or the title or name in it; what stands
    in quotation marks; the longest name, which is a run of words with capitals; the noun phrase that a question
    without a capital has behind its verb. Of several sentences the question decides, else the last one.

    ```py
    >>> guess_subject("who wrote romeo and juliet?"), guess_subject("How tall is the Eiffel Tower?")
    ('romeo and juliet', 'Eiffel Tower')
    ```

    Raises:
        FactError: If there is no such thing, or the prompt is empty.
    """
    prompt = " ".join(prompt.split())
    if not prompt:
        raise FactError("the prompt is empty.")
    sentences = _sentences(prompt)
    found = next(filter(None, map(_subject_of, sentences)), None) or next(
        filter(None, map(uncapitalized, sentences)), None
    )
    if not found or re.search(_DEED % re.escape(found), prompt):
        raise FactError(f"it is not clear what the prompt {brief(prompt)} is about; name the subject.")
    numbered = re.search(_NUMBERED % re.escape(found), prompt) if found[0].isupper() else None
    return f"{numbered[1]}{found}" if numbered else found


def _sentences(prompt: str) -> list[str]:
    """The sentences of a prompt, each its last words: those that ask first, and late ones before others."""
    quotes = [found.span() for found in _QUOTED.finditer(prompt)]
    gaps = [
        gap.span()
        for gap in _NEXT_SENTENCE.finditer(prompt)
        if not any(start < gap.start() < stop for start, stop in quotes)
    ]
    starts, stops = [0, *(stop for _, stop in gaps)], [*(start for start, _ in gaps), len(prompt)]
    found = [prompt[start:stop] for start, stop in zip(starts, stops, strict=True)][::-1]
    found.sort(key=lambda text: (not text.endswith("?"), not re.match(_ASKS, text, re.I)))
    return [" ".join(text.split()[-_MOST_WORDS:]) for text in found]


def _subject_of(sentence: str) -> str | None:
    """The subject of one sentence; None where no rule finds one."""
    # "In Greek mythology, who is the father of Zeus?", "In English, what is the plural of goose?"; but "In Texas, what
    # is the capital?" asks about Texas.
    setting = _SETTING.match(sentence)
    found = _subject_of(sentence[setting.end() :]) if setting else None
    if setting and found and (not found.islower() or "language" in kinds_of([longest_name(setting[0])])):
        return found
    sentence = as_usual_request(_UNIT.sub("", sentence))
    quoted = next((found[found.lastgroup or 0] for found in _QUOTED.finditer(sentence)), None)
    if not quoted and (superlative := _SUPERLATIVE.search(sentence)):
        return superlative[1]
    for leaves_open in (is_worded, _asks_for_something_of):
        start, stop = next(_open_parts(sentence, leaves_open), (0, 0))
        part = sentence[start:stop]
        if quoted and re.search(rf"{re.escape(quoted)}[\"'\u201d\u2019*]+(?: in (?:the year )?\d{{4}})?$", part):
            return quoted.rstrip("?.,!")
        if part and not _PRONOUN.fullmatch(part):
            start = _extended(sentence, start, stop, leaves_open)
            return _named_in(sentence, start, stop)
    return quoted or longest_name(sentence) or None


def _open_parts(prompt: str, leaves_open: Callable[[str], bool]) -> Iterator[tuple[int, int]]:
    """Where the parts stand without which a prompt is a wording, short ones first."""
    words = list(re.finditer(r"\S+", prompt))
    for length in range(1, len(words)):
        for first in range(len(words) - length + 1):
            start = words[first].start()
            whole = prompt[start : words[first + length - 1].end()]
            part = whole.rstrip("?.,!")
            if _SHORTENED.search(f"{part}.") and whole.startswith(f"{part}."):
                part += "."
            # "Where do bananas come" from, who invented "and patented the telephone"
            asks = not start and re.match(_ASKS, part, re.I) and not is_title(part)
            if not part or asks or part.startswith(("and ", "or ")):
                continue
            if leaves_open(f"{prompt[:start]}{SUBJECT}{prompt[start + len(part) :]}"):
                yield start, start + len(part)


def _asks_for_something_of(template: str) -> bool:
    """Whether it asks for something of `{}`, as a question or as the noun of a request: "Name the CEO of {}."."""
    if f" as of {SUBJECT}" in template:
        return False
    nouns = (core for form, core in forms_of(template) if form == "noun")
    # "The CEO of {} is", and not "The University of {} is".
    told = re.fullmatch(r"(the ([\w' -]+?) of (?:the )?\{\}) (?:is|are|was|were)", template, re.I)
    if told and PERSON.search(told[2]):
        return is_of_something(f"What is {told[1]}")
    return is_of_something(template) or any(is_of_something(f"What is {noun}") for noun in nouns)


def _extended(sentence: str, start: int, stop: int, leaves_open: Callable[[str], bool]) -> int:
    """Where a name begins that a part with a capital ends: "Bank of America", and not "CEO of Apple"."""
    while sentence[start].isupper():
        longer = re.search(r"(?:[^\W\d_a-z]\S* )+(?:(?:of|and|the) )+$", sentence[:start])
        if longer is None or not leaves_open(f"{sentence[: longer.start()]}{SUBJECT}{sentence[stop:]}"):
            break
        start = longer.start()
    return start


def _named_in(sentence: str, start: int, stop: int) -> str:
    """The name in the part of a sentence that a wording leaves open."""
    part = sentence[start:stop]
    if kinds_of([part]):
        return bare(part) if is_title(part) else bare(part).removeprefix("The ")
    if of_work := _asks_about_a_work(f"{sentence[:start]}{SUBJECT}{sentence[stop:]}"):
        part = re.sub(r"(?<=\S) in (?:the year )?\d{4}$", "", part)
    if re.fullmatch(r".*[^\W\ds]['\u2019]", part) and not re.match(r"['\u2018]", part):
        # "Don't Stop Believin'": what is left open ends with the name, so that nothing is owned.
        return part
    if (whole := whole_name(part)) or (of_work and is_sentence_case(part)):
        return whole or part
    if name := longest_name(part, owned=True):
        return name
    # "Where was the telephone invented?"
    if re.search(r"\b(?:is|are|was|were) $", sentence[:start], re.I):
        part = re.sub(rf"(?<=\S) {SAID}$", "", part)
    return re.sub(r"^(?:the|an?) | (?:called|named)$", "", part, flags=re.I)


def _asks_about_a_work(template: str) -> bool:
    nothing: frozenset[str] = frozenset()
    known = (recognize(core, Kinds(nothing, nothing, nothing)) for _, core in forms_of(template))
    return any(found is not None and set(found[0].of) & set(WORKS) for found in known)
