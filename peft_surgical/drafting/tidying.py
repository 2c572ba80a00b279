"""What people type around a prompt and leave out of it, put right before the prompt is understood."""

from __future__ import annotations

import re

from ..texts.grammar import SUBJECT, capitalized
from .frames import NOUN, Form

_GREETING = re.compile(
    r"(?:hi|hello|hey|good (?:morning|afternoon|evening)|ok(?:ay)?|so|please)(?: there)?[,!.] +", re.I
)
_PLEASE = re.compile(r"please (?=(?:name|state|give|list)\b)", re.I)
_GAP = re.compile(r"\s*(?:_{2,}|\.{2,}|\u2026)[_.\u2026\s]*$")
_REQUEST = re.compile(r"(?:please )?(?:tell|name|give|state|list|identify|remind) (?:me|us|the|an?|one|all)\b", re.I)


def tidied(before: str, after: str) -> tuple[str, str]:
    """What stands before and behind a subject, without a greeting, and in lower case where all is in capitals."""
    begins = capitalized if before else str
    if (before + after).isupper() and len(re.findall(r"[A-Z]{2,}", f"{before} {after}")) > 1:
        before, after = begins(before.lower()), after.lower()
    shorter = _PLEASE.sub("", _GREETING.sub("", before, count=1), count=1) if before else before
    if shorter != before:
        before = capitalized(shorter)
    return before, after


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
