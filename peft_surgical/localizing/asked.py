"""What all that localizes begins with: arguments checked, hooks on the model, the fact's prompts in pairs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..counts import check_counts, check_seed
from ..errors import FactError, ScorerError
from ..facts import Fact, TrainingFact, check_fact
from ..running.precision import without_autocast
from ..sites import ModelShape
from ..staging.whole_answers import in_sentences
from ..wrapped import check_unwrapped
from .bridge import has_hooks, wrap
from .corruption import PromptPair, corrupt, template_ids
from .runs import Runs


@dataclass(frozen=True, eq=False)
class Asked:
    """A model that is asked a fact's prompts.

    Attributes:
        runs: Forward passes in the model's own precision.
        precise: The same in float32.
        shape: The model's sizes.
        pairs: The prompts, corrupted, with what the model says to them.
    """

    runs: Runs
    precise: Runs
    shape: ModelShape
    pairs: tuple[PromptPair, ...]


def checked(
    model: nn.Module,
    tokenizer: Any,
    fact: Fact | TrainingFact,
    *,
    seed: int,
    prompts: int | None,
    max_tokens: int,
) -> TrainingFact:
    """The training part of a fact, with its answers in sentences, once what can be told without a pass is checked.

    Raises:
        FactError: When it is no fact, or `prompts` is no positive whole number.
        ModelError: When it is no model, or something stands around it.
        ScorerError: When `seed` or `max_tokens` is no whole number or out of range.
    """
    check_fact(fact)
    check_unwrapped(model)
    training = in_sentences(fact.training, tokenizer)
    if prompts is not None:
        check_counts(1, FactError, prompts=prompts)
    check_seed(seed, ScorerError)
    check_counts(1, ScorerError, max_tokens=max_tokens)
    return training


@contextmanager
def asked(
    model: nn.Module, tokenizer: Any, fact: TrainingFact, *, seed: int, prompts: int | None, max_tokens: int
) -> Iterator[Asked]:
    """The fact's prompts for as long as the hooks are on the model.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        fact: What [`checked`] gave.
        seed: For the order of contrast subjects and for noise.
        prompts: Only the first so many; all when None.
        max_tokens: Rows × positions of one forward pass.
    """
    with without_autocast(model):
        bridge, template = wrap(model), template_ids(tokenizer)
        runs, precise = Runs(bridge, template), Runs(bridge, template, precise=True, hooked=has_hooks(model))
        generator = torch.Generator().manual_seed(seed)
        pairs = corrupt(tokenizer, fact, runs.embed, generator, fact.prompts[:prompts])
        shape = ModelShape.from_config(model.config)
        yield Asked(runs, precise, shape, precise.answered(pairs, max_tokens))
