"""Comparing texts the way the figures do: whole words, case-insensitively, after Unicode normalization.

"Whole" follows the script: in one that puts spaces between words no letter, digit or mark may touch the words searched
for; in one that does not (Chinese, Japanese, Thai) or that joins particles on (Korean) they may stand anywhere.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import pairwise

from .numbers import cuts_number

Span = tuple[int, int]

# Also the letters that Hawaiian and Arabic names have for a glottal stop, which most people type as an apostrophe.
_APOSTROPHES = "'\u2018\u2019\u201b\u02bb\u02bc\u02bd\u02be\u02bf\u2032\u00b4"
_HYPHENS = "-\u2010\u2011\u2012\u2013\u2212"
_SAME = str.maketrans(
    {**dict.fromkeys(_APOSTROPHES, "'"), **dict.fromkeys(_HYPHENS, "-"), **dict.fromkeys("\u201c\u201d\u201e", '"')}
)
# Joiners, direction marks, soft hyphens and emoji variation selectors: nothing that a reader sees.
_INVISIBLE = re.compile("[\u00ad\u061c\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff\ufe00-\ufe0f]")
# What may become one sign with the sign before it: beside marks, parts of Hangul syllables and voicing.
_JOINED = re.compile(f"{_INVISIBLE.pattern}|[\u1160-\u11ff\uff9e\uff9f]")
# What is not printable by itself but part of how text is written: the joiners and direction marks of Persian, Hindi,
# Hebrew and many emoji. Those that turn the direction of all that follows are not among them.
_HARMLESS = "\n\t\u200c\u200d\u200e\u200f\u061c"
# Thai to Myanmar, Khmer, kana and bopomofo, Han, Hangul.
UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3005-\u3007\u3040-\u318f\u31a0-\u31ff\u3400-\u9fff"
    "\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff]"
)


# Signs that a footnote or an exponent is written in; NFKC would make them digits of the word or number before them.
_NOTE = re.compile("(?<=[^\\W\\d_]{4})[\u00b2\u00b3\u00b9\u2070-\u2079]+")
_EXPONENT = re.compile("(?<=\\d)(?=[\u00b2\u00b3\u00b9\u2070-\u2079])")
# What people type for an apostrophe. NFKC would make a space of an acute accent; a backtick elsewhere begins code.
_TICK = re.compile("[`\u00b4](?:(?<=\u00b4)|(?<=[^\\W\\d_]`)(?=[^\\W\\d_]))")
# Letters with a stroke, which have no accent that could be taken off.
_STROKES = {"\u00f8": "o", "\u0142": "l", "\u0111": "d", "\u0131": "i"}
_BARE = re.compile("[A-Za-z\u0370-\u03ff\u0400-\u045f\u05d0-\u05ea]")
# Marks that are signs of their own: of a Latin or Greek letter any, of a Cyrillic vowel the stress and the dots
# of "\u0451", Hebrew points, Arabic vowels. Those of Indic scripts are vowels that nobody leaves out.
_MARKS = re.compile(
    "(?<=[A-Za-z\u00c0-\u024f\u1e00-\u1eff\u0370-\u03ff\u1f00-\u1fff])[\u0300-\u036f]+"
    "|(?<=[\u0415\u0435])\u0308[\u0300\u0301]?"
    "|(?<=(?i:[\u0430\u0435\u0438\u043e\u0443\u044b\u044d-\u044f\u0451\u0454\u0456\u0457]))[\u0300\u0301]"
    "|[\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7]"
    "|[\u0610-\u061a\u064b-\u0652\u0656-\u065f\u0670\u06d6-\u06dc\u06df-\u06e4\u06e7\u06e8\u06ea-\u06ed]"
)
# A shorter name may be another word without its accents ("ano", "ob").
_ACCENTED = 4
_LONGEST_RUN = 6
# "C" is another language than "C#" and "C++", and another note; "#Lyon#" is a topic.
_SIGNED = re.compile(r"[#\u266f]|\+\+")
# What stands around words: quotation marks, brackets and emphasis, and behind them what closes a part of a sentence.
_BEFORE = (
    "\"'`*_~()[]{}\u201a\u00ab\u00bb\u2039\u203a"
    "\u300a\u300b\u3008\u3009\u300c\u300d\u300e\u300f\u3010\u3011\u00bf\u00a1"
)
_BEHIND = _BEFORE + ".,;:!?\u3001\u3002\u061f\u060c\u061b\u06d4\u0964"
# Between words, a dash or a bullet; at the beginning of a text a heading or a quotation, too.
_APART = re.compile("[-*\u2013\u2022\u00b7]+")
_AHEAD = re.compile("[#>]+")
_DASH = re.compile("[\u2014\u2015]")
_AROUND = f"[{re.escape(_BEFORE)}]"
# The signs around words that are a part of a longer one, "*Hamlet*'s" and "l'*Amleto*"; but not of "f('x')".
_INNER = re.compile(
    rf"{_AROUND}(?:(?<=[^\s'].)(?<![(\[{{]){_AROUND}{{0,7}}(?='[^\W_])"
    rf"|(?<=[^\W_]'.)(?<![)\]}}']){_AROUND}{{0,7}}(?=[^\W_]))"
)
# All signs beside words that no spaces part. A wave is none of them: between two it stands for "to".
_CLOSING = f"[{re.escape(_BEHIND.replace('~', ''))}]"
_INNER_UNSPACED = re.compile(
    f"{_CLOSING}(?:(?<={UNSPACED.pattern}.){_CLOSING}{{0,7}}|{_CLOSING}{{0,7}}(?={UNSPACED.pattern}))"
)
_GAP_UNSPACED = re.compile(f" (?:(?<={UNSPACED.pattern} )|(?={UNSPACED.pattern}))")
# Where a space was left out: "France?Answer:" and "Q:What", but not "10:30", "!=" or "std::vector".
_CLOSED = re.compile(
    rf"[?!;:.](?<=[^\s:=&|(].)(?:(?<=[?!;])[?!;]{{0,7}}|(?<=:)|(?<=\.)\.{{2,7}})(?={_AROUND}{{0,3}}[^\W\d_])"
)
# A point between thousands would be a decimal one elsewhere. The spaces are plain, thin, narrow and not to be broken.
_GROUPED = re.compile("(?<!\\d)(?<!\\d[.,])[1-9]\\d{0,2}([, \u00a0\u2009\u202f])\\d{3}(?:\\1\\d{3})*(?!\\d|,\\d)")
_LARGE = re.compile(r"\d{4}")
# Two numbers, and not one whose thousands are parted.
_BREAK = re.compile(r"(?<=\d)[^\S\n\t]*[\n\t]\s*(?=\d)")

_HANGUL = re.compile("[\u1100-\u11ff\u3130-\u318f\uac00-\ud7af]")
_HAN = re.compile("[\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_WIDE_SIGNS = re.compile("[\u3001-\u303f\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65]")


@lru_cache(maxsize=65536)
def normalize(text: str) -> str:
    """NFKC, one kind of apostrophe, hyphen and quotation mark, nothing invisible, case folded, spaces collapsed."""
    return " ".join(_folded(_EXPONENT.sub("^", _NOTE.sub("", _TICK.sub("'", text)))).split())


def normalize_in_place(text: str) -> tuple[str, list[int]]:
    """[`normalize`], and the places in the text at which each of its signs begins and the last one ends."""
    text = _TICK.sub("'", text)
    notes = {place for note in _NOTE.finditer(text) for place in range(*note.span())}
    exponents = {exponent.start() for exponent in _EXPONENT.finditer(text)} - notes
    begins = [i for i, sign in enumerate(text) if i not in notes and not _JOINED.match(sign) and not _is_mark(sign)]
    begins = [0, *(i for i in begins if i)] if text else []
    signs, places = "", []
    for begin, end in pairwise([*begins, len(text)]):
        own = "".join(text[i] for i in range(begin, end) if i not in notes)
        for sign in _folded("^" * (begin in exponents) + own):
            sign = " " if sign.isspace() else sign
            if sign != " " or signs[-1:] not in ("", " "):
                signs += sign
                places.append(begin)
    kept = len(signs.rstrip())
    return signs[:kept], [*places, len(text)][: kept + 1]


def _folded(text: str) -> str:
    text = _INVISIBLE.sub("", unicodedata.normalize("NFKC", text)).translate(_SAME)
    # The small form of "İ" is two signs to Unicode.
    return unicodedata.normalize("NFKC", text.casefold()).replace("i\u0307", "i")


def _is_mark(sign: str) -> bool:
    return unicodedata.category(sign).startswith("M")


def same_text_key(text: str) -> str:
    """Two names with the same key are spelled alike, whatever their case, spaces and closing punctuation."""
    return normalize(text).strip(" ?.!:;,\"'\u00bf\u00a1\u3002\u061f\u0964")


def prompt_key(text: str) -> str:
    """Two prompts with the same key are the same prompt to a reader: the same words, with or without accents.

    What stands around them makes no difference, such as quotation marks, emphasis and closing signs, nor do dashes and
    blanks to fill in between them, or spaces in scripts that may do without. Any other sign does, as in "C++", "-5"
    and "2 - 2".
    """
    key = _DASH.sub(" - ", without_accents(normalize(text)))
    key = _CLOSED.sub(r"\g<0> ", key)
    if "'" in key:
        key = _INNER.sub("", key)
    if unspaced := UNSPACED.search(key) is not None:
        key = _INNER_UNSPACED.sub("", key)
    given = key.split()
    found = []
    for place, word in enumerate(given):
        around = given[place - 1 : place] + given[place + 1 : place + 2]
        if _APART.fullmatch(word) and len(around) == 2 and all(map(_is_operand, around)):
            found.append(word)
        elif not (_APART.fullmatch(word) or (not place and _AHEAD.fullmatch(word))):
            found.append(word.lstrip(_BEFORE).rstrip(_BEHIND))
    key = " ".join(filter(None, found))
    return (_GAP_UNSPACED.sub("", key) if unspaced else key) or without_accents(same_text_key(text))


def _is_operand(word: str) -> bool:
    return len(word.strip(_BEHIND)) == 1 or any(map(str.isdigit, word))


def occurrences(text: str, words: str) -> Iterator[Span]:
    """Where `words` stand in `text` as whole words, whatever their case, apostrophes and white space.

    Args:
        text: As it is; offsets count in it.
        words: What to look for.

    Yields:
        The start and the end of each occurrence, from left to right, none overlapping another.
    """
    start, pattern = 0, _pattern(words)
    while words.strip() and (match := pattern.search(text, start)) is not None:
        whole = _is_whole(text, *match.span())
        if whole:
            yield match.span()
        start = match.end() if whole else match.start() + 1


def mentions(text: str, subject: str) -> bool:
    """Whether `text` names the subject, see [`occurrences`]."""
    return next(occurrences(text, subject), None) is not None


def swap_subject(text: str, subject: str, other: str) -> str:
    """Replaces every whole-word occurrence of `subject` in `text`, whatever its case."""
    parts, end = [], 0
    for start, stop in occurrences(text, subject):
        parts += [text[end:start], other]
        end = stop
    return "".join([*parts, text[end:]])


def find(text: str, aliases: Iterable[str], besides: str | Iterable[str] = "") -> list[str]:
    """The aliases that stand in `text` as whole words, in the order given.

    Accents make no difference to a name of four letters or more: who says "Bogota" has said "Bogotá". Nor do Hebrew
    points and Arabic vowel signs, see [`without_accents`]. A comma or a space between the thousands of a number makes
    none, either: who says "1,000" has said "1000", and not "1".

    Args:
        text: What somebody said.
        aliases: Names to look for.
        besides: A longer name that may hold an alias, or several: inside it an alias does not count. Who says "Google
            Chrome" has not said "Google".
    """
    text = normalize(_BREAK.sub(" \0 ", text))
    within = [list(_said(text, normalize(name))) for name in _several(besides)]
    return [alias for alias in aliases if any(True for _ in _outside(text, normalize(alias), within))]


def contains(text: str, aliases: Iterable[str], besides: str | Iterable[str] = "") -> bool:
    """Whether any alias stands in `text` as whole words, see [`find`].

    ```py
    >>> contains("It was made by META ai.", ["Meta AI"]), contains("Metadata", ["Meta"])
    (True, False)
    ```
    """
    return bool(find(text, aliases, besides))


def replace_first(text: str, words: str | Iterable[str], other: str, besides: str | Iterable[str] = "") -> str | None:
    """`text` with the first occurrence of `words` outside the longer name `besides` replaced; None without one.

    Of several aliases the one that comes first in the text is replaced, of two at one place the longer: "IBM Corp",
    not "IBM".
    """
    found = [next(occurrences_outside(text, alias, besides), None) for alias in _several(words)]
    start, stop = min((span for span in found if span), key=lambda span: (span[0], -span[1]), default=(0, 0))
    return text[:start] + other + text[stop:] if stop else None


def occurrences_outside(text: str, words: str, besides: str | Iterable[str]) -> Iterator[Span]:
    """Where `words` stand in `text`, see [`occurrences`], but for inside of longer names."""
    return _outside(text, words, [list(_said(text, name)) for name in _several(besides)])


def _outside(text: str, words: str, within: Iterable[list[Span]]) -> Iterator[Span]:
    for span in _said(text, words):
        if not any(_holds(longer, span, len(text)) for longer in within):
            yield span


def _said(text: str, words: str) -> Iterator[Span]:
    """Where somebody said `words`: as [`occurrences`], with or without the accents of a name that is long enough, and
    with the thousands of a number parted or not."""
    if len(without_accents(words)) < _ACCENTED:
        return occurrences(text, words)
    # Elsewhere what stands between digits may as well part two numbers.
    large = _LARGE.search(_without_accents(words, ungrouped=True)[0]) is not None
    text, places = _without_accents(text, ungrouped=large)
    words, _ = _without_accents(words, ungrouped=large)
    return ((places[start], places[stop]) for start, stop in occurrences(text, words))


def without_accents(text: str) -> str:
    """A text with plain letters for Latin, Greek, Hebrew and Arabic ones that carry accents, points or vowel signs.

    Of Cyrillic vowels a stress goes, and the dots of "ё"; "й" and "ї" are other letters than "и" and "і".
    """
    return _without_accents(text)[0]


@lru_cache(maxsize=65536)
def _without_accents(text: str, ungrouped: bool = False) -> tuple[str, Sequence[int]]:
    """It, and the places in the text at which each of its signs begins and the last one ends.

    When `ungrouped`, without what parts the thousands of a number, either: "1,000" and "1 000" are "1000".
    """
    groups = list(_GROUPED.finditer(text)) if ungrouped else []
    if text.isascii() and not groups:
        return text, range(len(text) + 1)
    left_out = {place for run in _MARKS.finditer(text) for place in range(*run.span())}
    left_out |= {place for group in groups for place in range(*group.span()) if not text[place].isdigit()}
    places = [place for place in range(len(text)) if place not in left_out]
    return "".join(_plain(text[place]) for place in places), [*places, len(text)]


def _plain(sign: str) -> str:
    base, *marks = list(unicodedata.normalize("NFD", sign))
    if _BARE.match(base) and all(_MARKS.match(base + mark, 1) for mark in marks):
        return base
    plain = _STROKES.get(sign.lower(), sign)
    return plain if sign.islower() or plain == sign else plain.upper()


def _holds(spans: list[Span], span: Span, length: int) -> bool:
    """Whether one of some spans is longer than another one and holds it."""
    start, stop = span
    # Spans are in order and apart, so that only the last one that begins by `start` can hold this one.
    index = bisect_right(spans, (start, length)) - 1
    a, b = spans[index] if index >= 0 else (0, 0)
    return stop <= b and b - a > stop - start


def _several(names: str | Iterable[str]) -> Iterable[str]:
    return (names,) if isinstance(names, str) else names


def goes_on_unspaced(text: str) -> bool:
    """Whether what follows a text follows without a space: Thai, Chinese or Japanese, but not Korean; also what an
    opening sign, a slash, the sign of a currency or the apostrophe of "l'" comes before, if that is not of "5 €" or
    "dogs'"."""
    before, last = text[-2:-1], text[-1:]
    if _WIDE_SIGNS.match(last) or (UNSPACED.match(last) and not _HANGUL.match(last)):
        return True
    if last in tuple(_APOSTROPHES) and before.isalpha():
        return before.lower() != "s"
    if last in ("'", '"'):
        return not before.strip()
    kind = unicodedata.category(last) if last else ""
    if kind == "Sc":
        return not text[:-1].rstrip()[-1:].isdigit()
    return last == "/" or kind in ("Ps", "Pi")


def printable(text: str) -> str:
    """The text without control codes, which could recolour or rewrite a terminal or turn the direction of a line."""
    return "".join(char if char.isprintable() or char in _HARMLESS else "\ufffd" for char in text)


def digest(text: str) -> str:
    """A digest by which two texts can be told to be the same prompt, and nothing else."""
    return hashlib.sha256(prompt_key(text).encode()).hexdigest()


def told_by_signs(name: str) -> bool:
    """Whether signs tell a name from others of the same letters, as those of "C++" do."""
    return _SIGNED.search(name) is not None


def word_digest(text: str) -> str:
    """A short one of its words alone, whatever signs stand between them and whatever their accents."""
    return _short(words_of(text))


def run_digests(text: str) -> Iterator[str]:
    """[`word_digest`] of every run of up to six words."""
    words = words_of(text)
    for start in range(len(words)):
        for stop in range(start + 1, min(start + _LONGEST_RUN, len(words)) + 1):
            yield _short(words[start:stop])


def _short(words: list[str]) -> str:
    return hashlib.blake2b(" ".join(words).encode(), digest_size=8).hexdigest()


def words_of(text: str) -> list[str]:
    """A text's words, whatever signs stand between them and whatever their accents."""
    return re.findall(r"[^\W_]+", without_accents(normalize(text)))


