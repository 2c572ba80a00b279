"""Models with weights that are offloaded to memory, as accelerate does for a `device_map`."""

from collections.abc import Sequence

import torch
from accelerate.hooks import attach_align_device_hook
from transformers import PreTrainedModel


def offloaded(model: PreTrainedModel, names: Sequence[str]) -> PreTrainedModel:
    """Offloads some modules of a model, which come to the processor for each pass."""
    for name in names:
        module = model.get_submodule(name)
        weights = {key: value.clone() for key, value in module.state_dict().items()}
        attach_align_device_hook(module, execution_device=torch.device("cpu"), offload=True, weights_map=weights)
        assert all(parameter.is_meta for parameter in module.parameters())
    return model
