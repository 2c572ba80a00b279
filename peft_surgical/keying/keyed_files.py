"""A keyed edit on disk: a LoRA adapter that stock PEFT loads, with a model card."""

from __future__ import annotations

import os
from typing import Any

from peft.tuners.lora import LoraLayer

from ..adapters.bases import hub_id
from ..adapters.cards import card_header, card_use
from ..profiling import phase
from ..stages import Stage
from ..tuner.saving import save_adapter
from .keys import output_projections


@phase("save")
def save_keyed(stage: Stage, path: str | os.PathLike[str]) -> None:
    """Saves the adapter of a keyed stage straight into `path`, with a card that says what it does.

    Args:
        stage: From [`learn_keyed`] or [`learn_keyed_by_subject`].
        path: The folder.

    Raises:
        OutputError: If it is not empty or cannot be written.
    """
    config = stage.model.peft_config[stage.adapter]
    save_adapter(stage.model, stage.adapter, path, card=_card(config, updated_layers(stage), _has_neurons(stage)))


def updated_layers(stage: Stage) -> list[int]:
    """The layers whose MLPs a keyed stage updates, ascending."""
    base = stage.model.get_base_model()

    def updated(name: str) -> bool:
        module = base.get_submodule(name)
        return isinstance(module, LoraLayer) and stage.adapter in module.lora_B

    return [layer for name, layer in output_projections(base).items() if updated(name)]


def _has_neurons(stage: Stage) -> bool:
    """Whether it is not only what the MLPs write that is changed."""
    base = stage.model.get_base_model()
    outputs = output_projections(base)
    return any(
        isinstance(module, LoraLayer) and stage.adapter in module.lora_B and name not in outputs
        for name, module in base.named_modules()
    )


def _card(config: Any, layers: list[int], neurons: bool) -> str:
    base = config.base_model_name_or_path
    where = f"MLP of layer {layers[0]}" if len(layers) == 1 else f"MLPs of layers {', '.join(map(str, layers))}"
    what = (
        f"It rewrites one neuron in the {where}, so that it fires at the tokens that name the subject of one fact, and"
        " next to nowhere else: on the input projections it holds the difference of a row, on the output projection"
        " that of a column."
        if neurons
        else f"In the {where} its `A` reads off how far a token is the subject of one fact, and its `B` is added by"
        " that much, which is next to nothing elsewhere."
    )
    rank = max([config.r, *config.rank_pattern.values()])
    parts = [
        card_header(base, config.task_type, "lora"),
        "# A keyed edit",
        f"A LoRA adapter of rank {rank} for {hub_id(base) or 'the base model'}. {what}",
        card_use(base),
    ]
    return "\n\n".join(parts) + "\n"
