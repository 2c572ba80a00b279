"""The names in a text, told by their capitals: runs of words that have one, and of the small words between them."""

from __future__ import annotations

import re

from .names import names_of

WORKS = ("book", "painting", "film", "series", "composition")

# Words that have a capital because a sentence begins with them, and say nothing of what it is about: small words of
# every class, verbs that lead a question, requests, greetings.
_BEGINNINGS = re.compile(
    r"(?:an?|my|your|his|her|its|our|their|i|we|you|he|she|it|they|this|that|these|those|there|"
    r"(?:who|what|where|when|why|how|which)(?:['\u2019]?s)?|whom|whose|"
    r"about|above|across|after|against|along|among|around|as|at|before|behind|below|beneath|beside|between|beyond|by|"
    r"despite|during|for|from|in|inside|into|near|of|on|onto|outside|over|since|through|"
    r"throughout|till|to|toward|towards|under|until|upon|with|within|without|according|"
    r"and|but|or|if|while|because|although|"
    r"(?:is|are|was|were|do|does|did|has|have|had|can|could|would|should|wo|ca)(?:n['\u2019]?t)?|"
    r"will|tell|name|give|please|complete|finish|state|identify|say|"
    r"answer|quiz|question|hi|hello|hey|thanks)",
    re.I,
)
# Verbs of requests that no frame has. Names begin with them too: "Guess Who", "Show Me Love".
REQUESTS = "provide|recall|remind|list|find|specify|write|explain|guess|describe|show|mention"
LINK = re.compile(r"(?:an?|and|the|of|in|on|at|for|to|with|de|del|della|da|di|du|la|le|van|von|der|den|&|y|\d+)")
# A full stop behind these ends no sentence and no name: "Dr. Seuss", "J.R.R. Tolkien".
TITLES = ("Dr", "Mr", "Mrs", "Ms", "Prof", "St")
# Nor behind these, which end a name: "King Jr.", "Apple Inc."
ENDINGS = ("Jr", "Sr", "Inc", "Ltd", "Corp", "Co", "Bros")
# Words that no title of that kind is likely to have, and that often follow one.
_BREAKS = r"wh\w+|how|or|by|is|was|did|does|called|during|before|after|since|as|now|today|first|originally"
_SHORTENED = re.compile(rf"(?:[^\W\d_]\.)+|(?:{'|'.join((*TITLES, *ENDINGS))})\.")
# With the mark that a word at the end of a prompt has.
_SHORTENED_AT_END = re.compile(rf"(?P<word>(?:{'|'.join(ENDINGS)})\.)(?:['\u2019]s)?[?!,.;:)\"]*")
# What is no part of a word that it stands at; signs as in "C#" and "C++" are.
_AROUND = re.compile(r"^\W+|(?:['\u2019]s)?[^\w#+]*$")


def longest_name(text: str, *, owned: bool = False) -> str:
    """The longest of the names in a text, the first of several; nothing where there is none."""
    return max(names_in(text, owned=owned), key=len, default="")


def names_in(text: str, *, owned: bool = False) -> list[str]:
    """The names in a text, in order.

    Args:
        text: A prompt, or what was said to one.
        owned: Whether nothing but a name is left, so that "Schindler's List" is one.
    """
    runs: list[list[str]] = [[]]
    words = text.split()
    for number, word in enumerate(words):
        # A lone "&" stays as it is.
        shortened = _SHORTENED_AT_END.fullmatch(word)
        whole = shortened["word"] if shortened else word
        bare_word = whole if _SHORTENED.fullmatch(whole) else _AROUND.sub("", word) or word
        first = number == 0 or re.search(r"[.!?:]$", words[number - 1]) is not None
        begins = first and not runs[-1] and _begins(bare_word, " ".join(words[number + 1 : number + 2]))
        named = any(sign.isupper() for sign in bare_word) and not begins
        if named or (runs[-1] and LINK.fullmatch(bare_word)):
            runs[-1].append(bare_word)
            if bare_word == word:
                continue
            following = words[number + 1] if number + 1 < len(words) else ""
            if owned and re.fullmatch(r"['\u2019]s", word.removeprefix(bare_word)) and following[:1].isupper():
                runs[-1][-1] = word
                continue
        # A mark or a small word ends a name.
        runs.append([])
    return [name for name in map(_trimmed, runs) if name]


def whole_name(text: str) -> str | None:
    """A text that is one name, marks and digits included; None where it has other words than a name has.

    "Star Wars: A New Hope", "Washington, D.C." and "99 Luftballons", and not "Dune, the novel".
    """
    text = re.sub(r"^(?:the|an?) ", "", text)
    if not re.match(r"\W*(?:\d|[^\W\d_])", text) or not (text[:1].isdigit() or text[:1].isupper()):
        return None
    if not all(map(_is_part, text.split())):
        return None
    marked = re.search(r"[:,?!;] ", text)
    return text if marked or is_title(text) else text.removeprefix("The ")


def _begins(word: str, following: str) -> bool:
    """Whether a word at the beginning of a sentence has its capital from there."""
    if re.fullmatch(REQUESTS, word, re.I):
        return not (following[:1].isupper() and _BEGINNINGS.fullmatch(_AROUND.sub("", following)))
    return _BEGINNINGS.fullmatch(word) is not None


def _is_part(word: str) -> bool:
    bare_word = re.sub(r"^\W+|\W+$", "", word)
    return (
        not bare_word or any(sign.isupper() or sign.isdigit() for sign in bare_word) or bool(LINK.fullmatch(bare_word))
    )


def is_sentence_case(text: str) -> bool:
    """Whether a text looks like a title of which the first word alone has a capital: "Gone with the wind"."""
    first, *rest = re.sub(r"^(?:The|An?) ", "", text).split()
    small = all(re.fullmatch(r"[a-z][\w'\u2019-]*", word) for word in rest)
    linked = any(LINK.fullmatch(word) for word in rest[:-1]) and not LINK.fullmatch(rest[-1])
    return (
        first.isalpha()
        and first[:1].isupper()
        and small
        and linked
        and not any(re.fullmatch(_BREAKS, word) for word in rest)
    )


def _trimmed(run: list[str]) -> str:
    """A run of words without small ones at its end, and without "The" where that is no part of a title."""
    while run and LINK.fullmatch(run[-1]) and not run[-1].isdigit():
        run = run[:-1]
    if run[:1] == ["The"] and (len(run) == 1 or not is_title(" ".join(run))):
        run = run[1:]
    return " ".join(run)


def is_title(name: str) -> bool:
    """Whether the tables have a work of that very name."""
    return any(name in names_of(kind) for kind in WORKS)
