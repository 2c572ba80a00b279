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

SUBJECT = "{}"

# Past and participle of verbs that do not end in -ed; one form where they are the same.
_IRREGULAR = """
    beat/beaten become begin/began/begun bring/brought build/built buy/bought catch/caught choose/chose/chosen
    come/came/come draw/drew/drawn drive/drove/driven fight/fought find/found fly/flew/flown get/got give/gave/given
    go/went/gone grow/grew/grown have/had hold/held keep/kept know/knew/known lay/laid lead/led leave/left lie/lay/lain
    lose/lost make/made mean/meant meet/met pay/paid read/read rise/rose/risen run/ran/run say/said see/saw/seen
    sell/sold send/sent sing/sang/sung sit/sat speak/spoke/spoken spend/spent stand/stood steal/stole/stolen
    swim/swam/swum take/took/taken teach/taught tell/told think/thought throw/threw/thrown wear/wore/worn win/won
    write/wrote/written shoot/shot set/set cut/cut put/put hit/hit sink/sank/sunk break/broke/broken eat/ate/eaten
    fall/fell/fallen hang/hung hear/heard feel/felt feed/fed hide/hid/hidden freeze/froze/frozen ride/rode/ridden
    seek/sought sleep/slept strike/struck swear/swore/sworn tear/tore/torn wake/woke/woken dig/dug bear/bore/born
    blow/blew/blown deal/dealt flee/fled forget/forgot/forgotten let/let light/lit ring/rang/rung shake/shook/shaken
    shine/shone shut/shut spread/spread spring/sprang/sprung understand/understood wind/wound
    withdraw/withdrew/withdrawn cost/cost overcome/overcame/overcome undergo/underwent/undergone upset/upset hurt/hurt
    split/split quit/quit bet/bet rebuild/rebuilt
"""
# Verbs of several syllables whose last letter doubles, since the last one is stressed.
_DOUBLED = "admit|commit|control|occur|omit|permit|prefer|refer|submit|transfer|transmit"
_PAST: dict[str, str] = {"do": "did", "be": "was", "beat": "beat", "become": "became"}
_PARTICIPLE: dict[str, str] = {"beat": "beaten", "became": "become"}
for _forms in _IRREGULAR.split():
    _base, _, _rest = _forms.partition("/")
    if _base not in ("beat", "become"):
        _past, _, _participle = _rest.partition("/")
        _PAST[_base] = _past
        _PARTICIPLE[_past] = _participle or _past
_PAST_OF = {participle: past for past, participle in _PARTICIPLE.items()}

_QUESTION = re.compile(
    r"(?:(?:in|on|at|for|from|by|to|of|with|under|after) )?(?:who|whom|whose|what|which|where|when|why|how)\b", re.I
)
_BE = ("is", "are", "was", "were")
_DO = ("do", "does", "did")
_MODAL = ("can", "could", "will", "would", "should", "must", "may", "might", "has", "have", "had")
_PRONOUNS = "we|you|I|one|people|viewers|chemists|travellers|the public"
_ADVERBS = "(?:first|usually|originally|also|ever)"
_PARTICIPLES = "|".join(sorted(_PAST_OF))
# "the capital of {}", "{}'s capital": a noun phrase that ends with the subject, or that the subject's 's leads.
_NOUN_PHRASE = re.compile(
    rf"(?:the|an?|all|most) [^?,]*\{{\}}|(?!.* (?:\w{{2,}}ed|{_PARTICIPLES})$)(?:the )?\{{\}}'s? [\w '-]+", re.I
)
# What can be said of a subject: "developed by", "in Spain", "alive", and not the "manager" of "who is the {} manager".
_PREPOSITIONS = "about|after|as|at|by|for|from|in|into|like|near|of|on|out|over|to|under|up|with"
SAID = rf"(?:\w{{2,}}ed|{_PARTICIPLES}|{_ADVERBS}|{_PREPOSITIONS}|alive|dead|due|open|worth|the|an?|this|next|last)\b"
# "the {} manager", "the {} word for dog"
_COMPOUND = re.compile(rf"the \{{\}}(?: (?!{SAID}|\w{{2,}}ing\b)[\w-]+)+(?: (?:for|in|of) [\w-]+)?", re.I)


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
        # An apostrophe behind the subject is a possessive, or closes what one before it opens.
        subject = r".*?'\{\}'(?= )|.*?(?<!')\{\}(?:'s? \w+)?"
        found = re.fullmatch(rf"({subject}|{_PRONOUNS})( {_ADVERBS})? (\w+)(.*)", after)
        if found is None or found[3] == "not":
            return None
        changed = {"did": past_tense, "does": third_person}.get(verb, str)(found[3])
        return f"{found[1]}{found[2] or ''} {changed}{found[4]}"
    subject_first = re.fullmatch(r"(\{\})((?: .*)?)", after)
    if verb in ("has", "have", "had") and not re.match(rf"\S+ (?:{_ADVERBS} )?(?:\w+ed|{_PARTICIPLES})\b", after):
        return f"{verb} {after}"
    if verb in _MODAL:
        found = subject_first or re.fullmatch(rf"({_PRONOUNS})( .*)", after)
        return None if found is None else f"{found[1]} {verb}{found[2]}"
    if subject_first is not None:
        return f"{subject_first[1]} {verb}{subject_first[2]}" if _is_said(asked, subject_first[2].strip()) else None
    compound = asked in ("who", "what", "where", "when") and _COMPOUND.fullmatch(after)
    noun = compound or _NOUN_PHRASE.fullmatch(after)
    if noun and asked in ("who", "what", "where", "when", "how"):
        return f"{after} {verb}"
    # "who is behind {}", "which city is the capital of {}": the question words are the subject already.
    asks_for_subject = asked.startswith(("who", "what", "which")) and not asked.startswith("whom")
    begun = after.startswith(("the ", "a ", "an ", f"{SUBJECT}'"))
    return f"{verb} {after}" if asks_for_subject and (noun or not begun) else None


