"""As much English grammar as it takes to put a question differently: clauses, tenses, participles, possessives.

Everything works on templates, in which `{}` stands for the subject:

```py
>>> as_clause("Where did {} die?")
'where {} died'
>>> as_clause("What is the capital of {}?")
'what the capital of {} is'
```
"""

from __future__ import annotations

import re
from typing import NamedTuple

from .verbs import PAST_OF, is_bare, past_tense, place_of_verb, third_person

SUBJECT = "{}"

_QUESTION = re.compile(
    r"(?:(?:in|on|at|for|from|by|to|of|with|under|after) )?(?:who|whom|whose|what|which|where|when|why|how)\b", re.I
)
_BE = ("is", "are", "was", "were")
_DO = ("do", "does", "did")
_MODAL = ("can", "could", "will", "would", "should", "must", "may", "might", "has", "have", "had")
_PRONOUNS = "we|you|they|I|one|people|viewers|chemists|travellers|the public"
_ADVERBS = "(?:first|usually|originally|also|ever)"
_PARTICIPLES = "|".join(sorted(PAST_OF))
# "the capital of {}", "{}'s capital": a noun phrase that ends with the subject, or that the subject's 's leads, alone
# or behind "the name of".
_NOUN_PHRASE = re.compile(
    rf"(?:the|an?|all|most) [^?,]*\{{\}}"
    rf"|(?!.* (?:\w{{2,}}ed|{_PARTICIPLES})$)(?:the (?:[\w'-]+ ){{1,3}}of )?(?:the )?\{{\}}'s? [\w '-]+",
    re.I,
)
# What a thing has one of, so that "what colour" asks as "what" does.
_ATTRIBUTES = "colou?r|size|time|age|shape|height|weight|length|width|depth|nationality|gender|genre|breed|price"
# What can be said of a subject: "developed by", "in Spain", "alive", and not the "manager" of "who is the {} manager".
_PREPOSITIONS = "about|after|as|at|by|for|from|in|into|like|near|of|on|out|over|to|under|up|with"
SAID = rf"(?:\w{{2,}}ed|{_PARTICIPLES}|{_ADVERBS}|{_PREPOSITIONS}|alive|dead|due|open|worth|the|an?|this|next|last)\b"
# "the {} manager", "the {} word for dog"
_COMPOUND = re.compile(rf"the \{{\}}(?: (?!{SAID}|\w{{2,}}ing\b)[\w-]+)+(?: (?:for|in|of) [\w-]+)?", re.I)
# "a baby {} called", "the 2012 {} held", and not "the {} library released".
_NOUN_AND_SAID = re.compile(
    rf"(?P<noun>(?:the|an?) (?:(?!(?:{_PREPOSITIONS}|that|which|who|where|when)\b)[\w-]+ ){{1,3}}\{{\}})"
    rf" (?P<said>(?:\w{{2,}}ed|{_PARTICIPLES})(?: (?:{_PREPOSITIONS})\b.*)?)",
    re.I,
)
WORLDWIDE = (
    r"(?:in the (?:whole )?world|on (?:earth|the planet)|in the (?:solar system|universe)|of all time|in history)"
)
"""Of what a superlative is one: "the largest desert in the world"."""
_OF_THE_WORLD = re.compile(rf"\{{\}} {WORLDWIDE}", re.I)
# "the leader of {} during the war"
_NOUN_AND_TIME = re.compile(r"the [\w' -]+ of (?:the )?\{\} (?:during|in|on|at|before|after) [^?,{}]+", re.I)
# "how far the Moon from {}": what follows the preposition is no part of the noun.
_HOW_FAR = re.compile(r"how (?:far|close|near) (?P<noun>(?:the|an?) [^?,]*?) (?P<away>(?:away )?(?:from|to) .*)", re.I)
# "a unicorn" and "a European", but "an uninvited guest"; "an hour".
_VOWEL = re.compile(
    r"(?!uni(?![dmn])|eu|us[aeu]|ut[eio]|u(?:k|s|fo)\b|ukr|ura|uru|uga|one\b|once\b)[aeiou]"
    r"|hour|heir|hono|honest",
    re.I,
)
_NOUN_AND_NAMED = re.compile(r"(?P<noun>(?:the|an?) [^?,]*\{\}) (?P<said>called|named|known as)", re.I)


