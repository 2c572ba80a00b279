"""Recognizing a relation in the words of a prompt, or making one from its noun or verb."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..texts.called import PERSONS
from ..texts.grammar import SUBJECT, spelled_out
from ..texts.text import same_text_key
from ..texts.verbs import has_adverb, participle, past_of_participle
from .frames import NOUN, forms_of
from .names import PLACES
from .plurals import in_singular
from .relations import Relation, by_wording, from_noun, from_verb

_BE = "is|are|was|were"
# With so few letters besides the subject ("{}, in") its answers or its subject have to tell what is meant.
_VAGUE = 4
# Kinds of answer that "which …" can ask for by their own name.
_ASKED_BY_NAME = (
    "city", "country", "continent", "language", "company", "network", "currency", "instrument", "sport", "religion",
)  # fmt: skip
# Kinds of answer that are asked for by no other name.
_FIXED = ("language", "currency", "religion", "sport", "instrument", "network", "continent", "genre", "symbol")
_SAME_KIND = {"faith": "religion", "tongue": "language", "channel": "network", "town": "city"}
_TIME_OR_WORK = re.compile(
    r"\b(?:year|century|decade|month|day|date|season|era|age|film|movie|book|novel|play|poem|song|album|opera|story|game"
    r"|series|show|episode|war|battle|language)$"
)
# What somebody or something is "in" or "from" without being at any place.
_NO_PLACE = re.compile(
    r"\b(?:industry|sector|business|field|zone|band|group|team|club|league|conference|division|party|house|family|class"
    r"|order|category|genre|key|movement|branch|company|period)$"
)
_VERB = re.compile(r"\b(?:is|are|was|were|do|does|did|has|have|had)\b")
_OF_LANGUAGE = re.compile(r"\b(?:languages?|tongue|speaks?|spoke|spoken|speaking|written)\b", re.I)
_IS_A = re.compile(r"\{\} (?:is|was) an?$")
NO_NOUN = "(?:of|in|on|for|by|from|to|at|with|is|was|are|were|has|and|or|that|which)"


@dataclass(frozen=True)
class Kinds:
    """The kinds of a fact's subject, of its old and of its new answer, as in `data/names.yaml`."""

    subject: frozenset[str]
    old: frozenset[str]
    new: frozenset[str]

    @property
    def answer(self) -> frozenset[str]:
        """What either answer is."""
        return self.old | self.new

    @property
    def asked(self) -> str:
        """What both answers are, if that has a name to ask by."""
        return next((kind for kind in _ASKED_BY_NAME if kind in self.old & self.new), "")

    def asked_of(self, core: str) -> str:
        """[`asked`] for a prompt of no known relation, of which one answer that happens to be known tells too little.

        "Who is the mayor of {}?" asks for no company, whatever else is called Bloomberg, and "What is the nationality
        of {}?" for no language.
        """
        other = re.match(r"who\b", core, re.I) or (self.asked == "language" and not _OF_LANGUAGE.search(core))
        return "" if other else self.asked

    def fitting(self, relation: Relation) -> str:
        """What "which …" usually asks for in a relation, unless both answers are known to be something else.

        A single answer may be anything that happens to have the same name, as the town of Douglas has that of a
        company. It counts where it is what the relation asks for.
        """
        if relation.which:
            return "" if self.old and self.new and relation.answer not in self.answer else relation.which
        one = self.answer if not (self.old and self.new) and relation.answer in self.answer else frozenset()
        expected = PLACES if relation.answer == "place" else {relation.answer}
        return next((kind for kind in _ASKED_BY_NAME if kind in one & expected), "")


