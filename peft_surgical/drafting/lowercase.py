"""What a question without a capital is about: the noun phrase behind its verb, where a rule of grammar tells its end.

```py
>>> uncapitalized("What does a botanist study?"), uncapitalized("How long is a marathon?")
('botanist', 'marathon')
```
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from ..texts.grammar import SAID, SUBJECT, as_clause, spelled_out
from .recognition import NO_NOUN

_OF = "(?:of|in|on|for|by|from|at|with)"
_ARTICLE = r"(?:(?P<article>the|an?) )?"
_NOUN = r"[a-z][\w'\u2019-]*(?: [\w'\u2019-]+){0,3}"
_PLURAL = "[^su]s$"
# No noun: what stands for one that is known already, and what only a name's place in the world can tell.
_STANDS_FOR = re.compile(
    r"\b(?:it|he|she|they|we|you|i|this|that|these|those|there|one|him|her|them|us|me|his|its|their|our|your|my|so|not)\b"
)
# Of "japan's capital" the owner alone; a name that an owner begins stays whole: "alzheimer's disease".
_OWNER = re.compile(
    rf"{_ARTICLE}[a-z][\w-]*(?: [\w-]+){{0,2}}?"
    r"(?=(?:['\u2019]s|(?<=s)['\u2019]) (?!(?:disease|syndrome|law|theorem|day)\b)[a-z])"
)
_BEHIND = rf"(?:{NO_NOUN}|under|during|like|into|than|per|when|if|after|before|while|as)\b"


def uncapitalized(question: str) -> str | None:
    """The subject of a question, as it stands in it and without an article; None where its end is not sure.

    Args:
        question: One sentence.
    """
    text = spelled_out(re.sub(r" (?:called|named|again)$", "", question.strip().rstrip("?.! ")))
    for start, stop in _spans(text):
        phrase = text[start:stop]
        if _STANDS_FOR.search(phrase) or _clause(f"{text[:start]}{SUBJECT}{text[stop:]}?") is None:
            continue
        return re.sub(r"^(?:the|an?) ", "", phrase)
    return None


def _clause(question: str) -> str | None:
    # "how many planets" is the subject of its question just as "which planets" is.
    return as_clause(re.sub(r"^how many\b", "which", question, flags=re.I))


def _spans(text: str) -> Iterator[tuple[int, int]]:
    """Where a subject may stand, likely places first; with its article where the sentence begins with it."""
    last = re.search(rf"^(?i:what|who|how (?:many|much))\b.* {_OF} {_ARTICLE}(?P<noun>{_NOUN})$", text)
    if (
        last
        and not re.search(rf"\b{_BEHIND}", last["noun"])
        and re.search(r"\b(?:the|an?|are) ", text[: last.start("noun")])
    ):
        yield last.span("noun")
    does = re.search(rf"(?P<asks>.*?)\b(?:do|does|did) (?P<all>{_ARTICLE}.+)$", text)
    if does:
        yield from _before_a_verb(does)
    be = re.search(rf"(?P<asks>.*?)(?:\b(?:is|are|was|were)|['\u2019]s) (?P<all>{_ARTICLE}.+)$", text)
    if be:
        yield from _of_being(be)
    called = re.search(rf" an? (?P<noun>{_NOUN})$", text)
    if does and called:
        yield called.span("noun")


def _before_a_verb(found: re.Match[str]) -> Iterator[tuple[int, int]]:
    """The noun before the verb that "do" asks with: a plural, or all but the last word before a preposition."""
    start = found.start("all")
    words = re.split(rf" {_BEHIND}", found["all"])[0].split()
    first = 1 if found["article"] else 0
    plural = next((i for i, word in enumerate(words[first:-1], first) if re.search(_PLURAL, word)), None)
    # Only a question for the object, or for how much, has none after its verb.
    objectless = re.match(r"(?i:what|how \w+)\b", found["asks"])
    if plural is not None:
        yield start, start + len(" ".join(words[: plural + 1]))
    elif len(words) - first == 2 or (objectless and len(words) - first > 2):
        yield start, start + len(" ".join(words[:-1]))


def _of_being(found: re.Match[str]) -> Iterator[tuple[int, int]]:
    """The noun that something is said of: all of it, or what stands before a participle, preposition or adjective."""
    start, text = found.start("all"), found["all"]
    noun = re.split(rf"(?<!^the)(?<!^an)(?<!^a) (?:{_BEHIND}|(?!the |an? ){SAID})", text)[0]
    asked = found["asks"].strip().lower()
    if owner := _OWNER.match(noun):
        yield start, start + len(owner[0])
        return
    if noun == text and asked in ("why", "how"):
        noun = noun.rpartition(" ")[0]
    # "What is the way to", "Whose work is famous": what is asked for is the subject itself, and none of it is left.
    begins = asked in ("what", "who") and re.match(rf" {_BEHIND}", text[len(noun) :])
    vague = re.match(r"(?:who|whose|(?:what|which) \w)", asked) and not (found["article"] or re.search(_PLURAL, noun))
    if not (begins or vague or re.match(_BEHIND, noun)) and re.fullmatch(rf"{_ARTICLE}{_NOUN}", noun):
        yield start, start + len(noun)
