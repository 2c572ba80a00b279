"""The forms of English verbs, and which of several words behind a subject is its verb."""

from __future__ import annotations

import re
from collections.abc import Sequence


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Past and participle of verbs that do not end in -ed; one form where they are the same.
_IRREGULAR = """
    beat/beat/beaten become/became/become begin/began/begun bring/brought build/built buy/bought catch/caught
    choose/chose/chosen come/came/come draw/drew/drawn drive/drove/driven fight/fought find/found fly/flew/flown
    get/got give/gave/given go/went/gone grow/grew/grown have/had hold/held keep/kept know/knew/known lay/laid lead/led
    leave/left lie/lay/lain lose/lost make/made mean/meant meet/met pay/paid read/read rise/rose/risen run/ran/run
    say/said see/saw/seen sell/sold send/sent sing/sang/sung sit/sat speak/spoke/spoken spend/spent stand/stood
    steal/stole/stolen swim/swam/swum take/took/taken teach/taught tell/told think/thought throw/threw/thrown
    wear/wore/worn win/won write/wrote/written shoot/shot set/set cut/cut put/put hit/hit sink/sank/sunk
    break/broke/broken eat/ate/eaten fall/fell/fallen hang/hung hear/heard feel/felt feed/fed hide/hid/hidden
    freeze/froze/frozen ride/rode/ridden seek/sought sleep/slept strike/struck swear/swore/sworn tear/tore/torn
    wake/woke/woken dig/dug bear/bore/born blow/blew/blown deal/dealt flee/fled forget/forgot/forgotten let/let
    light/lit ring/rang/rung shake/shook/shaken shine/shone shut/shut spread/spread spring/sprang/sprung
    understand/understood wind/wound withdraw/withdrew/withdrawn cost/cost overcome/overcame/overcome
    undergo/underwent/undergone upset/upset hurt/hurt split/split quit/quit bet/bet rebuild/rebuilt
"""
# Verbs of several syllables whose last letter doubles, since the last one is stressed.
_DOUBLED = "admit|commit|control|occur|omit|permit|prefer|refer|submit|transfer|transmit"
_PAST: dict[str, str] = {"do": "did", "be": "was"}
_PARTICIPLE: dict[str, str] = {}
for _forms in _IRREGULAR.split():
    _base, _past, *_participle = _forms.split("/")
    _PAST[_base] = _past
    _PARTICIPLE[_past] = _participle[0] if _participle else _past
PAST_OF = {participle: past for past, participle in _PARTICIPLE.items()}

# Verbs that no noun is spelled like: where one follows a subject, it is the subject's verb ("find work").
_ONLY_VERBS = _words("""
    achieve acquire appear arrive attend become begin believe belong bring build buy catch choose come contain
    create declare defeat depend describe develop die discover earn employ enter establish exist explore fall find
    found get give go graduate grow happen have hear hold include introduce invent join keep know learn leave lose
    make marry mean meet occur own perform pronounce protect prove publish receive recommend refer remain require
    retire say see seem sell send serve sing speak spend stay succeed take teach tell think understand wear weigh
    write
""")
# Further verbs, which nouns are spelled like too.
_VERBS = _words("""
    accept address air allow answer attack award base blow break call carry cause change charge claim close collect
    command compete conduct consist contract control cost cover cut date deal debut deliver design direct divide
    draw drink drive drop eat educate emerge end exchange expire export express face fight film finish fly follow
    form function gain govern guard hail help hire host import inhabit influence inspire invest kill lack land last
    launch lead lie like live look love manage manufacture mark measure migrate move name need offer open operate
    order originate paint pass pay plant play premiere print process produce promise raise reach read record reduce
    release represent resign rest return rise rule run score search separate ship show sink sleep sound sponsor
    stand start state stop study suffer support swim talk taste train translate travel treat trust turn use value
    visit vote walk want wash watch win work worship
""")
_KNOWN = _VERBS | _PAST.keys()
# Such of them as often are what something is done to: "clean air", "offer support".
_OBJECTS = _words("""
    air attack award bear bet blow change charge claim command control cut date deal design direct drink fight film
    function gain guard hail hit import export land lead light mark measure name order paint plant print process
    produce promise race record rest ring rule score search set shot ship sound spread spring stand state study
    support taste trade treat trust value visit vote walk wash wind work
""")
_LITTLE = _words("""
    a about across after again against ago all alone along also although always among an and any apart around as at
    away back because before behind below best between both but by days down during each either enough ever every
    far first for from here him her his if in inside into it its just last less like long many me more most much my
    near never next no not now of off often on once one only or originally other our out outside over own past per
    since so some soon still than that the their them then there these this those through throughout to today
    together tomorrow too toward towards twice two under until up upon us usually very well what when where which
    while who with within without yesterday yet your
""")


# Adverbs that stand between a noun and its verb, besides those in -ly, and what ends so and is none.
_ADVERBS = _words("""
    again already also always best ever first just last later least long most never next now often once second
    soon still then today twice
""")
_NO_ADVERBS = _words("""
    ally anomaly assembly belly bully butterfly doily dragonfly family fly folly gully holly homily jelly lily monopoly
    rally reply supply
""")


def has_adverb(words: str) -> bool:
    """Whether the last of several words is an adverb, which then are no noun alone: "astronaut first".

    One in -ly before that is an adjective: "woolly mammal".
    """
    rest = words.split()[1:]
    last = rest[-1] if rest else ""
    adverb = re.fullmatch(r"[a-z]{2,}ly", last) is not None and last not in _NO_ADVERBS
    return adverb or any(word in _ADVERBS for word in rest)


def is_bare(word: str) -> bool:
    """Whether a word may be a verb or a noun: no name, and no preposition, article, pronoun or adverb."""
    return bool(re.fullmatch(r"[a-z][\w-]*(?<!ly)", word)) and word not in _LITTLE


def place_of_verb(words: Sequence[str], *, owned: bool = False) -> int | None:
    """Which of the bare words behind a subject is its verb; those before it belong to the subject.

    ```py
    >>> place_of_verb(["plan", "cost"]), place_of_verb(["find", "work"]), place_of_verb(["store", "data"])
    (1, 0, None)
    ```

    Args:
        words: In their base form, as "does" asks for them.
        owned: Whether the first is what belongs to the subject: "father" of "Where did {}'s father go?".

    Returns:
        None where that is not sure.
    """
    first = int(owned)
    if len(words) <= first + 1:
        return first if len(words) > first else None
    sure = next((place for place in range(first, len(words)) if words[place] in _ONLY_VERBS), None)
    if sure is not None:
        return sure
    begins, ends = words[first] in _KNOWN, words[-1] in _KNOWN - _OBJECTS
    if ends:
        return None if begins else len(words) - 1
    return 0 if begins and not owned else None


def is_finite(word: str, following: str, *, plural: bool = False) -> bool:
    """Whether a word behind a subject is an irregular verb of its own, or one that a plural takes as it is.

    ```py
    >>> is_finite("sank", "in"), is_finite("come", "from", plural=True), is_finite("built", "by")
    (True, True, False)
    ```

    Args:
        word: Right behind the subject.
        following: The next word; behind "by" somebody comes who did what the subject has been done.
        plural: Whether the subject is a plural.
    """
    past = word in _PARTICIPLE and word not in _PAST and (_PARTICIPLE[word] != word or following != "by")
    return past or (plural and word in (_ONLY_VERBS | _KNOWN) - _OBJECTS)


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
    if word in PAST_OF:
        return PAST_OF[word]
    return word if re.fullmatch(r"[a-z-]{2,}ed", word) else None