def _is_said(asked: str, words: str) -> bool:
    """Whether the words after a subject are no noun that its name goes on with; none are needed."""
    adjective = " " not in words and asked in ("where", "when", "why", "how")
    return not words or adjective or bool(re.match(rf"(?i:{SAID})|[a-z].* (?:{_PREPOSITIONS})$", words))


def is_question(text: str) -> bool:
    """Whether a template asks, with a question mark or without one."""
    turned = rf"{_QUESTION.pattern} (?:{'|'.join((*_BE, *_DO, *_MODAL))})\b"
    # "Where is {}? It is in" goes on.
    asks = "?" not in text and re.match(turned, text, re.I) is not None
    return asks or text.endswith("?") or as_clause(text) is not None


def spelled_out(text: str) -> str:
    """ "What's" as "What is"."""
    return re.sub(r"^(who|what|where|when|which city)['\u2019]s\b", r"\1 is", text, flags=re.I)


def past_tense(verb: str) -> str:
    """The past of a verb: "die" gives "died", "write" gives "wrote"."""
    if verb in _PAST:
        return _PAST[verb]
    if verb.endswith("e"):
        return verb + "d"
    if re.search(r"[^aeiou]y$", verb):
        return verb[:-1] + "ied"
    if re.fullmatch(rf"[^aeiou]*[aeiou][^aeiouwxy]|{_DOUBLED}", verb) and len(verb) > 2:
        return verb + verb[-1] + "ed"
    return verb + "ed"


def third_person(verb: str) -> str:
    """The third person of a verb: "study" gives "studies", "have" gives "has"."""
    if verb in ("have", "do", "go", "be"):
        return {"have": "has", "do": "does", "go": "goes", "be": "is"}[verb]
    if re.search(r"[^aeiou]y$", verb):
        return verb[:-1] + "ies"
    return verb + ("es" if verb.endswith(("s", "x", "z", "ch", "sh", "o")) else "s")


def participle(past: str) -> str | None:
    """The participle of a verb in the past: "wrote" gives "written"; None for what does not look like such a verb."""
    if past in _PARTICIPLE:
        return _PARTICIPLE[past]
    return past if re.fullmatch(r"[a-z-]{2,}ed", past) else None


def past_of_participle(word: str) -> str | None:
    """The past of a verb that is given by its participle: "written" gives "wrote"."""
    if word in _PAST_OF:
        return _PAST_OF[word]
    return word if re.fullmatch(r"[a-z-]{2,}ed", word) else None


def capitalized(text: str) -> str:
    """`text` with its first letter in upper case."""
    return text[:1].upper() + text[1:]


def begins_with_vowel(phrase: str) -> bool:
    """Whether "an" stands before a phrase, by its first letter."""
    return phrase[:1].lower() in tuple("aeiou")


def takes_possessive(phrase: str) -> bool:
    """Whether 's can follow a name without looking odd: "Texas's capital" and "New York (state)'s" are left out."""
    return phrase[-1:].isalpha() and phrase[-1].lower() not in "sxz"