def recognize(core: str, kinds: Kinds, *, longer: bool = False) -> tuple[Relation, str, bool] | None:
    """The relation of the table that is worded so.

    Args:
        core: A prompt without its frame, with `{}` for its subject.
        kinds: Tell apart what reads alike: "{} was founded in" a city, or in a year.
        longer: Whether `{}` stands for more than the subject, as for "the Nike logo", which is no company.

    Returns:
        The relation, what "which …" asks for in the prompt, and whether it is in the past; None for no wording of the
        table, or one that may mean several things.
    """
    key = same_text_key(spelled_out(core))
    found = _worded(key) or _worded(in_singular(key))
    if not found:
        return None
    ranked = sorted(found, key=lambda candidate: -_evidence(candidate[0], candidate[1], kinds))
    best, *others = (_evidence(relation, which, kinds) for relation, which, _ in ranked)
    vague = len(re.sub(r"[^a-z]", "", key)) <= _VAGUE or best in others
    if vague and best <= 0:
        return None
    relation, which, past = ranked[0]
    if "year" in kinds.old & kinds.new and relation.answer not in ("", "year"):
        # "Hamlet was written in" 1600 is in no language.
        return None
    if _IS_A.search(core) and relation.answer not in kinds.answer and not kinds.subject & PERSONS - {"character"}:
        # "Garfield is a" cat.
        return None
    if _better_made(core, relation, frozenset() if longer else kinds.subject - {"year"}):
        return None
    # "{} was employed in"; not "{} was written by", whose author still is the author.
    past = past or bool(re.search(r"\b(?:was|were|did|had|used to|found|took|spoke|worked)\b(?!.* by\b)", key))
    # "Which TV network airs {}?"
    spelled = re.search(rf"\b{re.escape(which)}\b", core, re.I) if which else None
    which = spelled[0] if spelled else which
    return relation, which, past


def _better_made(core: str, relation: Relation, subject: frozenset[str]) -> bool:
    """Whether a relation of the prompt's own noun or verb fits better than one of the table.

    So it is where the subject is known to be something else, as the Taj Mahal is no software that somebody built; and
    where nothing is known of it and the verb is not the one that names the relation, as whatever is written is most
    likely a book, but what is started need not be a company.
    """
    made, _ = made_from(core)
    if not made.training.questions or not relation.of:
        return False
    if subject:
        return not subject & set(relation.of)
    named_by = re.fullmatch(r"Who [\w ]+ \{\}\?", relation.training.questions[0])
    return bool(named_by and not made.training.nouns and made.training.questions[0] != named_by[0])


def _worded(key: str) -> list[tuple[Relation, str, bool]]:
    """The relations worded so, with what "which" asks for and whether it is in the past."""
    exact, patterns = by_wording()
    found = [(relation, "", past) for relation, past in exact.get(key, [])]
    for pattern, relation, past in () if found else patterns:
        match = pattern.fullmatch(key)
        if match is None or not _may_ask(match["which"], relation):
            continue
        if all(other is not relation for other, _, _ in found):
            found.append((relation, match["which"], past))
    return found


def _may_ask(which: str, relation: Relation) -> bool:
    """Whether what a relation has one of can be asked for as a "which …".

    "Which alphabet is used in {}?" asks for no currency, "in which year was {} written?" for no language, and "from
    which novel does {} come?" for no maker. Of places and persons there are more kinds than could be listed.
    """
    if re.match(rf"{NO_NOUN}\b", which) or _VERB.search(which) or has_adverb(which):
        return False
    # "musical instrument", "kind of sport"
    last = which.rpartition(" ")[2]
    if _SAME_KIND.get(last, last) in (relation.which, relation.answer):
        return True
    if relation.answer == "place" and _NO_PLACE.search(which):
        return False
    return relation.answer not in _FIXED and not _TIME_OR_WORK.search(which)


def is_worded(template: str) -> bool:
    """Whether a prompt with `{}` for a phrase is a wording of a known relation, framed or not."""
    return any(_worded(same_text_key(spelled_out(core))) for _, core in forms_of(template))


def is_of_something(template: str) -> bool:
    """Whether a prompt asks for something of `{}`: "Who is the CEO of {}?"."""
    return (
        re.fullmatch(
            r"(?:who|what) (?:is|are|was|were) the [\w' -]+? of (?:the )?\{\}[?.! ]*", spelled_out(template), re.I
        )
        is not None
    )


