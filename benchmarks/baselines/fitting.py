"""The loop that the gradient baselines share: the target's loss on the prompt alone and behind every context."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from peft_surgical.architectures import decoder_layers
from peft_surgical.running.suffix import SuffixRunner
from peft_surgical.texts.prompts import encode_answer, encode_target, span

from ..plain_text import targets
from .method import STEPS, Request

TARGET_LOSS = 0.01
"""Mean negative log-likelihood per target token, nats, at which fine-tuning stops, as in ROME's released code."""

_ASKED: ContextVar[float | None] = ContextVar("target_loss", default=None)


def target_loss() -> float:
    """Where [`fit`] stops: at [`TARGET_LOSS`], or what [`stopping_at`] says."""
    asked = _ASKED.get()
    return TARGET_LOSS if asked is None else asked


@contextmanager
def stopping_at(loss: float | None) -> Iterator[None]:
    """Another loss to stop at in this block; nothing changes for None."""
    token = _ASKED.set(loss)
    try:
        yield
    finally:
        _ASKED.reset(token)


def fit_recipe() -> dict[str, Any]:
    """How [`fit`] trains beside its learning rate, as JSON."""
    return {"steps": STEPS, "target_loss": target_loss()}


class Fitted:
    """The recipe of a method that has no other than [`fit`]'s."""

    def recipe(self, model: Any) -> dict[str, Any]:
        """As of all that is fitted alike."""
        return fit_recipe()


def fit(
    model: Any,
    tokenizer: Any,
    request: Request,
    parameters: Iterable[nn.Parameter],
    learning_rate: float,
    after_step: Callable[[], None] = lambda: None,
    *,
    end: bool = False,
) -> None:
    """Trains some of a model's parameters with Adam, all rows in every step, for at most `STEPS` steps.

    Args:
        model: A transformers model, possibly with adapters put on.
        tokenizer: Without a chat template.
        request: Gives the prompts and their target.
        parameters: What to train; they must ask for gradients.
        learning_rate: Adam's.
        after_step: Called after each step, to constrain the parameters.
        end: Teach plain text to end, too, as answers to questions always are.
    """
    parameters = list(parameters)
    encoded = encode_answer if end else encode_target
    rows = [encoded(tokenizer, prompt, request.new) for prompt in request.prompts]
    layers = decoder_layers(model)
    runner = SuffixRunner(model, layers, first_trained(layers, parameters), pad=tokenizer.pad_token_id or 0)
    indices, spans, labels = runner.add([row.read for row in rows]), [span(row) for row in rows], targets(rows)[0]
    optimizer = torch.optim.Adam(parameters, lr=learning_rate)
    for _ in range(STEPS):
        loss = F.cross_entropy(runner.logits(indices, spans).float(), labels.to(runner.device))
        if loss.item() < target_loss():
            return
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            after_step()


def first_trained(layers: nn.ModuleList, parameters: Iterable[nn.Parameter]) -> int:
    """The first layer that some parameters change; 0 when one of them is in no layer."""
    where = {id(parameter): index for index, layer in enumerate(layers) for parameter in layer.parameters()}
    return min((where.get(id(parameter), 0) for parameter in parameters), default=0)
