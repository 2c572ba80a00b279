"""Names of base models: what can be an id of the hub, which two can be of one model, and of which revision one is."""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined] # exported lazily

from ..errors import brief

_REVISION = "_peft_surgical_revision"
_SOURCE = "_peft_surgical_source"
# Where the hub's client keeps a repository.
_CACHED = re.compile(r"(?:^|[/\\])models--(?P<id>[^/\\]+)[/\\]snapshots[/\\](?P<commit>[^/\\]+)[/\\]?$")


def note_revision(model: Any, revision: str | None) -> None:
    """Keeps with a model the revision that it was loaded from, which transformers forgets."""
    setattr(model, _REVISION, revision)


def revision_of(model: Any) -> str | None:
    """The revision that was asked for when a model, or the one below its adapters, was loaded, if any."""
    revision: str | None = getattr(model, _REVISION, None)
    return revision


def note_source(model: Any, path: str | None) -> None:
    """Keeps with a model which folder or file here it was read from, whatever becomes the current folder.

    Args:
        model: The model.
        path: None for one of the hub.
    """
    setattr(model, _SOURCE, None if path is None else os.path.abspath(path))


def source_of(model: Any) -> str | None:
    """The absolute path of the folder or file that a model was read from, if it was noted."""
    source: str | None = getattr(model, _SOURCE, None)
    return source


def folder_of(model: Any, *, exact: bool = False) -> Path | None:
    """The folder here with the checkpoint that a model was read from, be it in the hub's cache; None if none is known.

    Nothing is downloaded.

    Args:
        model: The model.
        exact: Only one whose weights it has: none in the hub's cache by an id alone where no revision was noted, not
            even that there was none, since it may be any.
    """
    name = source_of(model) or getattr(model, "name_or_path", None)
    if not name:
        return None
    if os.path.isfile(os.path.join(name, "config.json")):
        return Path(name)
    known = hasattr(model, _REVISION) or cached_commit(name) is not None
    return _snapshot(model, name) if known or not exact else None


def _snapshot(model: Any, name: str) -> Path | None:
    base, revision = hub_id(name), cached_commit(name) or revision_of(model)
    found = try_to_load_from_cache(base, "config.json", revision=revision) if base else None
    return Path(found).parent if isinstance(found, str) else None


def may_be_read_from(model: Any, out: str | os.PathLike[str]) -> bool:
    """Whether a folder may be the one that a model was read from, by its name alone.

    That name is relative to a folder that need not be the current one any more, and the checkpoint may be in one
    within it (`subfolder`).
    """
    name = getattr(model, "name_or_path", None)
    if hasattr(model, _SOURCE) or not name:
        return False
    if os.path.exists(name) and Path(os.path.realpath(out)).is_relative_to(os.path.realpath(name)):
        return True
    # Of a name that leads to a checkpoint from here, it is taken that it did so when the model was loaded, too.
    leads = os.path.isabs(name) or os.path.isfile(name) or os.path.isfile(os.path.join(name, "config.json"))
    return not leads and _snapshot(model, name) is None


def hub_id(name: str | None) -> str | None:
    """A base's name if it can be an id of the hub, and is no path here; of a path into the hub's cache the id."""
    if name and (found := _CACHED.search(name)):
        return found["id"].replace("--", "/")
    if not name or name.endswith(".gguf") or os.path.exists(name):
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name


def hub_id_of(model: Any, name: str) -> str | None:
    """The id of the hub by which a model of this name was loaded, whatever the current folder is; None of one from a
    folder."""
    here = source_of(model)
    # A relative path may look like an id once another folder is the current one; one into the hub's cache holds an id.
    alike = here is not None and os.path.basename(here) == os.path.basename(os.path.normpath(name))
    return None if alike and cached_commit(name) is None else hub_id(name)


def cached_commit(name: str | None) -> str | None:
    """The commit that a path into the hub's cache leads to; None for any other name."""
    found = _CACHED.search(name or "")
    return found["commit"] if found else None


def same_model(one: str, other: str) -> bool:
    """Whether two names can be those of one model, by what they say.

    Folders of a name are taken for the same model, wherever they are: a path is relative, or of another machine. Ids
    of the hub are not.
    """
    one, other = (hub_id(name) or name for name in (one, other))
    if one.lower() == other.lower():
        return True
    if all("/" in name and hub_id(name) for name in (one, other)):
        return False
    first, second = map(_folder_name, (one, other))
    return first == second or (os.path.exists(one) and os.path.exists(other) and os.path.samefile(one, other))


def _folder_name(name: str) -> str:
    try:
        name = os.path.abspath(name)
    except FileNotFoundError:
        # The current folder is gone, which says nothing of a name that does not begin there.
        name = os.path.normpath(name)
    return os.path.basename(name).lower()


def warn_of_another_base(
    model: Any, adapter: str | os.PathLike[str], made_for: str | None, revision: str | None
) -> None:
    """Warns of an adapter for a model of another name or revision: it fits all the same if the shapes are.

    Args:
        model: What it is to act on.
        adapter: What the warning calls it.
        made_for: The name of its base, if that is known.
        revision: The revision of its base, if that is known.

    Warns:
        UserWarning: If the names of both are known and differ, or are one of the hub and the revisions are known and
            differ.
    """
    here = getattr(model, "name_or_path", None)
    if not here or not made_for:
        return
    if not same_model(here, made_for):
        warnings.warn(
            f"the adapter {os.fspath(adapter)} was made for {brief(made_for)}; this model is {brief(here)}.",
            stacklevel=3,
        )
        return
    known = hasattr(model, _REVISION) or cached_commit(here) is not None
    theirs = revision or cached_commit(made_for)
    if not known or theirs is None or not (base := hub_id(here)):
        return
    ours = cached_commit(here) or revision_of(model) or "main"
    if ours != theirs and _commit(base, ours) != _commit(base, theirs):
        warnings.warn(
            f"the adapter {os.fspath(adapter)} was made for the revision {brief(theirs)} of {base}; this model is of"
            f" {brief(ours)}.",
            stacklevel=3,
        )


def _commit(base: str, revision: str) -> str:
    """The commit that a revision was when it was fetched, or itself where it was not."""
    found = try_to_load_from_cache(base, "config.json", revision=revision)
    return Path(found).parent.name if isinstance(found, str) else revision
