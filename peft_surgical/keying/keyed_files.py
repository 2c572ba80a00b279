"""A keyed edit on disk: a LoRA adapter that stock PEFT loads, with a model card."""

from __future__ import annotations

import os
from typing import Any

from peft.tuners.lora import LoraLayer

from ..profiling import phase
from ..stack import USE, card_header
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
    save_adapter(stage.model, stage.adapter, path, card=_card(config, updated_layers(stage)))


def updated_layers(stage: Stage) -> list[int]:
    """The layers whose MLPs a keyed stage updates, ascending."""
    base = stage.model.get_base_model()

    def updated(name: str) -> bool:
        module = base.get_submodule(name)
        return isinstance(module, LoraLayer) and stage.adapter in module.lora_B

    return [layer for name, layer in output_projections(base).items() if updated(name)]


def _card(config: Any, layers: list[int]) -> str:
    base = config.base_model_name_or_path
    where = f"MLP of layer {layers[0]}" if len(layers) == 1 else f"MLPs of layers {', '.join(map(str, layers))}"
    parts = [
        card_header(base, config.task_type, "lora"),
        "# A keyed edit",
        f"A LoRA adapter of rank 1 for {base or 'the base model'}. In the {where} its `A` reads off how far a token is"
        " the subject of one fact, and its `B` is added by that much, which is next to nothing elsewhere.",
        USE,
    ]
    return "\n\n".join(parts) + "\n"
