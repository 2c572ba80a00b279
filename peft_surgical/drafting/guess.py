"""What a person left out when asking for a new fact: what the prompt is about, and what the model answers now."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from ..errors import FactError, brief
from ..measuring.metrics import sounds_unsure
from ..texts.grammar import SUBJECT
from ..texts.text import contains, occurrences
from .names import bare, kinds_of, names_of, neighbours_of
from .reading import Reading
from .recognition import is_of_something, is_worded

# Words that have a capital because a prompt begins with them, and small words inside a name.
_BEGINNINGS = re.compile(
    r"(?:an?|who|whom|whose|what|which|where|when|why|how|in|on|at|for|from|by|to|of|with|is|was|are|were|do|does|did|"
    r"can|could|would|will|tell|name|give|please|complete|finish|state|identify|my|i|answer|quiz|question)",
    re.I,
)
_LINK = re.compile(r"(?:an?|and|the|of|in|on|at|for|to|with|de|del|della|da|di|du|la|le|van|von|der|den|&|y|\d+)")
_ASKS_NUMBER = re.compile(r"how (?:many|much|old)\b", re.I)
_ASKS_YEAR = re.compile(r"(?:in )?wh(?:at|ich) year\b", re.I)
# What no longer belongs to an answer that ends a sentence: "Tokyo, which", "William Shakespeare in 1600".
_END = re.compile(r"[,;(:]| (?:and|but|who|which|in|on|for|with|by|because|since|as|is|was|at)\b")
_QUOTED = re.compile('["\u201c]([^"\u201d]+)["\u201d]')
# A full stop behind these ends no sentence and no name: "Dr. Seuss", "J.R.R. Tolkien".
_TITLES = ("Dr", "Mr", "Mrs", "Ms", "Prof", "St")
_SHORTENED = re.compile(rf"(?:[^\W\d_]\.)+|(?:{'|'.join(_TITLES)})\.")
_INITIALS = re.compile(r"(?<!\S)(?:[^\W\d_]\.){2,}$")
_NO_TITLE = "".join(rf"(?<!\b{title})" for title in _TITLES)
_SENTENCE_END = re.compile(rf"{_NO_TITLE}(?<=[^\W\d_]{{2}})[.!?](?:\s|$)|\n")
# What a model says before it comes to the point, and words that are no answer though they have a capital.
_PREFACE = re.compile(
    r"(?:as of (?:\w+ )?\d{4}\b,?|(?:as of|as an?|according to|based on|to the best of|to my knowledge)\b[^,]*,) ",
    re.I,
)
_NO_ANSWER = re.compile(r"i(?:['\u2019]\w+)?|as|it|he|she|they|this|that|there|sorry|unfortunately|well", re.I)
_MOST_WORDS, _SHORT = 6, 3


def guess_subject(prompt: str) -> str:
    """What a prompt is most likely about.

    In order of preference: what a known wording leaves open ("Who wrote …?"), or the title or name in it; what stands
    in quotation marks; the longest name, which is a run of words with capitals.

    ```py
    >>> guess_subject("who wrote romeo and juliet?"), guess_subject("How tall is the Eiffel Tower?")
    ('romeo and juliet', 'Eiffel Tower')
    ```

    Raises:
        FactError: If there is no such thing.
    """
    prompt = " ".join(prompt.split())
    quoted = _QUOTED.search(prompt)
    open_part = next(_open_parts(prompt, is_worded), None) or next(_open_parts(prompt, is_of_something), None)
    if quoted and open_part and open_part.endswith(quoted[0]):
        return quoted[1].rstrip("?.,!")
    if open_part is not None:
        if kinds_of([open_part]):
            return bare(open_part) if _is_title(open_part) else bare(open_part).removeprefix("The ")
        if re.fullmatch(r".*[^\W\ds]['\u2019]", open_part) and not re.match(r"['\u2018]", open_part):
            # "Don't Stop Believin'": what is left open ends with the name, so that nothing is owned.
            return open_part
        return _longest_name(open_part, owned=True) or re.sub(r"^(?:the|an?) ", "", open_part, flags=re.I)
    found = quoted[1] if quoted else _longest_name(prompt)
    if not found:
        raise FactError(f"it is not clear what the prompt {brief(prompt)} is about; name the subject.")
    return found


def _open_parts(prompt: str, leaves_open: Callable[[str], bool]) -> Iterator[str]:
    """The parts of a prompt without which it is a wording, short ones first."""
    words = list(re.finditer(r"\S+", prompt))
    for length in range(1, len(words)):
        for first in range(len(words) - length + 1):
            start = words[first].start()
            whole = prompt[start : words[first + length - 1].end()]
            part = whole.rstrip("?.,!")
            if _INITIALS.search(f"{part}.") and whole.startswith(f"{part}."):
                part += "."
            if part and leaves_open(f"{prompt[:start]}{SUBJECT}{prompt[start + len(part) :]}"):
                yield part


def _longest_name(text: str, *, owned: bool = False) -> str:
    return max(_names(text, owned=owned), key=len, default="")


def _names(text: str, *, owned: bool = False) -> list[str]:
    """The names in a text, in order: runs of words with capitals, and of the small words between them."""
    runs: list[list[str]] = [[]]
    words = text.split()
    for number, word in enumerate(words):
        # A lone "&" stays as it is.
        bare_word = word if _SHORTENED.fullmatch(word) else re.sub(r"^\W+|(?:['\u2019]s)?\W*$", "", word) or word
        begins = number == 0 and _BEGINNINGS.fullmatch(bare_word) is not None
        named = any(sign.isupper() for sign in bare_word) and not begins
        if named or (runs[-1] and _LINK.fullmatch(bare_word)):
            runs[-1].append(bare_word)
            if bare_word == word:
                continue
            # "Schindler's List" is one name where nothing but a name is left.
            following = words[number + 1] if number + 1 < len(words) else ""
            if owned and re.fullmatch(r"['\u2019]s", word.removeprefix(bare_word)) and following[:1].isupper():
                runs[-1][-1] = word
                continue
        # A mark or a small word ends a name.
        runs.append([])
    return [name for name in map(_trimmed, runs) if name]


def _trimmed(run: list[str]) -> str:
    """A run of words without small ones at its end, and without "The" where that is no part of a title."""
    while run and _LINK.fullmatch(run[-1]) and not run[-1].isdigit():
        run = run[:-1]
    if run[:1] == ["The"] and (len(run) == 1 or not _is_title(" ".join(run))):
        run = run[1:]
    return " ".join(run)


def _is_title(name: str) -> bool:
    return any(name in names_of(kind) for kind in ("book", "painting", "film", "series", "composition"))


def guess_answer(said: str, reading: Reading) -> str | None:
    """The short answer in what a model said to a prompt; None where there is none to be seen.

    ```py
    >>> guess_answer("The capital of Japan is Tokyo.", read_prompt("What is the capital of Japan?", "Japan"))
    'Tokyo'
    ```
    """
    sentence = _SENTENCE_END.split(_PREFACE.sub("", said.strip(), count=1), maxsplit=1)[0].strip(" .!?\"'*")
    if not sentence or sounds_unsure(sentence):
        return None
    rest = _after_a_wording(sentence, reading)
    asks_year = reading.relation.answer == "year" or _ASKS_YEAR.match(reading.core)
    years = re.findall(r"\b\d{4}\b", (rest or sentence).replace(reading.subject, "")) if asks_year else []
    if years:
        return str(years[0])
    if rest is not None:
        cut = _END.split(rest, maxsplit=1)[0].strip()
        cut = _core(re.sub(r"^(?:the|an?) ", "", cut), reading)
        return cut if 0 < len(cut.split()) <= _MOST_WORDS and not contains(cut, [reading.subject]) else None
    names = (bare(name) for name in names_of(reading.relation.answer))
    known = [span for name in names for span in occurrences(sentence, name)]
    if known:
        return sentence[slice(*min(known, key=lambda span: (span[0], -span[1])))]
    if asks_year or _ASKS_NUMBER.match(reading.core):
        number = re.search(r"\b\d[\d,.]*\b", sentence)
        return number[0] if number else None
    return _name_near(sentence, reading.subject)


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


def _name_near(sentence: str, subject: str) -> str | None:
    """The first name after the subject, else the first one before it; a short answer is a name as it is."""
    place = next(occurrences(sentence, subject), None)
    parts = [sentence] if place is None else [sentence[place[1] :], sentence[: place[0]]]
    names = (name for part in parts for name in _names(part))
    found = next((name for name in names if not _NO_ANSWER.fullmatch(name)), None)
    words = sentence.split()
    if found is None and place is None and len(words) <= _SHORT and not _NO_ANSWER.fullmatch(words[0]):
        return sentence
    return found
