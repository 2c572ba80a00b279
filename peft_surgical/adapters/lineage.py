"""What a saved adapter was trained on top of, and which adapters one was made of.

Both stand in the metadata of its weights, which other readers pass over, and go with an edit in memory, so that half
an edit, or one that acts twice, is told of where adapters are put together.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ..errors import AdapterError
from .scale_files import DIGEST, OWN, WEIGHTS, digest_of

AFTER, BELOW, PARTS = f"{OWN}after", f"{OWN}below", f"{OWN}parts"
MADE, ALTERED = f"{OWN}made", f"{OWN}altered"


@dataclass(frozen=True)
class Lineage:
    """What an adapter says of where it comes from.

    Attributes:
        digest: That of its tensors' names, shapes and values on disk; None where they cannot be read, or are not on
            disk.
        after: The names of the adapters that acted while it was trained, in their order.
        parts: The digests of the adapters that it was made of, and of theirs.
        below: The digest of each of `after`; empty where one of them is not known.
        made: Those of `parts` that were made of others of them.
        altered: Those of `parts` that act in it at another strength only.
    """

    digest: str | None = None
    after: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    below: tuple[str, ...] = ()
    made: tuple[str, ...] = ()
    altered: tuple[str, ...] = ()

    @classmethod
    def of(cls, folder: str | os.PathLike[str]) -> Lineage:
        """What an adapter's folder says; nothing where it cannot be read, of which who reads the weights tells."""
        try:
            with safe_open(Path(folder) / WEIGHTS, "pt") as file:
                notes = file.metadata() or {}
                # Other programs write none.
                if (digest := notes.get(DIGEST)) is None:
                    digest = digest_of({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118
        except (OSError, SafetensorError, KeyError, ValueError, TypeError, RuntimeError):
            return cls()
        found = {key: _names(notes.get(key)) for key in (AFTER, BELOW, PARTS, MADE, ALTERED)}
        below = found[BELOW] if len(found[BELOW]) == len(found[AFTER]) else ()
        return cls(digest, found[AFTER], found[PARTS], below, found[MADE], found[ALTERED])

    @classmethod
    def of_product(cls, factors: Sequence[Lineage]) -> Lineage:
        """That of the product of adapters, in their order: it was trained on top of what does not stand among them."""
        lacking = [one for place, factor in enumerate(factors) for one in factor.lacks(factors[:place])]
        after, below = zip(*dict.fromkeys(lacking), strict=True) if lacking else ((), ())
        parts = dict.fromkeys(digest for factor in factors for digest in factor.held)
        made = dict.fromkeys(digest for factor in factors for digest in factor._products)
        whole = {digest for factor in factors for digest in factor.whole}
        altered = tuple(digest for digest in parts if digest not in whole)
        return cls(None, after, tuple(parts), () if None in below else below, tuple(made), altered)

    @property
    def held(self) -> tuple[str, ...]:
        """The digests of all that acts in it."""
        return self.parts if self.digest is None else (self.digest, *self.parts)

    @property
    def whole(self) -> tuple[str, ...]:
        """The digests of all that acts in it as it is, and not at another strength."""
        return tuple(digest for digest in self.held if digest == self.digest or digest not in self.altered)

    @property
    def _leaves(self) -> tuple[str, ...]:
        """The digests of those that it comes down to: any way of giving these is the same."""
        return tuple(part for part in self.parts if part not in self.made and part not in self.altered)

    @property
    def _products(self) -> tuple[str, ...]:
        """The digests of those in it, and its own, that others stand for."""
        return (self.digest, *self.made) if self.digest is not None and self._leaves else self.made

    def acting(self, name: str) -> tuple[tuple[str, str | None], ...]:
        """What is noted of it by an adapter that is trained on top of it.

        Of one that was made of others it is these that act, be they given as one, in groups or one by one. At another
        strength it is none of them.

        Args:
            name: What it is called.
        """
        return tuple((name, digest) for digest in self._leaves or (self.digest,))

    def changed(self) -> Lineage:
        """That of an adapter that was made of this one and does the same."""
        return replace(self, digest=None, parts=self.held, made=self._products)

    def dialled(self, t: float) -> Lineage:
        """That of this adapter at another strength.

        What is taken back, or not there, neither acts twice nor needs anything below it. Any other strength than 1
        acts twice beside the whole, and does not stand for it below another adapter.

        Args:
            t: The strength.
        """
        if t <= 0:
            return Lineage()
        same = self.changed()
        return same if t == 1 else replace(same, altered=same.parts)

    def without(self, other: Lineage) -> Lineage:
        """That of what is left when another adapter is taken back."""
        return replace(self, parts=tuple(digest for digest in self.parts if digest not in other.held))

    def lacks(self, below: Sequence[Lineage]) -> list[tuple[str, str | None]]:
        """The names and digests of the adapters that it was trained on top of and that do not act below it.

        Where their digests are not known, any others may be them, if there are as many.
        """
        if not self.below:
            return [(name, None) for name in self.after] if len(self.after) > len(below) else []
        acting = {digest for lineage in below for digest in lineage.whole}
        return [pair for pair in zip(self.after, self.below, strict=True) if pair[1] not in acting]

    def notes(self, digest: str) -> dict[str, str]:
        """The metadata of its weights.

        Args:
            digest: Of the tensors that are written; other ones than it came from where its kind or scales changed.
        """
        # A part of a part acts in it, too.
        parts = [part for part in self.held if part != digest]
        listed = {PARTS: parts}
        listed |= {MADE: [part for part in parts if part in self._products]}
        listed |= {ALTERED: [part for part in parts if part in self.altered]}
        return after(self.after, self.below) | {key: json.dumps(found) for key, found in listed.items() if found}


def after(names: Sequence[str], digests: Sequence[str | None] = ()) -> dict[str, str]:
    """The metadata of an adapter that was trained on top of others, by their names and, if all are known, digests."""
    known = {BELOW: json.dumps(list(digests))} if digests and None not in digests else {}
    return {AFTER: json.dumps(list(names)), **known} if names else {}


def called(folder: str | os.PathLike[str]) -> str:
    """A folder's name with that of the edit it is in, which is enough to tell it by and says nothing of a machine.

    One that is in the home folder goes by its own name, as that one's is somebody's.

    Args:
        folder: An adapter's.
    """
    path = Path(os.path.abspath(os.path.expanduser(folder)))
    return path.name if path.parent == Path(os.path.expanduser("~")) else "/".join(path.parts[1:][-2:])


def identities(folders: Sequence[Path]) -> list[dict[str, str | None]]:
    """Each adapter's folder, what it is called, and the SHA-256 of its tensors, by which a report can tell what was
    measured, and whether a checkpoint has it in its weights."""
    return [{"folder": str(folder), "name": called(folder), "sha256": Lineage.of(folder).digest} for folder in folders]


def check_once(folders: Sequence[Path]) -> None:
    """Refuses an adapter that is given twice, by whatever path.

    Raises:
        AdapterError: For the first such folder.
    """
    seen: set[Path] = set()
    for folder in folders:
        if folder.resolve() in seen:
            raise AdapterError(f"the adapter {folder} is given twice; it would act twice.")
        seen.add(folder.resolve())


@dataclass(frozen=True)
class Fault:
    """What is only half of an edit, or acts twice, when adapters act together.

    Attributes:
        what: Said of it, without a full stop.
        unless: What would make up for it; empty where nothing does.
    """

    what: str
    unless: str = ""

    def __str__(self) -> str:
        return f"{self.what}, {self.unless}." if self.unless else f"{self.what}."


def warn_of_lineage(adapters: Sequence[Any], below: Sequence[Lineage] = (), stacklevel: int = 3) -> None:
    """Warns of what is only half of an edit, or acts twice, when adapters act together.

    Args:
        adapters: As for [`faults_of_lineage`].
        below: As for [`faults_of_lineage`].
        stacklevel: Whose line the warnings name, as `warnings.warn` counts them from here.

    Warns:
        UserWarning: For each of [`faults_of_lineage`].
    """
    for fault in faults_of_lineage(adapters, below):
        warnings.warn(str(fault), stacklevel=stacklevel)


def faults_of_lineage(adapters: Sequence[Any], below: Sequence[Lineage] = ()) -> list[Fault]:
    """What is only half of an edit, or acts twice, when adapters act together.

    Args:
        adapters: Folders, or what was read from them, in their order.
        below: What acts below all of them, as it is in the weights already.

    Returns:
        A fault for each that is given twice or is in the weights already, for each that was trained on top of others
        that do not stand before it, and for each that another was made of.
    """
    found = []
    said = [_told(adapter) for adapter in adapters]
    lineages = [lineage for _, lineage in said]
    folded = {digest for lineage in below for digest in lineage.held}
    for name, lineage in said:
        if lineage.digest in folded:
            found.append(Fault(f"{name} is in the model's weights already, and then acts twice"))
        elif not folded.isdisjoint(lineage.held):
            found.append(Fault(f"{name} holds what is in the model's weights already, which then acts twice"))
    for place, (name, lineage) in enumerate(said):
        if lineage.digest is not None and lineage.digest in [held.digest for held in lineages[:place]]:
            found.append(Fault(f"{name} is given twice, and then acts twice"))
    for place, (name, lineage) in enumerate(said):
        if lacking := dict.fromkeys(lacked for lacked, _ in lineage.lacks([*below, *lineages[:place]])):
            what = f"{name} was trained on top of {' and '.join(lacking)}; give that before it"
            found.append(Fault(what, "unless the model has it already"))
        for other, held in said:
            if lineage.digest is not None and lineage.digest in held.parts and held.digest != lineage.digest:
                held_name = name.removeprefix("the adapter ")
                found.append(Fault(f"{other} holds {held_name} already, which then acts twice"))
    return found


def _told(adapter: Any) -> tuple[str, Lineage]:
    """What an adapter is called, and what it says of where it comes from."""
    if isinstance(adapter, str | os.PathLike):
        return f"the adapter {os.fspath(adapter)}", Lineage.of(adapter)
    named = adapter.name.startswith("the ")
    return adapter.name if named else f"the adapter {adapter.name}", adapter.origin()


def _names(text: str | None) -> tuple[str, ...]:
    try:
        names = json.loads(text or "[]")
    except ValueError:
        return ()
    return tuple(map(str, names)) if isinstance(names, list) else ()
