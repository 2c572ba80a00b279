"""What a module should give at the subject for the new answer to follow: what ROME, MEMIT and AlphaEdit share.

The *value* is a module's output at the subject's last token: of one MLP's output projection (ROME) or of a whole
layer (MEMIT, AlphaEdit). Gradient descent chooses a δ so that the model, with δ added to the value in every row,
says the new answer, under a divergence on "{subject} is a" that keeps what else the subject is, a decay, and a bound
on δ's length.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from peft_surgical.architectures import decoder_layers
from peft_surgical.errors import ModelError
from peft_surgical.running.suffix import SuffixRunner
from peft_surgical.texts.prompts import encode, encode_target, span

from ..plain_text import targets
from .method import STEPS, Request

TARGET_LOSS = 0.05


class Objective(NamedTuple):
    """How a δ is sought, by default as EasyEdit does for ROME and MEMIT on Llama models.

    Attributes:
        learning_rate: Adam's.
        kl_weight: Of the divergence.
        decay: Of δ's length, over the square of the value's.
        longest: The bound on δ, as a multiple of the length of the value at the bare prompt.
    """

    learning_rate: float = 0.5
    kl_weight: float = 0.0625
    decay: float = 1e-3
    longest: float = 4.0

    def recipe(self) -> dict[str, Any]:
        """What is not a setting of a method, as JSON."""
        constants = {"kl_weight": self.kl_weight, "decay": self.decay, "longest": self.longest}
        return {"steps": STEPS, **constants, "target_loss": TARGET_LOSS}


class Asked:
    """A request's prompts with their target, and "{subject} is a", as rows in which the subject's last token is known.

    Args:
        model: The base.
        tokenizer: Without a chat template.
        request: What to say of which subject.
        first: Layers below it stay as they are; no module of theirs is read or moved.
        kl_at_subject: Keep what follows the subject, and not what follows "{subject} is a".

    Raises:
        ModelError: If the tokenizer cannot say where in a text its tokens stand.
    """

    def __init__(
        self, model: Any, tokenizer: Any, request: Request, first: int, *, kl_at_subject: bool = False
    ) -> None:
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
        place = positions[-1] if kl_at_subject else len(ids) - 1

        self.count = len(rows)
        self._runner = SuffixRunner(model, decoder_layers(model), first, pad=tokenizer.pad_token_id or 0)
        self._indices = self._runner.add(every)
        self._spans = [*map(span, rows), (place, place + 1)]
        self._labels = targets(rows)[0].to(self._runner.device)
        device = self._runner.device
        self._where = torch.arange(len(every), device=device), torch.tensor(positions, device=device)

    def logits(self) -> Float[Tensor, "token vocab"]:
        """At the targets of all rows, then where the divergence is measured."""
        return self._runner.logits(self._indices, self._spans).float()

    @torch.no_grad()
    def at_subject(self, *modules: nn.Module) -> list[tuple[Float[Tensor, "row input"], Float[Tensor, "row output"]]]:
        """What enters and what leaves modules at the subject's last token, of the prompts in order, in float32."""
        seen: dict[int, tuple[Tensor, Tensor]] = {}
        handles = [
            module.register_forward_hook(lambda _, args, output, i=i: seen.update({i: (args[0], output)}))
            for i, module in enumerate(modules)
        ]
        try:
            self.logits()
        finally:
            for handle in handles:
                handle.remove()
        return [
            (seen[i][0][self._where][: self.count].float(), seen[i][1][self._where][: self.count].float())
            for i in range(len(modules))
        ]

    def delta(
        self, module: nn.Module, value: Float[Tensor, " model"], objective: Objective
    ) -> Float[Tensor, " model"]:
        """What to add to a module's output at the subject, in float32.

        Args:
            module: Gives the value.
            value: At the bare prompt.
            objective: How δ is sought.
        """
        with torch.no_grad():
            kept = self.logits()[-1].log_softmax(-1)
        length = float(value.norm())
        delta = torch.zeros_like(value, requires_grad=True)
        optimizer = torch.optim.Adam([delta], lr=objective.learning_rate)
        for step in range(STEPS):
            with self._added(module, delta):
                logits = self.logits()
            kl = F.kl_div(kept, logits[-1].log_softmax(-1), log_target=True, reduction="sum")
            decay = objective.decay * delta.norm() / length**2
            loss = F.cross_entropy(logits[:-1], self._labels) + objective.kl_weight * kl + decay
            if loss.item() < TARGET_LOSS or step == STEPS - 1:
                break
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                delta.mul_(min(1.0, objective.longest * length / delta.norm().clamp_min(1e-12).item()))
        return delta.detach()

    @contextmanager
    def _added(self, module: nn.Module, delta: Tensor) -> Iterator[None]:
        """Adds `delta` to a module's output at one position of each row."""

        def add(_: nn.Module, __: Any, output: Tensor) -> Tensor:
            return output.index_put(
                self._where, delta.to(output.dtype).expand(len(self._where[0]), -1), accumulate=True
            )

        handle = module.register_forward_hook(add)
        try:
            yield
        finally:
            handle.remove()


def last_token(tokenizer: Any, text: str, stop: int) -> int:
    """The index, among a plain text's tokens, of the one that holds the character before `stop`.

    Raises:
        ModelError: If the tokenizer is of the slow kind, which does not know.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError("finding the subject's tokens needs a fast tokenizer (tokenizer.json).")
    return int(tokenizer(text).char_to_token(stop - 1))
