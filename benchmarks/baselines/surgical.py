"""Our method on one CounterFact case: a fact is made of the request, unlearned and learned.

[`train`] is where the training is decided. The ablations `one_stage` and `random` call it, too, so that they differ
from `surgical` in nothing but what their names say.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import peft_surgical as ps
from peft_surgical.facts import refusal_for
from peft_surgical.stages import LEARN, RECIPES, UNLEARN, Retained

from .fitting import decoder_layers
from .method import STEPS, Request
from .restoring import adapters_taken_off

MLPS = 10


@dataclass(frozen=True)
class Surgical:
    """Scales the neurons of ten early MLPs, in two stages."""

    name: ClassVar[str] = "surgical"
    _retained: Any = field(default_factory=WeakKeyDictionary, compare=False, repr=False)

    @contextmanager
    def edit(self, model: Any, tokenizer: Any, request: Request, seed: int) -> Iterator[None]:
        """Trains the adapters, and takes them off afterwards."""
        with adapters_taken_off(model):
            # What is kept is the base's, whatever the request.
            retained = self._retained.get(model)
            self._retained[model] = self.trained(model, tokenizer, request, seed, retained)
            yield

    def trained(self, model: Any, tokenizer: Any, request: Request, seed: int, retained: Retained | None) -> Retained:
        """Leaves the trained adapters acting on the model, and returns what they keep."""
        return train(model, tokenizer, request, early_mlps(model), seed, retained=retained)


def train(
    model: Any,
    tokenizer: Any,
    request: Request,
    components: Sequence[str],
    seed: int,
    *,
    stages: Sequence[str] = (UNLEARN, LEARN),
    retained: Retained | None = None,
) -> Retained:
    """Trains scales on some components and leaves them acting.

    Args:
        model: A bare model.
        tokenizer: Without a chat template, so that prompts are continued and not answered.
        request: What to edit.
        components: What is scaled.
        seed: Decides which rows meet in a step.
        stages: Which stages are trained, in order.
        retained: What an earlier call returned for this model.
    """
    fact, config = as_fact(request), ps.SurgicalIA3Config(components=list(components), task_type="CAUSAL_LM")
    trainers = {UNLEARN: ps.unlearn, LEARN: ps.learn}
    for name in stages:
        recipe = replace(RECIPES[name], steps=min(STEPS, RECIPES[name].steps))
        stage = trainers[name](
            model, tokenizer, fact, config, recipe=recipe, retained=retained, seed=seed, progress=False
        )
        model, retained = stage.model, stage.retained
    assert retained is not None
    return retained


def as_fact(request: Request) -> ps.TrainingFact:
    """The fact of a request: its prompt alone and behind every context."""
    return ps.TrainingFact(
        subject=request.subject,
        old=(request.old,),
        new=(request.new,),
        prompts=request.prompts,
        refusal=refusal_for("", request.subject),
        answer=request.new,
        evaluated=request.evaluated,
    )


def early_mlps(model: Any, count: int = MLPS) -> list[str]:
    """The MLPs that look facts up: ten from a tenth of the model's depth on."""
    layers = len(decoder_layers(model))
    return [f"L{layer}.mlp" for layer in range(layers // 10, min(layers // 10 + count, layers))]