def as_clause(question: str) -> str | None:
    """A question as it stands inside a sentence: "who wrote {}", "where {} was born"; None where that is not sure.

    Args:
        question: A template with one `{}`; "What's" and its like are taken apart first.
    """
    text = spelled_out(question).strip().rstrip("?. ")
    opening = _QUESTION.match(text)
    if opening is None or re.search(r"[?!:;\"\n]|\.\s", text):
        return None
    words = text.split(" ")
    words[0] = words[0].lower()
    first = len(opening[0].split(" "))
    turn = next((i for i in range(first, len(words)) if words[i].lower() in (*_BE, *_DO, *_MODAL)), None)
    if turn is None:
        return " ".join(words)
    before, verb, after = words[:turn], words[turn].lower(), " ".join(words[turn + 1 :])
    ordered: str | None
    if any(SUBJECT in word for word in before):
        ordered = f"{verb} {after}" if verb in _BE else None
    else:
        ordered = _inverted(" ".join(before).lower(), verb, after)
    return None if ordered is None else " ".join([*before, ordered])


def _inverted(asked: str, verb: str, after: str) -> str | None:
    """What follows the question words `asked` and their verb, as it stands in a clause."""
    if verb in _DO:
        done = _done(after)
        if done is None:
            return None
        changed = {"did": past_tense, "does": third_person}.get(verb, str)(done.verb)
        return " ".join(filter(None, (f"{done.subject}{done.adverb}", done.noun, f"{changed}{done.rest}")))
    if asked in ("who", "what", "which") and _OF_THE_WORLD.fullmatch(after):
        return f"{after} {verb}"
    subject_first = re.fullmatch(r"(\{\})((?: .*)?)", after)
    if verb in ("has", "have", "had") and not re.match(rf"\S+ (?:{_ADVERBS} )?(?:\w+ed|{_PARTICIPLES})\b", after):
        return f"{verb} {after}"
    if verb in _MODAL:
        found = subject_first or re.fullmatch(rf"({_PRONOUNS})( .*)", after)
        return None if found is None else f"{found[1]} {verb}{found[2]}"
    if subject_first is not None:
        return f"{subject_first[1]} {verb}{subject_first[2]}" if _is_said(asked, subject_first[2].strip()) else None
    return _with_noun(asked, verb, after)


def _with_noun(asked: str, verb: str, after: str) -> str | None:
    """A clause of a form of "be" and what follows it, which the subject does not begin."""
    if after.startswith("it "):
        return f"it {verb} {after[3:]}"
    complements = re.fullmatch(rf"who|what|where|when|how(?: \w+)?|(?:what|which) (?:{_ATTRIBUTES})", asked)
    if away := _HOW_FAR.fullmatch(f"{asked} {after}"):
        return f"{away['noun']} {verb} {away['away']}"
    if complements and any(noun.fullmatch(after) for noun in (_NOUN_PHRASE, _COMPOUND, _NOUN_AND_TIME)):
        return f"{after} {verb}"
    turned = _NOUN_AND_SAID.fullmatch(after) or _NOUN_AND_NAMED.fullmatch(after)
    if turned and not asked.startswith("who"):
        return f"{turned['noun']} {verb} {turned['said']}"
    if re.match(r"how (?:many|much) \w", asked):
        there = re.fullmatch(r"there( .+)?", after)
        begun = re.match(rf"(?:{_PREPOSITIONS})\b|(?:\w{{2,}}ed|{_PARTICIPLES})\b", after)
        return f"there {verb}{there[1] or ''}" if there else f"{verb} {after}" if begun else None
    # "who is behind {}", "which city is the capital of {}": the question words are the subject already.
    asks_for_subject = asked.startswith(("who", "what", "which")) and not asked.startswith("whom")
    noun = _NOUN_PHRASE.fullmatch(after)
    begun_noun = after.startswith(("the ", "a ", "an ", f"{SUBJECT}'"))
    return f"{verb} {after}" if asks_for_subject and (noun or not begun_noun) else None


class _Done(NamedTuple):
    """What follows "does", taken apart: a subject, a noun that belongs to it, the verb and the rest."""

    subject: str
    adverb: str
    noun: str
    verb: str
    rest: str


