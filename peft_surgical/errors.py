"""The errors this package raises on purpose: one sentence that says what was wrong and what would be right.

Each is a [`SurgicalError`] and also the builtin a caller would expect, so `except ValueError` keeps working.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping

_TOLD = "_told_by_first"

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80


class SurgicalError(Exception):
    """Base of every error that a user's input or environment can cause here."""


class FactError(SurgicalError, ValueError):
    """A fact file or a `Fact` field that cannot be used."""


class FactWarning(UserWarning):
    """A fact that can be used, but hardly as it was meant."""


class ModelError(SurgicalError, ValueError):
    """A model or tokenizer that cannot be found, read or used."""


class NotFiniteError(ModelError):
    """A model that gives logits which are not finite: damaged weights, or a dtype that they do not fit into."""


class ArchitectureError(ModelError):
    """A model whose module names or shapes are not known here."""


class SelectionError(SurgicalError, ValueError):
    """A selection of components that the model does not have, or that is malformed."""


class NoneFitsError(SelectionError):
    """No component is within the limits; whoever was given them under other names says so by these.

    Args:
        why: The rest of the sentence, or without limits all of it.
        limits: The limits by their names.
    """

    def __init__(self, why: str, limits: Mapping[str, object] | None = None) -> None:
        self.why, self.limits = why, dict(limits or {})
        super().__init__(self.told())

    def told(self, form: str = "{}={}") -> str:
        """The message; `form` says how a limit's name and value are put."""
        said = ", ".join(form.format(name, value) for name, value in self.limits.items())
        return f"no component fits {said}{self.why}" if said else self.why

    def naming(self, **names: str) -> NoneFitsError:
        """The same error of limits by other names."""
        return NoneFitsError(self.why, {names.get(name, name): value for name, value in self.limits.items()})


class ScorerError(SurgicalError, ValueError):
    """A scorer that does not exist, clashes with another, or returned something unusable."""


class AdapterError(SurgicalError, ValueError):
    """An adapter folder that is missing, damaged, or made for another model."""


class ReportError(SurgicalError, ValueError):
    """A file or JSON that is not a report, or cannot be read as one."""


class MissingPackageError(SurgicalError, ImportError):
    """A package of an extra that is not installed."""


class MissingModelPackageError(ModelError, MissingPackageError):
    """A model that cannot be read without a package of an extra that is not installed."""


class OutputError(SurgicalError, OSError):
    """An output path that cannot be written or would overwrite something."""


def tell(error: BaseException, *, by_first: bool) -> None:
    """Settles whether the first of several processes tells of an error, which all of them have; else this one does.
    What was settled before holds."""
    if told_by_first(error) is None:
        setattr(error, _TOLD, by_first)


def told_by_first(error: BaseException) -> bool | None:
    """Whether the first of several processes tells of an error; None where that is not settled."""
    told: bool | None = getattr(error, _TOLD, None)
    return told


def brief(value: object) -> str:
    """The `repr` of what somebody gave, cut in the middle so that a message stays a sentence, whatever it is."""
    try:
        # A module's and a table's go over many lines.
        return re.sub(r"\s*\n\s*", " ", _SHORT.repr(value))
    except Exception:  # a number of 5,000 digits has no decimal form, and a stranger's `__repr__` may do anything
        return f"a {type(value).__name__}"


def first_line(error: BaseException) -> str:
    """The first line of an error's message that is no heading, as libraries begin with; without its full stop."""
    lines = [line.strip() for line in said(error).splitlines() if line.strip()]
    found = [line for line in lines if not line.endswith(":")] or lines or [type(error).__name__]
    return found[0].rstrip(".")


def said(error: BaseException) -> str:
    """An error's message, or its type's name where it has none or fails to say it, as a stranger's may."""
    try:
        return str(error) or type(error).__name__
    except Exception:
        return type(error).__name__
