"""A keyed edit, trained: a stage whose adapter is LoRA, which stock PEFT loads from where it is saved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from peft.tuners.lora import LoraLayer

from ..adapters.bases import hub_id
from ..adapters.cards import card_below, card_header, card_use
from ..adapters.saving import nothing_left
from ..architectures import output_projections
from ..staging.stage import Stage
from ..tuner.names import check_known


@dataclass(frozen=True, eq=False, repr=False)
class KeyedStage(Stage):
    """What [`learn_keyed`] and [`learn_keyed_by_subject`] return.

    Attributes:
        names: Those of the subject, where the neurons fire.
    """

    names: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """What training reached and taught, and by which names, as JSON."""
        return {**super().to_dict(), "names": list(self.names)}

    @property
    def layers(self) -> list[int]:
        """The layers whose MLPs it updates, ascending.

        Raises:
            AdapterError: If the model holds the adapter no more.
        """
        check_known([self.adapter], self.model.peft_config)
        base = self.model.get_base_model()
        updated = {
            name
            for name, module in base.named_modules()
            if isinstance(module, LoraLayer) and self.adapter in module.lora_B
        }
        if not updated:
            raise nothing_left(self.adapter)
        return [layer for name, layer in output_projections(base).items() if name in updated]

    def card(self) -> str:
        """The README of its folder: what it adds, and where."""
        layers, config = self.layers, self.model.peft_config[self.adapter]
        base = config.base_model_name_or_path
        where = f"MLP of layer {layers[0]}" if len(layers) == 1 else f"MLPs of layers {', '.join(map(str, layers))}"
        what = (
            f"It rewrites one neuron in the {where}, so that it fires at the tokens that name the subject of one fact,"
            " and next to nowhere else: on the input projections it holds the difference of a row, on the output"
            " projection that of a column."
        )
        rank = max([config.r, *config.rank_pattern.values()])
        parts = [
            card_header(base, config.task_type, "lora"),
            "# A keyed edit",
            f"A LoRA adapter of rank {rank} for {hub_id(base) or 'the base model'}. {what}",
            *card_below([name for name, _ in self.on]),
            card_use(base, revision=config.revision),
        ]
        return "\n\n".join(parts) + "\n"
