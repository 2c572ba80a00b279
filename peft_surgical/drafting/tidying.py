"""What people type around a prompt and leave out of it, put right before the prompt is understood."""

from __future__ import annotations

import re

from ..texts.grammar import SUBJECT, capitalized
from .capitals import REQUESTS
from .frames import NOUN, Form

_GREETING = re.compile(
    r"(?:hi|hello|hey|good (?:morning|afternoon|evening)|ok(?:ay)?|so|please)(?: there)?[,!.] +", re.I
)
_PLEASE = re.compile(r"please (?=(?:name|state|give|list)\b)", re.I)
_GAP = re.compile(r"\s*(?:_{2,}|\.{2,}|\u2026)[_.\u2026\s]*$")
# Requests in verbs that no frame has: for a clause, and for what a noun or its owner names.
_ASKS = re.compile(
    r"(?:please )?(?:(?P<known>i (?:want|wish) to (?:know|find out))"
    rf"|(?:{REQUESTS})(?: (?:down|out))?"
    r"(?: (?:to )?(?:me|us))?(?: of)?) "
    # With a capital the word is one of a name: "Guess Who".
    r"(?=(?P<clause>(?-i:(?:\w+ )?(?:who|whom|whose|what|which|where|when|how)\b))|(?:the|an?) |\S+['\u2019]s )",
    re.I,
)
_REQUEST = re.compile(r"(?:please )?(?:tell|name|give|state|list|identify|remind) (?:me|us|the|an?|one|all)\b", re.I)


def tidied(before: str, after: str) -> tuple[str, str]:
    """What stands before and behind a subject, without a greeting, and in lower case where all is in capitals."""
    begins = capitalized if before else str
    if (before + after).isupper() and len(re.findall(r"[A-Z]{2,}", f"{before} {after}")) > 1:
        before, after = begins(before.lower()), after.lower()
    asked = as_usual_request(f"{before}{SUBJECT}{after}")
    if asked.startswith("Tell") or re.fullmatch(rf"Name (?:{NOUN})[?. ]*", asked, re.I):
        before = asked[: asked.index(SUBJECT)]
    shorter = _PLEASE.sub("", _GREETING.sub("", before, count=1), count=1) if before else before
    if shorter != before:
        before = capitalized(shorter)
    return before, after


def as_usual_request(text: str) -> str:
    """A text that begins with a request in whatever verb, with "Tell me" or "Name" for it: "Remind me who wrote"."""
    found = _ASKS.match(text)
    if found is None:
        return text
    verb = "tell me" if found["clause"] or found["known"] else "name"
    return f"{capitalized(verb)} {text[found.end() :]}"


def settled_form(form: Form, core: str) -> tuple[Form, str]:
    """A prompt without its frame and its form, with the mark that it should end with.

    A gap to fill in at the end of a sentence goes, a question gets its question mark, a request its full stop, and a
    noun with a question mark ("Kenya's capital?") is asked for like any noun.
    """
    text = core.strip()
    if form == "question":
        bare = text.rstrip("?. ")
        if re.fullmatch(NOUN, bare, re.I):
            return "noun", bare[0].lower() + bare[1:]
        return form, core if text.endswith(("?", "!", ".")) else f"{text}?"
    if form != "sentence":
        return form, core
    text = _GAP.sub("", text)
    if _REQUEST.match(text) and SUBJECT in text:
        return "question", text if text.endswith((".", "?", "!")) else f"{text}."
    return form, text
