"""Subjects in the plural ("The Beatles were formed in"), for templates that are written for one thing."""

from __future__ import annotations

import re

from ..texts.grammar import SUBJECT


def is_plural(template: str) -> bool:
    """Whether the subject of a template is a plural: "{} were formed in"."""
    return bool(re.search(r"\b(?:are|were) \{\}(?!')|^\{\} (?:are|were)\b", template))


def in_singular(template: str) -> str:
    """A template with a subject in the plural, in the singular."""
    for many, one in (("are", "is"), ("were", "was")):
        template = re.sub(rf"\b{many} \{{\}}", f"{one} {SUBJECT}", template)
        template = re.sub(rf"^\{{\}} {many}\b", f"{SUBJECT} {one}", template)
    return template


def in_plural(template: str) -> str:
    """A template for a subject in the plural; empty where a verb would have to change with it."""
    for one, many in (("is", "are"), ("was", "were")):
        template = re.sub(rf"\b{one} \{{\}}(?!')", f"{many} {SUBJECT}", template)
        template = re.sub(rf"^\{{\}} {one}\b", f"{SUBJECT} {many}", template)
    template = re.sub(r"\bits\b", "their", template)
    return "" if re.search(r"\b(?:does|has) \{\}|^\{\} (?!was|is)\w+s\b", template) else template