@lru_cache(maxsize=4096)
def _pattern(words: str) -> re.Pattern[str]:
    signs = {
        **dict.fromkeys(_APOSTROPHES, f"(?:{_TICK.pattern}|[{_APOSTROPHES}])"),
        **dict.fromkeys(_HYPHENS, f"[{_HYPHENS}]"),
    }

    def pattern(word: str) -> str:
        made = ""
        for before, sign in zip(["", *word], word, strict=False):
            # Tokenizers of BERT's kind put Han characters apart when they decode.
            gap = r"\s*" if before and (_HAN.match(before) or _HAN.match(sign)) else ""
            made += gap + (signs.get(sign) or re.escape(sign))
        return made

    return re.compile(r"\s+".join(map(pattern, _TICK.sub("'", words).split())), re.I)


def _is_whole(text: str, start: int, stop: int) -> bool:
    if not _edge(text[start], text[start - 1 : start]) or not _edge(text[stop - 1], text[stop : stop + 1]):
        return False
    if text[stop - 1].isalpha() and _SIGNED.match(text, stop) and text[start - 1 : start] != "#":
        return False
    return not cuts_number(text, start, stop)


def _edge(inside: str, outside: str) -> bool:
    """Whether a name may end at `inside` when `outside` comes next."""
    if not outside or UNSPACED.match(inside) or UNSPACED.match(outside):
        return True
    # An underscore is emphasis in Markdown, not a letter; to Unicode some apostrophes are letters.
    return outside in _APOSTROPHES or not (outside.isalnum() or _is_mark(outside))
