"""Rank-one model editing (ROME; Meng et al., "Locating and Editing Factual Associations in GPT", arXiv 2202.05262).

The output projection W of one MLP is read as a memory of keys and values. The *key* k is the projection's input at
the subject's last token, mean over the prompt alone and behind every context. The *value* v is what the projection
should give for it: the mean of its outputs there plus a δ. Gradient descent chooses the δ so that the model says the
new answer, under a divergence on "{subject} is a" that keeps what else the subject is, a decay, and a bound on its
length. With C the uncentred covariance of keys, the least change of other keys' values that makes W k = v is

    W ← W + δ (C⁻¹ k)ᵀ / (kᵀ C⁻¹ k)

Here C is the identity, as EasyEdit runs ROME on Llama models, whose constants these are; `rome_cov` estimates it.
This is the paper's formula. Its authors' code does two things otherwise, and so does `rome_code`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from peft_surgical.architectures import decoder_layers
from peft_surgical.errors import ModelError
from peft_surgical.running.suffix import SuffixRunner
from peft_surgical.texts.prompts import encode, encode_target, span

from ..plain_text import targets
from .method import STEPS, Request
from .mlps import edited_layer, output_projection
from .restoring import weights_restored

KL_WEIGHT = 0.0625
DECAY = 1e-3
LONGEST = 4.0
"""The bound on δ, as a multiple of the length of the value at the bare prompt."""
TARGET_LOSS = 0.05


class Written(NamedTuple):
    """What an edit writes, in float32.

    Attributes:
        key: Mean over the prompt alone and behind every context.
        bare: That of the prompt alone.
        delta: What is added to the value.
    """

    key: Float[Tensor, " neuron"]
    bare: Float[Tensor, " neuron"]
    delta: Float[Tensor, " model"]


@dataclass(frozen=True)
class Rome:
    """Writes one key and value into an MLP.

    Attributes:
        learning_rate: Adam's, for δ.
        layer: Which MLP; see [`edited_layer`] when None.
    """

    name: ClassVar[str] = "rome"
    as_in_code: ClassVar[bool] = False
    learning_rate: float = 0.5
    layer: int | None = None

    @contextmanager
    def edit(self, model: Any, tokenizer: Any, request: Request, seed: int) -> Iterator[None]:
        """Adds the rank-one update, and copies the weight back afterwards."""
        layer = edited_layer(model, self.layer)
        projection = output_projection(model, layer)
        found = key_and_delta(model, tokenizer, request, layer, self.learning_rate, kl_at_subject=self.as_in_code)
        exact = found.bare if self.as_in_code else found.key
        with weights_restored([projection.weight]):
            add_rank_one(projection, found.delta, exact, self.direction(model, tokenizer, layer, found.key))
            yield

    def recipe(self, model: Any) -> dict[str, Any]:
        """The constants above, and the layer."""
        constants = {"kl_weight": KL_WEIGHT, "decay": DECAY, "longest": LONGEST, "target_loss": TARGET_LOSS}
        return {"steps": STEPS, **constants, "layer": edited_layer(model, self.layer)}

    def direction(self, model: Any, tokenizer: Any, layer: int, key: Float[Tensor, " neuron"]) -> Tensor:
        """C⁻¹ k, up to a factor."""
        return key


@torch.no_grad()
def add_rank_one(
    projection: Any, delta: Float[Tensor, " model"], key: Float[Tensor, " neuron"], direction: Float[Tensor, " neuron"]
) -> None:
    """Moves a projection's output at `key` by `delta`, and at others by so much of it as they point in `direction`."""
    update = torch.outer(delta, direction / (key @ direction))
    projection.weight.add_((update.T if isinstance(projection, Conv1D) else update).to(projection.weight.dtype))


def key_and_delta(
    model: Any, tokenizer: Any, request: Request, layer: int, learning_rate: float, *, kl_at_subject: bool = False
) -> Written:
    """The key of a request's subject, and what to add to its value.

    Args:
        model: The base.
        tokenizer: Without a chat template.
        request: What to say of which subject.
        layer: Which MLP.
        learning_rate: Adam's.
        kl_at_subject: Keep what follows the subject, and not what follows "{subject} is a".

    Raises:
        ModelError: If the tokenizer cannot say where in a text its tokens stand.
    """
    rows = [encode_target(tokenizer, prompt, request.new) for prompt in request.prompts]
    asked = f"{request.subject} is a"
    ids = tuple(encode(tokenizer, asked))
    # The rows whose target counts, and one whose next token is only kept.
    every = [*(row.read for row in rows), ids]
    texts = [*(f"{prompt} {request.new}" for prompt in request.prompts), asked]
    before = [len(prompt) - len(request.prompt) for prompt in request.prompts]
    starts = [start + request.prompt.index(request.subject) for start in before] + [0]
    stops = [start + len(request.subject) for start in starts]
    positions = [last_token(tokenizer, text, stop) for text, stop in zip(texts, stops, strict=True)]

    runner = SuffixRunner(model, decoder_layers(model), layer, pad=tokenizer.pad_token_id or 0)
    indices = runner.add(every)
    place = positions[-1] if kl_at_subject else len(ids) - 1
    spans = [*map(span, rows), (place, place + 1)]
    labels = targets(rows)[0].to(runner.device)
    where = torch.arange(len(every), device=runner.device), torch.tensor(positions, device=runner.device)
    projection = output_projection(model, layer)
    with torch.no_grad(), _read(projection) as seen:
        kept = runner.logits(indices, spans)[-1].float().log_softmax(-1)
    keys, values = (tensor[where].float() for tensor in seen)
    key, length = keys[: len(rows)].mean(0), float(values[0].norm())

    delta = torch.zeros_like(values[0], requires_grad=True)
    optimizer = torch.optim.Adam([delta], lr=learning_rate)
    for step in range(STEPS):
        with _added(projection, delta, where):
            logits = runner.logits(indices, spans).float()
        kl = F.kl_div(kept, logits[-1].log_softmax(-1), log_target=True, reduction="sum")
        loss = F.cross_entropy(logits[:-1], labels) + KL_WEIGHT * kl + DECAY * delta.norm() / length**2
        if loss.item() < TARGET_LOSS or step == STEPS - 1:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            delta.mul_(min(1.0, LONGEST * length / delta.norm().clamp_min(1e-12).item()))
    return Written(key, keys[0], delta.detach())


def last_token(tokenizer: Any, text: str, stop: int) -> int:
    """The index, among a plain text's tokens, of the one that holds the character before `stop`.

    Raises:
        ModelError: If the tokenizer is of the slow kind, which does not know.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError("finding the subject's tokens needs a fast tokenizer (tokenizer.json).")
    return int(tokenizer(text).char_to_token(stop - 1))


@contextmanager
def _read(projection: nn.Module) -> Iterator[list[Tensor]]:
    """Takes down what enters and what leaves a module."""
    seen: list[Tensor] = []
    handle = projection.register_forward_hook(lambda _, args, output: seen.extend((args[0], output)))
    try:
        yield seen
    finally:
        handle.remove()


@contextmanager
def _added(projection: nn.Module, delta: Tensor, where: tuple[Tensor, Tensor]) -> Iterator[None]:
    """Adds `delta` to a module's output at one position of each row."""

    def add(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        return output.index_put(where, delta.to(output.dtype).expand(len(where[0]), -1), accumulate=True)

    handle = projection.register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()
