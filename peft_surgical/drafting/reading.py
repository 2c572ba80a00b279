"""Reading a prompt: what it asks of its subject, as a relation that can be worded otherwise.

The subject is cut out, with an article or a noun that belongs to it ("the PyTorch framework"); what is left is looked
up among the wordings of the known relations. Where it is none of them, a relation is made from its noun ("the anthem
of Norway") or its verb ("Who baked …?"), and where there is neither, the prompt is left as it stands.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import starmap

from ..errors import FactError, brief
from ..texts.grammar import (
    SAID,
    SUBJECT,
    as_clause,
    begins_with_vowel,
    capitalized,
    noun_behind_subject,
    one_stop,
    takes_possessive,
)
from ..texts.tables import bare
from ..texts.text import occurrences
from ..texts.verbs import is_bare, is_finite
from .capitals import ENDINGS
from .clauses import MONTHS, from_clause
from .frames import Form, forms_of
from .names import PLACES, kinds_of
from .plurals import in_number_of, in_plural, is_plural
from .recognition import NO_NOUN, Kinds, made_from, recognize
from .relations import Relation, Wordings, settle
from .tidying import settled_form, tidied

# "How many legs does a {} have?"
_WITH_ARTICLE = re.compile(r"\b([Aa])n?(?= \{\})")
_ENDS_WITH_PHRASE = re.compile(r"(?:who|(?:which|what) [\w -]+) (?!(?:is|are|was|were) )[a-z]+ \{\}[?. ]*", re.I)
_OF_UNIVERSITY = re.compile(
    r"\b(?:universit(?:y|ies)|college|school|alma mater|attend(?:ed)?|degree|lectures|enrolled"
    r"|(?:studied|educated|graduated) (?:at|from))\b",
    re.I,
)
_DATE = re.compile(rf"\b(?:{MONTHS})\b")
_OPENING = ('"', "\u201c", "\u2018", "'")
_FINITE = r"\b(?:is|are|was|were|\w+s|\w+ed|spoke|wrote|took|found|came|grew|got|sang|sung|led|won|lost)\b"


@dataclass(frozen=True)
class Reading:
    """A prompt, understood.

    Attributes:
        prompt: As given, white space collapsed.
        subject: What it is about, as it stands in the prompt.
        phrase: The subject with what belongs to it, as it stands inside a sentence: "the Netherlands".
        core: The prompt without its frame, with `{}` for the phrase.
        form: What the core is.
        relation: What is asked of the subject.
        which: What "which …" asks for, or nothing.
        past: Whether it is in the past.
        plural: Whether the subject is a plural.
        has_name: Whether the answers look like names, as far as they are known.
    """

    prompt: str
    subject: str
    phrase: str
    core: str
    form: Form
    relation: Relation
    which: str = ""
    past: bool = False
    plural: bool = False
    has_name: bool = False

    @property
    def is_fragment(self) -> bool:
        """Whether it lacks what a sentence has: "Hamlet, a play by", "its owner"."""
        rest = self.core.replace(f"{SUBJECT}'s", "").replace(SUBJECT, "")
        if re.match(r"(?:,| that\b)", rest) or rest.endswith(","):
            return True
        return not self.has_verb_behind and not re.search(_FINITE, rest)

    @property
    def has_verb_behind(self) -> bool:
        """Whether the subject's verb follows it: in "The Titanic sank in", and not in "the Titanic model"."""
        found = re.search(r"\{\}(?: (?:first|also|\w+ly))? (?P<verb>\w+) ?(?P<next>\w*)", self.core)
        if found is None:
            return False
        regular = re.fullmatch(_FINITE, found["verb"]) and found["next"] != "by"
        return bool(regular) or is_finite(found["verb"], found["next"], plural=self.plural)

    @property
    def asks(self) -> bool:
        """Whether the prompt is a question or a request, and not the beginning of a sentence."""
        return self.form != "sentence"

    @property
    def has_article(self) -> bool:
        """Whether "a" or "an" stands before the phrase."""
        return _WITH_ARTICLE.search(self.core) is not None

    @property
    def is_part(self) -> bool:
        """Whether the subject is only the beginning of what is asked about: "US" in "the US national anthem"."""
        return f"{self.subject} " in self.phrase

    @property
    def _owns(self) -> bool:
        """Whether 's may follow the phrase: a name, or what the prompt or a table gives one, and not "hot's"."""
        owned = self.relation.name or self.phrase != self.phrase.lower()
        return f"{SUBJECT}'s" in self.core or (takes_possessive(self.phrase) and bool(owned))

    def wordings(self, *, held_out: bool = False) -> Wordings:
        """The wordings of its relation that fit it, as templates whose only slot is `{}`; its own is among them."""
        return self._fit(self.relation.held_out if held_out else self.relation.training)

    def more_wordings(self) -> Wordings:
        """Further wordings for training, for variety alone."""
        return self._fit(self.relation.more)

    def fill(self, template: str, phrase: str | None = None) -> str:
        """A template as a text of its own: with the subject, or another phrase, in its place, and a capital first."""
        return self.begun(self.inside(template, phrase), phrase)

    def begun(self, text: str, phrase: str | None = None) -> str:
        """A text with a capital first, but for a name that it begins with: "iOS was developed by"."""
        name = self.phrase if phrase is None else phrase
        is_name = self.prompt.islower() or not name.islower()
        named = is_name and text.startswith(name) and not name.startswith(("the ", "a ", "an "))
        return text if named else capitalized(text)

    def inside(self, template: str, phrase: str | None = None) -> str:
        """A template as a part of a sentence; an article, a verb or a possessive next to the slot fits another
        phrase."""
        if phrase is None:
            return one_stop(template, self.phrase).replace(SUBJECT, self.phrase)
        template = one_stop(in_number_of(phrase, template), phrase)
        if _WITH_ARTICLE.search(template):
            phrase = bare(phrase)
            template = _WITH_ARTICLE.sub(lambda found: found[1] + "n" * begins_with_vowel(phrase), template)
        if not phrase.endswith(("s", "S")):
            template = re.sub(r"(?<!['\u2018])\{\}(['\u2019])(?= )", r"{}\1s", template)
        return template.replace(SUBJECT, phrase)

    def _fit(self, wordings: Wordings) -> Wordings:
        kinds = (wordings.questions, wordings.sentences, wordings.nouns, wordings.terse)
        return Wordings(*map(self.fitting, kinds))

    def fitting(self, templates: Iterable[str]) -> tuple[str, ...]:
        """Those of some templates that can be asked of the phrase, in the prompt's tense and number."""
        fitting = []
        for template in templates:
            settled = settle(template, self.which, past=self.past)
            if settled is None or (f"{SUBJECT}'s" in settled and not self._owns):
                continue
            # Whether "romeo and juliet" has one capital or two cannot be seen where there is none.
            if self.prompt.islower() and settled.startswith(SUBJECT) > self.core.startswith(SUBJECT):
                continue
            fitting.append(in_plural(settled) if self.plural else settled)
        return tuple(template for template in fitting if template)


