"""Where a model takes its token ids, even if some of its weights are offloaded."""

from __future__ import annotations

from typing import Any

import torch

from ..errors import ModelError
from ..tuner.offloading import execution_device


def input_device(model: Any) -> torch.device:
    """The device of what embeds token ids; of an offloaded one, that which its weights are brought to.

    Raises:
        ModelError: If its weights are nowhere.
    """
    embedding = model.get_input_embeddings()
    device: torch.device = embedding.weight.device
    if device.type != "meta":
        return device
    brought_to = execution_device(embedding)
    if brought_to is None:
        raise ModelError("the model's input embedding has no weights at hand: they are on the meta device.")
    return brought_to
