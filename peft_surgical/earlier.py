"""Earlier edits, in the weights of a model for as long as another one is made on top of them.

They are folded in as a merge would fold them, so that all that is localized, trained, kept and measured meanwhile is
of the model that has them, and the weights come back bit for bit. What is made is an adapter for the base as it was,
and notes what it was trained on top of.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from .adapters.bases import same_model, warn_of_another_base
from .adapters.edits import Edit, several
from .adapters.lineage import Lineage, called, check_once, faults_of_lineage, identities
from .adapters.low_rank import LowRank
from .adapters.mergeable import read_mergeable
from .adapters.merged_edits import edits_in, lineages_of
from .errors import AdapterError, brief
from .folding import check_rewritable, folded_apart, modules_of, steps_of, tensors_of
from .measuring.states import restored, writing
from .tuner.fold import Rounding
from .tuner.unchanged import trainable_kept
from .tuner.unloading import unload
from .writing.inputs import check_inputs_stay


@dataclass(frozen=True)
class Earlier:
    """Earlier edits, read.

    Attributes:
        folders: Their folders, in the order in which they were trained.
        adapters: What they hold, one each.
        steps: What folding them in comes to.
        below: What an edit on top of them notes of them.
    """

    folders: tuple[Path, ...] = ()
    adapters: tuple[Edit | LowRank, ...] = ()
    steps: tuple[Edit | LowRank, ...] = ()
    below: tuple[tuple[str, str | None], ...] = ()

    @classmethod
    def read(cls, given: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> Earlier:
        """Reads adapter folders, of which no model is needed.

        Args:
            given: A folder or several, in the order in which they were trained; none is no edit.

        Raises:
            AdapterError: If one is missing or damaged, is given twice or is of a kind that is not folded, or they were
                made for different base models.
        """
        listed: list[str | os.PathLike[str]] = several(given)
        folders = [_folder(one) for one in listed]
        if not folders:
            return cls()
        check_once(folders)
        adapters = [read_mergeable(folder) for folder in folders]
        below = [pair for folder in folders for pair in Lineage.of(folder).acting(called(folder))]
        return cls(tuple(folders), tuple(adapters), tuple(steps_of(adapters)), tuple(dict.fromkeys(below)))

    def check_base(self, model_name: str | None) -> None:
        """Refuses edits that were made for another base than the one of a name.

        Raises:
            AdapterError: If the names are known and cannot be those of one model.
        """
        for adapter in self.adapters:
            if model_name and adapter.base_model and not same_model(model_name, adapter.base_model):
                raise AdapterError(
                    f"the adapter {adapter.name} was made for {brief(adapter.base_model)}, and this model is"
                    f" {brief(model_name)}; edit on top of one that was made for it."
                )

    def check_lineage(self, model: Any) -> None:
        """Refuses what is only half of an edit, or acts twice, with what the model says of the edits in its weights.

        Args:
            model: The model, or anything with its name and revision.

        Raises:
            AdapterError: If one of them is in the weights already, was trained on top of another one that neither is
                nor stands before it, or was made of another one.
        """
        # What two adapters on a model may make up for between them is half an edit here, in every figure.
        if faults := faults_of_lineage(self.folders, lineages_of(edits_in(model))):
            raise AdapterError(f"{faults[0].what}.")

    def check_stay(self, out: str | os.PathLike[str], written: Sequence[str]) -> None:
        """Refuses an output folder in which the new edit would take the place of one of these.

        Args:
            out: The folder.
            written: The names of what is written into it.

        Raises:
            OutputError: If it is one.
        """
        for name in written if self.folders else ():
            check_inputs_stay(Path(out) / name, self.folders)

    def check_model(self, model: Any) -> None:
        """Refuses a model that they cannot be folded into, as far as it can be told without doing it.

        Raises:
            ModelError: If it has adapters, or weights that are quantized, offloaded or spread over processes.
            AdapterError: As [`check_base`] and [`check_lineage`].

        Warns:
            UserWarning: If they were made for another revision of it.
        """
        if not self.folders:
            return
        check_rewritable(model, "an edit on top of others", "edit it on top of others")
        self.check_base(getattr(model, "name_or_path", None))
        self.check_lineage(model)
        for adapter in self.adapters:
            warn_of_another_base(model, adapter.name, adapter.base_model, adapter.revision)

    def settings(self, command: str | None) -> dict[str, Any]:
        """What a report records of how it came about: the command, if it is known, and these edits."""
        on = {"on": identities(self.folders)} if self.folders else {}
        return ({"command": command} if command else {}) | on

    @contextmanager
    def folded_into(self, model: Any) -> Iterator[None]:
        """Has them in the weights of a model for the length of a block, which may put adapters on it.

        When it ends, these are off again, and every weight and what trains is as it was. If it raises, the adapters
        are left for [`unchanged_on_failure`].

        Args:
            model: The bare model.

        Raises:
            AdapterError: As [`folded_apart`].
            SelectionError: As [`folded_apart`].

        Warns:
            UserWarning: If the weights' dtype rounds a part of them away.
        """
        if not self.folders:
            yield
            return
        own: dict[str, Tensor] = dict(model.named_parameters())
        weights = {key: own[key] for name in modules_of(self.steps) for key in tensors_of(name) if key in own}
        with trainable_kept(model.parameters()), restored(weights.values()):
            self._write(model, weights).warn(
                model.dtype,
                before="",
                weights=f"the weights that {' and '.join(map(str, self.folders))} should change",
                after=", so that this edit is trained on top of a part of that only; load the model in float32.",
            )
            yield
            unload(model)

    def _write(self, model: Any, weights: Mapping[str, Tensor]) -> Rounding:
        """Writes to the weights, by their keys in the state; tells what rounding kept."""
        kept = []
        with writing(weights.values()):
            # One module at a time: all new weights would take as much room again as those that are kept.
            for found in folded_apart(model, self.steps, model.state_dict(), None):
                for key, (values, rounding) in found.items():
                    weights[key].copy_(values)
                    kept.append(rounding)
        return Rounding.total(kept)


def _folder(given: object) -> Path:
    if not isinstance(given, str | os.PathLike):
        raise AdapterError(f"an edit is made on top of folders of adapters, not of {brief(given)}.")
    return Path(os.path.expanduser(given))