def read_prompt(prompt: str, subject: str, old: Iterable[str] = (), new: Iterable[str] = ()) -> Reading:
    """What a prompt asks of its subject.

    Args:
        prompt: A question, a request, or the beginning of a sentence that the answer ends.
        subject: As it stands in the prompt, whatever its case.
        old: Forms of the old answer; what kind of thing they are tells apart what reads alike.
        new: Forms of the new answer, likewise.

    Raises:
        FactError: If the prompt does not name the subject, or holds `{}`.
    """
    prompt = " ".join(prompt.split())
    found = list(occurrences(prompt, subject))
    if not found:
        raise FactError(
            f"the prompt {brief(prompt)} does not name the subject {brief(subject)}; name it as the prompt does."
        )
    if SUBJECT in prompt:
        raise FactError(f"the prompt {brief(prompt)} holds {SUBJECT}; write the subject in its place.")
    start, stop = found[0]
    # "Apple Inc" of "Who founded Apple Inc.?": the full stop is no part of what is asked.
    shortened = re.search(rf" (?:{'|'.join(ENDINGS)})$", prompt[:stop])
    stop += bool(shortened and re.match(r"\.(?=\S| [a-z])", prompt[stop:]))
    subject = prompt[start:stop]
    before, after = tidied(prompt[:start], prompt[stop:])
    old, new = tuple(old), tuple(new)
    kinds = Kinds(kinds_of([subject], prompt), kinds_of(old), kinds_of(new))
    drafts = [] if len(found) > 1 else list(_drafts(before, subject, after))
    for phrase, template in drafts:
        for form, core in starmap(settled_form, forms_of(template)):
            known = recognize(core, kinds, longer=bare(phrase.casefold()) != subject.casefold())
            if known is not None:
                relation, which, past = known
                if _is_another(relation, core, phrase, kinds, (*old, *new)):
                    continue
                # "Who invented paper?": the Chinese, not their language.
                asked = "" if kinds.asked == "language" != relation.answer else kinds.asked
                which = which or asked or kinds.fitting(relation)
                plural = is_plural(core, "" if prompt.islower() else phrase)
                return Reading(prompt, subject, phrase, core, form, relation, which, past, plural)
    if not drafts:
        return Reading(
            prompt, subject, subject, prompt, "question" if prompt.endswith("?") else "sentence", Relation()
        )
    phrase, template = _likely(subject, drafts)
    form, core = settled_form(*list(forms_of(template))[-1])
    relation, which = made_from(core)
    if relation == Relation() and form in ("question", "clause"):
        training, held_out = from_clause(core, [*old, *new])
        relation = replace(relation, training=training, held_out=held_out)
    plural = is_plural(core, "" if prompt.islower() else phrase)
    past = bool(re.search(r"\b(?:was|were|did|had)\b", core))
    names = all(re.match(r"[^\W\d_]", answer) and answer[0].isupper() for answer in (*old, *new))
    has_name = names and bool(old or new) and not re.search(r"\bthe names? of\b", core, re.I)
    which = which or kinds.asked_of(core)
    return Reading(prompt, subject, phrase, core, form, relation, which, past, plural, has_name)


