"""Surgical adapters for tiny models, with scales that matter."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import AdaptionPromptConfig, PeftConfig, PeftModel, PromptTuningConfig, get_peft_model
from torch import nn

from peft_surgical.tuner import SurgicalIA3Config, SurgicalIA3Layer, SurgicalIA3Model
from tests.tiny import tiny_ids, tiny_model

COMPONENTS = ("L0.head.1", "L1.mlp", "L2.head.3")
OTHER_COMPONENTS = ("L1.head.0", "L1.mlp", "L2.mlp")


def perturb(model: nn.Module, adapter: str = "default", seed: int = 0, spread: float = 0.4) -> None:
    """Gives an adapter random scales in 1 ± spread."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, SurgicalIA3Layer) and adapter in module.coordinates:
            delta = module.surgical_ia3_delta[adapter].data
            delta.copy_((torch.rand(delta.shape, generator=generator) * 2 - 1) * spread)


def tiny_peft(
    family: str = "llama",
    components: Sequence[str] = COMPONENTS,
    adapter: str = "default",
    dtype: torch.dtype = torch.float32,
    perturbed: bool = True,
    **config: Any,
) -> PeftModel:
    """A tiny model with one surgical adapter on it."""
    model = get_peft_model(
        tiny_model(family, dtype=dtype), SurgicalIA3Config(components=list(components), **config), adapter
    ).eval()
    if perturbed:
        perturb(model, adapter)
    return model


def add(
    model: PeftModel, adapter: str, components: Sequence[str] = OTHER_COMPONENTS, seed: int = 1, **config: Any
) -> None:
    """Adds a second adapter, with scales that matter."""
    model.add_adapter(adapter, SurgicalIA3Config(components=list(components), **config))
    perturb(model, adapter, seed)


@torch.no_grad()
def logits(model: nn.Module, ids: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor:
    """The model's logits on fixed ids."""
    return model(tiny_ids() if ids is None else ids, **kwargs).logits


def prompted(kind: str, **config: Any) -> PeftModel:
    """A tiny model with an adapter named `tokens`, which stand before each row or in the last two attentions."""
    own: PeftConfig = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, **config)
    if kind == "in attention":
        own = AdaptionPromptConfig(task_type="CAUSAL_LM", adapter_len=3, adapter_layers=2)
        own.modules_to_save = config.get("modules_to_save")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = get_peft_model(tiny_model("llama"), own, "tokens").eval()
        for name, parameter in model.named_parameters():
            if "adaption_gate" in name or "modules_to_save" in name:
                parameter.data.add_(torch.randn_like(parameter) * 0.3)
    return model


def saved(model: PeftModel, path: Path, adapter: str = "default") -> Path:
    """Saves one adapter and returns its folder."""
    model.save_pretrained(path, selected_adapters=[adapter])
    return path if adapter == "default" else path / adapter


def deltas(model: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of all adapter parameters by name."""
    return {n: p.detach().clone() for n, p in model.named_parameters() if "surgical_ia3_delta" in n}


def trainable(model: nn.Module) -> set[str]:
    """Names of the adapters whose parameters get gradients."""
    return {n.rsplit(".", 1)[-1] for n, p in model.named_parameters() if p.requires_grad}


def loss(model: nn.Module, tokenizer: Any, prompt: str, word: str) -> float:
    """How unlikely a word is after a prompt, nats."""
    row = tokenizer(prompt)["input_ids"]
    with torch.no_grad():
        found = model(input_ids=torch.tensor([row])).logits[0, -1].log_softmax(-1)
    return -float(found[tokenizer.convert_tokens_to_ids(word)])


def failing_at(monkeypatch: Any, place: int, what: type[BaseException]) -> None:
    """Putting an adapter on a model fails at one of its modules, the first of which is number 0."""
    put_in, count = SurgicalIA3Model._create_and_replace, 0

    def fail(*args: Any, **kwargs: Any) -> None:
        nonlocal count
        if count == place:
            raise what
        count += 1
        put_in(*args, **kwargs)

    monkeypatch.setattr(SurgicalIA3Model, "_create_and_replace", fail)
