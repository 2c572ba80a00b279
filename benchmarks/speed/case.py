"""What is measured on: a model, a fact, how much of each, and how a piece of work is timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar

import torch

import peft_surgical as ps
from peft_surgical.choice import EDIT_PROJECTIONS
from peft_surgical.dtypes import dtype_name
from peft_surgical.stages import RECIPES
from peft_surgical.staging.whole_answers import in_sentences_of
from peft_surgical.texts.prompts import EncodedAnswer, encode_answer

from ..baselines.staged import default_components
from ..localization import synchronize
from ..overhead import sharing_copy

Value = TypeVar("Value")


@dataclass(frozen=True)
class Sizes:
    """How much is measured; what is left out is scaled up, and said.

    Attributes:
        stage_steps: Steps that a user gives a stage; the Trainer is stopped there.
        trainer_steps: Trainer steps that its step time is the mean of.
        own_steps: Steps that ours is the mean of.
        repeats: Plain steps, of which the median counts.
        components: How many of the components are run one by one.
        prompts: On how many of the fact's prompts localizations are compared.
        answers: Prompts that the plain evaluation answers, one at a time.
        max_tokens: As for [`~peft_surgical.localize`].
        changed: Fields of our recipes that are other than each recipe's own.
    """

    stage_steps: int = 1000
    trainer_steps: int = 30
    own_steps: int = 6
    repeats: int = 3
    components: int = 24
    prompts: int = 4
    answers: int = 8
    max_tokens: int = 2048
    changed: Mapping[str, Any] = field(default_factory=dict)

    @property
    def recipes(self) -> dict[str, ps.Recipe]:
        """How each of our stages trains."""
        return {stage: replace(own, **self.changed) for stage, own in RECIPES.items()}

    @property
    def keyed_recipe(self) -> ps.KeyedRecipe:
        """How a keyed edit trains."""
        return replace(ps.KeyedRecipe(), **self.changed)


@dataclass
class Case:
    """A model without adapters, a fact and the sizes; and the fact of the edit that follows, the same when None."""

    model: Any
    tokenizer: Any
    fact: ps.Fact
    sizes: Sizes
    seed: int = 0
    following: ps.Fact | None = None

    def fresh(self) -> Any:
        """The model as if just loaded: modules of its own, the weights shared."""
        return sharing_copy(self.model)

    @cached_property
    def config(self) -> ps.SurgicalIA3Config:
        """The scales that `edit` trains by default; whoever gives it to PEFT gives a copy."""
        chosen = list(default_components(self.model))
        config = ps.SurgicalIA3Config(components=chosen, projections=list(EDIT_PROJECTIONS), task_type="CAUSAL_LM")
        config.resolve(self.model.config)
        return config

    def modules(self, *sides: str) -> list[str]:
        """The modules that are scaled on one of these sides."""
        return sorted(name for name, spec in (self.config.selections or {}).items() if spec["side"] in sides)

    @cached_property
    def rows(self) -> list[EncodedAnswer]:
        """The training prompts with what our stage learns to answer."""
        fact = in_sentences_of(self.model, self.tokenizer, self.fact.training)
        return [encode_answer(self.tokenizer, prompt, fact.answer) for prompt in fact.prompts]


def timed(function: Callable[..., Value], *arguments: Any, **options: Any) -> tuple[Value, float]:
    """What a call returns, and its seconds."""
    synchronize()
    started = time.perf_counter()
    value = function(*arguments, **options)
    synchronize()
    return value, time.perf_counter() - started


# Of a matrix product that is worth waiting for, seconds.
_LONGEST = 5


@torch.no_grad()
def matrix_product_peak(device: torch.device, sizes: tuple[int, ...] = (256, 1024, 2048, 4096)) -> dict[str, float]:
    """The most floating-point operations a second that square products reach, by dtype; of one that a processor only
    imitates, in the smaller sizes."""
    best: dict[str, float] = {}
    for dtype in (torch.float32, torch.bfloat16):
        rates: list[float] = []
        for size in sizes:
            if rates and 2 * size**3 > _LONGEST * max(rates):
                break
            matrix = torch.ones(size, size, dtype=dtype, device=device)
            matrix @ matrix
            rates += [2 * size**3 / timed(torch.matmul, matrix, matrix)[1] for _ in range(3)]
        best[dtype_name(dtype)] = max(rates)
    return best