def _is_another(relation: Relation, core: str, phrase: str, kinds: Kinds, answers: Sequence[str]) -> bool:
    """Whether a relation of the table only reads as the prompt does: "June 1, 1980" is no year of birth, "the director
    of the FBI" has made no film, and where somebody studied may be a town, as Leipzig, or law."""
    if relation.answer == "year":
        return any(map(_DATE.search, answers))
    if relation.name == "education" and not _OF_UNIVERSITY.search(core):
        return bool(kinds.old & kinds.new & PLACES) or any(bare(answer)[:1].islower() for answer in answers)
    return relation.name == "director" and not kinds.subject and (phrase.startswith("the ") or phrase.isupper())


def _likely(subject: str, drafts: Sequence[tuple[str, str]]) -> tuple[str, str]:
    """The draft to take where none is a known wording.

    "the {subject}" is one phrase, but in "the {subject} manager"; more words before it may be anything, and words
    behind it belong to it where a verb follows or the prompt ends with them ("Who maintains the Linux kernel?").
    """
    whole = [draft for draft in drafts if draft[0].casefold() == f"the {subject}".casefold()]
    usual = [*whole, *(draft for draft in drafts if draft[0].startswith(_OPENING)), *drafts[:1]]
    behind = [noun_behind_subject(template) for _, template in whole]
    longer = []
    for phrase, template in drafts:
        noun = phrase.rpartition(f"{subject} ")[2] if phrase.startswith("the ") and f"{subject} " in phrase else ""
        if noun and (noun in behind or (_ENDS_WITH_PHRASE.fullmatch(template) and all(map(is_bare, noun.split())))):
            longer.append((phrase, template))
    return next((draft for draft in (*longer, *usual) if as_clause(draft[1]) is not None), usual[0])


def _drafts(before: str, subject: str, after: str) -> Iterator[tuple[str, str]]:
    """The subject with more and more of what may belong to it, and the prompt with `{}` for that."""
    yield subject, f"{before}{SUBJECT}{after}"
    opened = re.search("[\"\u201c\u2018'](?:The )?$", before)
    if opened and re.match("[\"\u201d\u2019'](?!\\w)", after):
        subject = f"{opened[0]}{subject}{after[0]}"
        before, after = before[: opened.start()], after[1:]
        yield subject, f"{before}{SUBJECT}{after}"
    left = re.search(rf"(?:^|(?<= ))([Tt]he|[Aa]n?) ((?:(?!{NO_NOUN}\b)[a-z][\w-]* ){{0,3}})$", before)
    if left is None:
        return
    # An article that begins the prompt has its capital from there.
    phrase = f"{left[1].lower()} {left[2]}{subject}"
    yield phrase, f"{before[: left.start()]}{SUBJECT}{after}"
    for count in (1, 2):
        # "the {} manager", and not "the {} built".
        tail = re.match(rf"(?: (?!{NO_NOUN}\b|{SAID})[a-z][\w-]*){{{count}}}(?![\w-])", after)
        if tail is not None:
            yield phrase + tail[0], f"{before[: left.start()]}{SUBJECT}{after[tail.end() :]}"
