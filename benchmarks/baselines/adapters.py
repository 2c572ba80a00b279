"""Adapters of PEFT's own kinds, trained with the same loop as the fine-tuning baselines."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftConfig, get_peft_model
from torch import nn

from peft_surgical.architectures import architecture_of

from .fitting import fit
from .method import Request
from .restoring import adapters_taken_off


@contextmanager
def adapted(
    model: Any,
    tokenizer: Any,
    request: Request,
    config: PeftConfig,
    learning_rate: float,
    seed: int,
    train: Callable[[Any, Any, Request, list[nn.Parameter], float], Any] = fit,
) -> Iterator[None]:
    """Puts an adapter on a model and trains it; takes it off afterwards."""
    with adapters_taken_off(model):
        devices = [model.device] if model.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            peft_model = get_peft_model(model, config).eval()
        trained = [parameter for parameter in peft_model.parameters() if parameter.requires_grad]
        train(model, tokenizer, request, trained, learning_rate)
        yield


def module_names(model: Any, kinds: tuple[str, ...], layers: Sequence[int] | None = None) -> list[str]:
    """Full names of the modules of some kinds, in all layers or some.

    Args:
        model: A model of a known architecture.
        kinds: Fields of [`~peft_surgical.Architecture`]; one that this architecture has fused into another stands for
            that other one.
        layers: Which layers; those beyond the last are left out.
    """
    architecture = architecture_of(model.config.model_type)
    fused = {"q": architecture.qkv, "k": architecture.qkv, "v": architecture.qkv}
    fused |= {"gate": architecture.gate_up, "up": architecture.gate_up}
    found = dict.fromkeys(getattr(architecture, kind) or fused.get(kind) for kind in kinds)
    count = model.config.num_hidden_layers
    return [
        f"{architecture.layers}.{layer}.{module}"
        for layer in (range(count) if layers is None else layers)
        if layer < count
        for module in found
        if module is not None
    ]