def _evidence(relation: Relation, which: str, kinds: Kinds) -> int:
    """How well a relation goes with a prompt: 2 for a fitting subject, "which …" or answer, -1 for another answer."""
    fits = 2 * bool(kinds.subject & set(relation.of)) + 2 * bool(which and which in (relation.which, relation.answer))
    if relation.answer in kinds.answer:
        return fits + 2
    # A year would be known as one.
    return fits - 1 if relation.answer and (kinds.answer or relation.answer == "year") else fits


# The world by another name.
_ELSEWHERE = {f"{SUBJECT} in the world": f"{SUBJECT} on Earth", f"{SUBJECT} on earth": f"{SUBJECT} in the world"}


def made_from(core: str) -> tuple[Relation, str]:
    """A relation from the noun or the verb of a template, an empty one without either, and what "which …" asks for."""
    text = spelled_out(core).rstrip("?. ")
    noun = (
        re.fullmatch(rf"(?P<asks>who|what|which(?: [\w -]+?)?) (?P<verb>{_BE}) (?P<noun>{NOUN})", text, re.I)
        or re.fullmatch(rf"(?P<asks>)(?P<noun>{NOUN}) (?P<verb>{_BE})", text, re.I)
        or re.fullmatch(rf"(?P<asks>)(?P<noun>{NOUN})(?P<verb>)", text, re.I)
    )
    if noun is not None:
        return _of_noun(noun["noun"], noun["asks"].lower(), plural=noun["verb"].lower() in ("are", "were"))
    verb = re.fullmatch(r"(?:(?:which|what) (?P<which>[a-z][\w -]*?)|who) (?P<past>[a-z]+) \{\}", text, re.I)
    done = re.fullmatch(r"\{\} (?:is|are|was|were) (?P<done>[a-z]+) by(?: whom)?", text) or re.fullmatch(
        r"(?:by whom|who) (?:is|are|was|were) \{\} (?P<done>[a-z]+)(?: by)?", text, re.I
    )
    past = verb["past"] if verb else past_of_participle(done["done"]) if done else None
    # "Which team first won {}?" asks for more than who won it.
    other = verb is not None and has_adverb(verb["which"] or "")
    if other or past is None or (passive := participle(past)) is None:
        return Relation(), ""
    training, held_out = from_verb(past, passive)
    return Relation(answer="person", training=training, held_out=held_out), (verb and verb["which"]) or ""


# Who is somebody's, or at the head of something: nobody asks "what" the CEO is.
PERSON = re.compile(
    r"\b(?:president|minister|chancellor|king|queen|prince|princess|emperor|empress|pope|monarch|ruler|leader|mayor|governor"
    r"|senator|secretary|chair(?:man|woman|person)?|ceo|cfo|cto|boss|owner|founder|inventor|author|writer|director"
    r"|singer|drummer|guitarist|bassist|composer|painter|architect|coach|manager|captain|winner|champion|wife|husband"
    r"|spouse|partner|girlfriend|boyfriend|father|mother|son|daughter|brother|sister|man|woman|person|god|goddess)s?$",
    re.I,
)


def _of_noun(noun: str, asks: str, *, plural: bool) -> tuple[Relation, str]:
    if re.search(r" (?:called|named|known as)$", noun):
        return Relation(), ""
    noun = noun[0].lower() + noun[1:]
    owned = re.fullmatch(r"\{\}'s? (.+)", noun)
    of = re.fullmatch(r"the ([\w' -]+) of \{\}", noun)
    if owned is not None:
        noun, possessive = f"the {owned[1]} of {SUBJECT}", f"{SUBJECT}'s {owned[1]}"
    else:
        possessive = f"{SUBJECT}'s {of[1]}" if of and not re.search(rf"\b{NO_NOUN}\b", of[1]) else ""
    head = re.split(rf" {NO_NOUN}\b", noun)[0]
    who = asks.startswith("who") or (not asks and PERSON.search(head) is not None)
    training, held_out = from_noun(noun, who=who, possessive=possessive, plural=plural)
    if (other := _ELSEWHERE.get(noun.lower())) and not plural:
        training += from_noun(other, who=who)[0]
        held_out += from_noun(f"{SUBJECT} on the planet", who=who, number=1)[1]
    person = "person" if who else ""
    return Relation(answer=person, training=training, held_out=held_out, many=plural), asks.partition(" ")[2]
