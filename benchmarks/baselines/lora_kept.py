"""LoRA as in [`Lora`], held to what the stages of `edit` are held to.

Every step takes all prompts, as the other baselines' do, and as many kept rows as a `learn` stage's. Its loss is

    mean over prompts of the sum over answer tokens of nll  +  retain_weight · mean over kept tokens of KL(base‖model)

which are that stage's first two terms without the margin, on the fact's prompts without the wordings that the stage
makes of them, down to the other baselines' loss. The first is what [`fit`] minimizes, times the tokens of an
answer: Adam's steps are the same by either, and only by the sum does the weight mean what it means in the stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from peft_surgical.architectures import decoder_layers
from peft_surgical.running.beginnings import shared_prefix
from peft_surgical.running.suffix import SuffixRunner
from peft_surgical.seeding import drawing
from peft_surgical.stages import RECIPES
from peft_surgical.staging.retain import TopDistribution
from peft_surgical.staging.retained import base_rows
from peft_surgical.staging.stage import LEARN
from peft_surgical.staging.training import endless
from peft_surgical.texts.prompts import EncodedAnswer, encode_target, span

from ..plain_text import answer_logits, targets
from .adapters import adapted
from .fitting import first_trained, fit_recipe, target_loss
from .lora import Lora
from .method import STEPS, Request

KEPT = ("retain_weight", "target_kl", "near_batch", "far_batch", "neighbours", "everyday", "general", "retain_tokens")
"""What of the stage's recipe is read."""


class Kept(NamedTuple):
    """What a model is held to.

    Attributes:
        rows: Prompts with the base's answers.
        near: How many of them, from the first, are close to the fact.
        base: The base's distributions at each row's answer.
    """

    rows: Sequence[EncodedAnswer]
    near: int
    base: Sequence[TopDistribution]

    @classmethod
    def of(cls, model: Any, tokenizer: Any, request: Request, seed: int) -> Kept:
        """What the stages keep of a bare model."""
        found = base_rows(model, tokenizer, request.fact, RECIPES[LEARN], seed, progress=False)
        runner = SuffixRunner(model, decoder_layers(model), 0, _beginning(found.rows), tokenizer.pad_token_id or 0)
        runner.add([row.read for row in found.rows])
        return cls(
            found.rows, found.near, [TopDistribution.of(logits) for logits in answer_logits(runner, found.rows)]
        )


@dataclass(frozen=True)
class LoraKept(Lora):
    """Adds low-rank updates that are held to the base's answers to other questions."""

    name: ClassVar[str] = "lora_kept"

    def recipe(self, model: Any) -> dict[str, Any]:
        """As of [`Lora`], and of what is kept."""
        return {**fit_recipe(), **{name: getattr(RECIPES[LEARN], name) for name in KEPT}}

    def edit(self, model: Any, tokenizer: Any, request: Request, seed: int) -> AbstractContextManager[None]:
        """Trains the adapter, and takes it off afterwards."""
        kept = Kept.of(model, tokenizer, request, seed)
        train = partial(fit_keeping, kept=kept, seed=seed)
        return adapted(model, tokenizer, request, self.config(model), self.learning_rate, seed, train)


def fit_keeping(
    model: Any,
    tokenizer: Any,
    request: Request,
    parameters: Sequence[nn.Parameter],
    learning_rate: float,
    *,
    kept: Kept,
    seed: int,
) -> int:
    """Trains as [`fit`] does, with a divergence on some kept rows in every step; stops where both are small enough.

    Args:
        model: A transformers model, with adapters put on.
        tokenizer: As for [`fit`].
        request: Gives the prompts and their target.
        parameters: What to train; they must ask for gradients.
        learning_rate: Adam's.
        kept: What to hold the model to.
        seed: Decides which kept rows meet in a step.

    Returns:
        How many steps were taken.
    """
    recipe, rng = RECIPES[LEARN], drawing(seed)
    rows = [encode_target(tokenizer, prompt, request.new) for prompt in request.prompts]
    layers = decoder_layers(model)
    first, begun = first_trained(layers, parameters), _beginning([*rows, *kept.rows])
    runner = SuffixRunner(model, layers, first, begun, tokenizer.pad_token_id or 0)
    indices, spans, labels = runner.add([row.read for row in rows]), [span(row) for row in rows], targets(rows)[0]
    places = runner.add([row.read for row in kept.rows])
    near = endless(range(kept.near), rng)
    far = endless(range(kept.near, len(kept.rows)), rng)
    optimizer = torch.optim.Adam(parameters, lr=learning_rate)
    smooth_kl: float | None = None
    for step in range(STEPS):
        chosen = [
            *islice(near, min(recipe.near_batch, kept.near)),
            *islice(far, min(recipe.far_batch, len(kept.rows) - kept.near)),
        ]
        optimizer.zero_grad()
        nll = F.cross_entropy(runner.logits(indices, spans).float(), labels.to(runner.device), reduction="sum")
        # Each term by itself: both graphs at once would take twice the memory.
        (nll / len(rows)).backward()
        divergence = 0.0
        if chosen:
            logits = runner.logits([places[i] for i in chosen], [span(kept.rows[i]) for i in chosen])
            kl = TopDistribution.cat([kept.base[i] for i in chosen]).kl(logits).mean()
            (recipe.retain_weight * kl).backward()
            divergence = kl.item()
        smooth_kl = divergence if smooth_kl is None else 0.7 * smooth_kl + 0.3 * divergence
        if nll.item() / len(labels) < target_loss() and smooth_kl <= recipe.target_kl:
            return step
        optimizer.step()
    return STEPS


def _beginning(rows: Sequence[EncodedAnswer]) -> tuple[int, ...]:
    """The tokens that all rows begin with, a chat template's, which then run once a pass."""
    return rows[0].ids[: shared_prefix([row.ids for row in rows], [span(row)[0] for row in rows])] if rows else ()
