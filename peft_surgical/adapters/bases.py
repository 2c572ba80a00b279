"""Names of base models: what can be an id of the hub, which two can be of one model, and of which revision one is."""

from __future__ import annotations

import os
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined] # exported lazily

_REVISION = "_peft_surgical_revision"


def note_revision(model: Any, revision: str | None) -> None:
    """Keeps with a model the revision that it was loaded from, which transformers forgets."""
    setattr(model, _REVISION, revision)


def revision_of(model: Any) -> str | None:
    """The revision that was asked for when a model, or the one below its adapters, was loaded, if any."""
    revision: str | None = getattr(model, _REVISION, None)
    return revision


def hub_id(name: str | None) -> str | None:
    """A base's name if it can be an id of the hub, and is no path here."""
    if not name or name.endswith(".gguf") or os.path.exists(name):
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name


def same_model(one: str, other: str) -> bool:
    """Whether two names can be those of one model, by what they say.

    Folders of a name are taken for the same model, wherever they are: a path is relative, or of another machine. Ids
    of the hub are not.
    """
    if one.lower() == other.lower():
        return True
    if all("/" in name and hub_id(name) for name in (one, other)):
        return False
    first, second = (os.path.basename(os.path.abspath(name)).lower() for name in (one, other))
    return first == second or (os.path.exists(one) and os.path.exists(other) and os.path.samefile(one, other))