def _done(after: str) -> _Done | None:
    # An apostrophe behind the subject is a possessive, or closes what one before it opens.
    subject = rf".*?'\{{\}}'(?= )|.*?(?<!')\{{\}}(?P<owner>'s?)?|{_PRONOUNS}"
    found = re.fullmatch(rf"(?P<subject>{subject})(?P<adverb> {_ADVERBS})? (?P<rest>.+)", after)
    if found is None:
        return None
    words = found["rest"].split(" ")
    bare = next((number for number, word in enumerate(words) if not is_bare(word)), len(words))
    place = place_of_verb(words[:bare], owned=found["owner"] is not None)
    if place is None or (place and found["adverb"]):
        return None
    rest = "".join(f" {word}" for word in words[place + 1 :])
    return _Done(found["subject"], found["adverb"] or "", " ".join(words[:place]), words[place], rest)


def noun_behind_subject(question: str) -> str:
    """The noun that the subject's name goes on with: "plan" in "How much does {} plan cost?"; mostly none."""
    asked = re.search(r"\b(?:do|does|did) (\{\} .+)", question.rstrip("?. "), re.I)
    done = _done(asked[1]) if asked else None
    return done.noun if done else ""


def _is_said(asked: str, words: str) -> bool:
    """Whether the words after a subject are no noun that its name goes on with; none are needed."""
    adjective = " " not in words and asked in ("where", "when", "why", "how")
    return not words or adjective or bool(re.match(rf"(?i:{SAID})|[a-z].* (?:{_PREPOSITIONS})$", words))


def is_question(text: str) -> bool:
    """Whether a template asks, with a question mark or without one."""
    turned = rf"{_QUESTION.pattern} (?:{'|'.join((*_BE, *_DO, *_MODAL))})\b"
    # "Where is {}? It is in" goes on.
    asks = "?" not in text and re.match(turned, text, re.I) is not None
    return asks or text.endswith("?") or ("," not in text and as_clause(text) is not None)


def spelled_out(text: str) -> str:
    """ "What's" as "What is"."""
    return re.sub(r"^(who|what|where|when|which city)['\u2019]?s\b", r"\1 is", text, flags=re.I)


def as_sentence(text: str) -> str:
    """`text` with a full stop, but where it ends as a sentence does."""
    return text if text.endswith((".", "!", "?", "。")) else text + "."


def one_stop(template: str, phrase: str) -> str:
    """A template without the full stop behind its slot, where what comes in there ends with one: "Apple Inc."."""
    return template.replace(f"{SUBJECT}.", SUBJECT) if phrase.endswith(".") else template


def in_place(question: str) -> str | None:
    """A question with what it asks for in the place of the answer: "{} is based in which city?"; None where that is
    not sure.

    Args:
        question: A template with one `{}`.
    """
    clause = as_clause(question) or ""
    noun = rf"(?: (?!(?:{SAID}))[a-z-]+){{0,2}}"
    place = rf"(?P<asked>where|when|(?:{_PREPOSITIONS}) (?:what|which){noun}) (?P<said>\{{\}} .+)"
    # "{} means what in Greek?" would have to be cut in two.
    thing = rf"(?P<asked>(?:what|which){noun}) (?P<said>\{{\}} (?:\w+|.+ (?:{_PREPOSITIONS})))"
    found = re.fullmatch(place, clause) or re.fullmatch(thing, clause)
    if found is None or re.search(r"\byou\b|,", clause):
        return None
    # "{} is what?" asks for more than "what {} is".
    bare = found["asked"] in ("where", "when", "what") and re.fullmatch(r"\{\} (?:is|are|was|were)", found["said"])
    return None if bare else f"{found['said']} {found['asked']}?"


def capitalized(text: str) -> str:
    """`text` with its first letter in upper case."""
    return text[:1].upper() + text[1:]


def begins_with_vowel(phrase: str) -> bool:
    """Whether "an" stands before a phrase, by its first letters: "an actor", "a unicorn", "an hour"."""
    return _VOWEL.match(phrase) is not None


def with_fitting_article(text: str, phrase: str) -> str:
    """A text that may end with "a" or "an", with the one of them that stands before a phrase."""
    return re.sub(r"(?<= )an?$", "an" if begins_with_vowel(phrase) else "a", text)


def takes_possessive(phrase: str) -> bool:
    """Whether 's can follow a name without looking odd: "Texas's capital" and "New York (state)'s" are left out."""
    return phrase[-1:].isalpha() and phrase[-1].lower() not in "sxz"
