"""What a stage of an edit is: an adapter put in place, and what training made of it."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from peft import PeftModel, get_peft_model

from ..adapters.bases import hub_id, revision_of
from ..adapters.cards import card_below, card_header, card_scales, card_use
from ..adapters.edits import Edit
from ..adapters.lineage import after
from ..adapters.saving import digest_to_save, save_adapter
from ..errors import AdapterError, brief
from ..profiling import phase
from ..tuner import SurgicalIA3Config
from ..tuner.unchanged import embeddings_unhooked
from .placeable import check_at_hand, check_below_head, check_free
from .recipe import TrainingRecord
from .retained import Retained

UNLEARN, LEARN = "unlearn", "learn"


@dataclass(frozen=True, eq=False)
class Stage:
    """A trained stage.

    Attributes:
        model: The PEFT model with this stage's adapter active, and those before it.
        adapter: This stage's adapter name.
        record: What training reached.
        retained: What training kept; pass it to the next stage, which then need not work it out again. None after
            [`learn_keyed`], as what that holds to serves no other stage, and where nothing was held to the base's.
        before: The adapters that acted while it was trained, in their order; without them it is not what was trained.
        answer: What it taught.
        on: The names and digests of earlier edits that were in the weights while it was trained, see
            `Lineage.acting`; without them it is not what was trained either.
    """

    model: PeftModel
    adapter: str
    record: TrainingRecord
    retained: Retained | None
    before: tuple[str, ...] = ()
    answer: str = ""
    on: tuple[tuple[str, str | None], ...] = ()

    def __repr__(self) -> str:
        # A prompt shows what a call returned, and a model's modules and thousands of rows say nothing there.
        base, record = type(self.model.get_base_model()).__name__, self.record
        return f"{type(self).__name__}({self.adapter!r} of a {base}, {record.steps} steps, loss {record.loss:.3g})"

    @phase("save")
    def save(self, path: str | os.PathLike[str]) -> None:
        """Saves this stage's adapter, and only it, as PEFT saves an adapter, directly into `path`, with its [`card`].

        Args:
            path: The folder; it appears whole or not at all.

        Raises:
            AdapterError: If the model was merged or unloaded, and holds the adapter no more.
            OutputError: If it holds something or cannot be written.
        """
        below = [*self.on, *((adapter, digest_to_save(self.model, adapter)) for adapter in self.before)]
        notes = after([name for name, _ in below], [digest for _, digest in below])
        save_adapter(self.model, self.adapter, path, card=self.card(), notes=notes)

    def card(self) -> str:
        """The README of its folder: what it scales, and how it is loaded with the stages before it."""
        edit: Edit = self.model.base_model.edit(self.adapter)
        base, stages = hub_id(edit.base_model) or "the base model", [*self.before, self.adapter]
        parts = [
            card_header(edit.base_model, edit.task_type, "surgical-ia3"),
            f"# One stage of a surgical edit: {self.adapter}",
            f"A surgical (IA)³ adapter for {base} that multiplies {edit.n_scales} coordinates of {len(edit.modules)}"
            f" modules, as it was trained{' on top of ' + ' and '.join(self.before) if self.before else ''}."
            " `peft-surgical stack` makes one plain (IA)³ adapter of all stages, which loads without this package.",
            *card_below([name for name, _ in self.on]),
            card_scales(edit),
            card_use(edit.base_model, stages, edit.revision),
        ]
        return "\n\n".join(parts) + "\n"

    def to_dict(self) -> dict[str, Any]:
        """What training reached and taught, as JSON."""
        # JSON has no infinity, and that is the loss of no prompt seen.
        infinite = {key: None for key in ("loss", "worst") if math.isinf(getattr(self.record, key))}
        return {**asdict(self.record), **infinite, "answer": self.answer}


def check_config(config: object) -> None:
    """Refuses what is no configuration of a stage, such as one of PEFT's own adapters.

    Raises:
        AdapterError: If it is neither a `SurgicalIA3Config` nor None.
    """
    if not isinstance(config, SurgicalIA3Config | None):
        raise AdapterError(f"a stage's config must be a SurgicalIA3Config, not {brief(config)}.")


def place_adapter(model: Any, name: str, config: SurgicalIA3Config | None, active: Sequence[str]) -> PeftModel:
    """Puts a stage's adapter on a bare model, or beside the surgical adapters that it has.

    Args:
        model: The model; becomes part of what is returned.
        name: The adapter's.
        config: What it scales; that of the last of `active` when None.
        active: The adapters that act.

    Raises:
        AdapterError: If `config` is of another kind, the name is taken, the model has adapters of another kind, there
            is no config, or it saves whole modules.
        SelectionError: If it would scale the output head.
        ModelError: If weights that it would scale are offloaded.
    """
    check_config(config)
    check_free(model, [name])
    if isinstance(model, PeftModel):
        others = [c for c in model.peft_config.values() if not isinstance(c, SurgicalIA3Config)]
        if others:
            raise AdapterError(
                f"a stage trains on surgical adapters, and the model has one of type {others[0].peft_type};"
                " merge it first."
            )
        if config is None and active:
            config = model.peft_config[active[-1]]
    if config is None:
        raise AdapterError(f"{name} needs a config, since the model has no active adapter to take one from.")
    # A copy of its own, since PEFT writes into the configuration that it is given.
    own = copy.deepcopy(config)
    if own.modules_to_save:
        raise AdapterError("a stage trains scales only, so leave modules_to_save out of its configuration.")
    own.inference_mode = False
    # What a stage keeps is measured where it begins, which is to be the base.
    own.init_weights = True
    own.revision = own.revision or revision_of(model)
    own.resolve(model.config)
    check_below_head(model, own.selections or {})
    check_at_hand(model, own.selections or {})
    if isinstance(model, PeftModel):
        # `get_peft_model` notes the base in a configuration, and `add_adapter` does not.
        own.base_model_name_or_path = own.base_model_name_or_path or (
            getattr(model.get_base_model(), "name_or_path", None) or None
        )
        model.add_adapter(name, own)
        return model
    with embeddings_unhooked(model):
        return get_peft_model(model, own, adapter_name=name)
