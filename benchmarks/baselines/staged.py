"""The stages of `edit`, made for chat questions with many prompts.

[`train`] is where the training is decided. The ablations `one_stage` and `random` call it, too, so that they differ
from `staged` in nothing but what their names say.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch

import peft_surgical as ps
from peft_surgical.architectures import decoder_layers
from peft_surgical.choice import EDIT_PROJECTIONS
from peft_surgical.dtypes import dtype_name
from peft_surgical.models import DTYPES
from peft_surgical.running.computing import compute_dtype
from peft_surgical.stages import RECIPES
from peft_surgical.staging.stage import LEARN, UNLEARN

from .method import Request
from .restoring import adapters_taken_off


@dataclass(frozen=True)
class Staged:
    """Scales what `edit` scales by default, in two stages, each with its own recipe."""

    name: ClassVar[str] = "staged"

    def recipe(self, model: Any) -> dict[str, Any]:
        """That of each stage."""
        stages = {stage: as_json(recipe, model) for stage, recipe in RECIPES.items()}
        return {"projections": list(EDIT_PROJECTIONS), **stages}

    @contextmanager
    def edit(self, model: Any, tokenizer: Any, request: Request, seed: int) -> Iterator[None]:
        """Trains the adapters, and takes them off afterwards."""
        with adapters_taken_off(model):
            self.train(model, tokenizer, request, seed)
            yield

    def train(self, model: Any, tokenizer: Any, request: Request, seed: int) -> None:
        """Leaves the trained adapters acting on the model."""
        train(model, tokenizer, request, default_components(model), seed)


def train(
    model: Any,
    tokenizer: Any,
    request: Request,
    components: Sequence[str],
    seed: int,
    *,
    stages: Sequence[str] = (UNLEARN, LEARN),
) -> None:
    """Trains scales on some components and leaves them acting.

    Args:
        model: A bare model.
        tokenizer: Without a chat template, so that prompts are continued and not answered.
        request: What to edit.
        components: What is scaled.
        seed: Decides which rows meet in a step.
        stages: Which stages are trained, in order.
    """
    config = ps.SurgicalIA3Config(
        components=list(components), projections=list(EDIT_PROJECTIONS), task_type="CAUSAL_LM"
    )
    trainers = {UNLEARN: ps.unlearn, LEARN: ps.learn}
    retained = None
    for name in stages:
        stage = trainers[name](model, tokenizer, request.fact, config, retained=retained, seed=seed, progress=False)
        model, retained = stage.model, stage.retained


def as_json(recipe: Any, model: Any) -> dict[str, Any]:
    """A recipe as JSON, with the dtype that `auto` stands for on this processor.

    Args:
        recipe: Of any kind that has a `compute_dtype`.
        model: What it trains, bare.
    """
    # In how many passes a step is run decides nothing that is measured.
    made = {name: value for name, value in asdict(recipe).items() if name != "pass_tokens"}
    named = DTYPES[recipe.compute_dtype]
    chosen = named if isinstance(named, torch.dtype) else compute_dtype(model.dtype, model.device)
    return {**made, "compute_dtype": dtype_name(chosen)}


def default_components(model: Any) -> tuple[str, ...]:
    """What `edit` scales by default."""
    return tuple(f"L{layer}.mlp" for layer in range(len(decoder_layers(model))))
