"""UltraEdit (Gu et al., "UltraEdit: Training-, Subject-, and Memory-Free Lifelong Editing in Language Models",
arXiv 2505.14679): one step for a whole batch, from what enters projections and the gradient at what leaves them.

At each position that predicts a token of a new answer, of the bare prompt, h enters a projection and ∇ is the
gradient of the answers' loss at its output. Both, [h, ∇], are normalized with the mean and standard deviation of all
that this and earlier batches have shown, to ĥ and ∇̂: the *lifelong normalization*. The output should move by
v = −η ‖ĥ‖² ∇̂, and with H the h's of a batch and V the v's, row by row, the weights that do so best by ridge regression
are

    W ← W + Vᵀ (H Hᵀ + I)⁻¹ H

As in the authors' code, modules of one shape share their statistics, 10 prompts, longest first, go through the model
at once, and the squares of a pass are summed as its rows times its unbiased variance, which for one row, undefined
there, are none here. EasyEdit, whose settings are the same, has all tokens of a prompt in the place of those that
predict the answer, unlike the paper and that code. As a mean is taken off, a batch is written by how its tokens
differ: the method is made for many requests.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from peft_surgical.architectures import architecture_of, decoder_layers
from peft_surgical.errors import SurgicalError
from peft_surgical.running.suffix import SuffixRunner
from peft_surgical.texts.prompts import EncodedAnswer, encode_target, span

from ..plain_text import targets
from .adapters import module_names
from .batches import InBatches, add_values, gains, some
from .fitting import first_trained
from .ia3_stock import same_depth
from .method import Request, Write
from .restoring import weights_restored

ROWS = 10
"""Prompts that go through the model at once, whose loss is one mean."""
_LEAST = torch.finfo(torch.float32).eps

GATES, UPS, LLAMA = range(11, 16), range(18, 25), 32
"""The authors' layers in Llama 3 8B, of so many: of gate and of input projections."""
FUSED, PHI4 = range(30, 39), 40
"""Theirs in Phi-4, which has both in one: of output projections."""
UNGATED, GPT_J = range(18, 27), 28
"""Theirs in GPT-J, which has no gate: of output projections."""


class Running:
    """The mean and standard deviation of all rows that have been shown, a pass at a time, in float64."""

    def __init__(self) -> None:
        self.count = 0
        self._mean: Tensor | float = 0.0
        self._squares: Tensor | float = 0.0

    def show(self, rows: Float[Tensor, "row feature"]) -> None:
        """Takes in the rows of a pass."""
        new, total = len(rows), self.count + len(rows)
        moved = rows.mean(0) - self._mean
        within = new * rows.var(0) if new > 1 else 0.0
        self._squares = self._squares + within + self.count * new * moved.square() / total
        self._mean = self._mean + new * moved / total
        self.count = total

    def normalized(self, rows: Float[Tensor, "row feature"]) -> Float[Tensor, "row feature"]:
        """How far rows are from the mean, in standard deviations; there must have been two."""
        deviation = torch.as_tensor(self._squares / (self.count - 1)).sqrt()
        return (rows - self._mean) / (deviation + _LEAST)


@dataclass(frozen=True)
class UltraEdit(InBatches):
    """Moves projections of several MLPs one step, all requests of a batch together.

    Attributes:
        learning_rate: η.
    """

    name: ClassVar[str] = "ultraedit"
    learning_rate: float = 1e-6

    def recipe(self, model: Any) -> dict[str, Any]:
        """How many prompts share a mean, and the modules."""
        return {"rows": ROWS, "modules": edited_modules(model)}

    @contextmanager
    def sequence(self, model: Any, tokenizer: Any, seed: int) -> Iterator[Write]:
        """Hands out what adds a batch's update, and copies the weights back afterwards."""
        modules = {name: model.get_submodule(name) for name in edited_modules(model)}
        shown: dict[torch.Size, Running] = {module.weight.shape: Running() for module in modules.values()}

        def write(requests: Sequence[Request]) -> None:
            rows = [encode_target(tokenizer, request.prompt, request.new) for request in some(requests)]
            if sum(running.count for running in shown.values()) == 0 and len(targets(rows)[0]) < 2:
                raise SurgicalError(
                    "UltraEdit writes by how answers' tokens differ, and its first batch has one only; "
                    "give it several requests at once."
                )
            found = features(model, tokenizer, modules, rows)
            for passed in found:
                for name, (keys, gradients) in passed.items():
                    shown[modules[name].weight.shape].show(torch.cat([keys, gradients], 1))
            for name, module in modules.items():
                keys, gradients = (torch.cat(parts) for parts in zip(*(passed[name] for passed in found), strict=True))
                normalized = shown[module.weight.shape].normalized(torch.cat([keys, gradients], 1))
                key, gradient = normalized.split([keys.shape[1], gradients.shape[1]], 1)
                values = -self.learning_rate * key.square().sum(1, keepdim=True) * gradient
                add_values(module, values, gains(keys, None, 1.0))

        with weights_restored([module.weight for module in modules.values()]):
            yield write


def edited_modules(model: Any) -> list[str]:
    """The names of the projections that are moved: the authors' for a model of that kind, at the same depths."""
    architecture = architecture_of(model.config.model_type)
    if architecture.gate is not None:
        gates, ups = (same_depth(model, layers, LLAMA) for layers in (GATES, UPS))
        return [*module_names(model, ("gate",), gates), *module_names(model, ("up",), ups)]
    layers = same_depth(model, *((FUSED, PHI4) if architecture.gated else (UNGATED, GPT_J)))
    return module_names(model, ("mlp_out",), layers)


Features = dict[str, tuple[Float[Tensor, "token input"], Float[Tensor, "token output"]]]


def features(
    model: Any, tokenizer: Any, modules: Mapping[str, nn.Module], rows: Sequence[EncodedAnswer]
) -> list[Features]:
    """What enters modules, and the gradient at what leaves them, at the positions that predict answers, in float64.

    Args:
        model: A causal language model.
        tokenizer: Without a chat template.
        modules: By their names, with weights that ask for gradients.
        rows: Prompts with their answers.

    Returns:
        A pass of [`ROWS`] rows at a time, the longest first.
    """
    rows = sorted(rows, key=lambda row: -len(row.read))
    weights = [weight for module in modules.values() for weight in module.parameters(recurse=False)]
    layers = decoder_layers(model)
    runner = SuffixRunner(model, layers, first_trained(layers, weights), pad=tokenizer.pad_token_id or 0)
    return [_of_a_pass(runner, modules, rows[start : start + ROWS]) for start in range(0, len(rows), ROWS)]


def _of_a_pass(runner: SuffixRunner, modules: Mapping[str, nn.Module], rows: Sequence[EncodedAnswer]) -> Features:
    indices, spans = runner.add([row.read for row in rows]), [span(row) for row in rows]
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    handles = [
        module.register_forward_hook(lambda _, args, output, name=name: seen.update({name: (args[0], output)}))
        for name, module in modules.items()
    ]
    try:
        logits = runner.logits(indices, spans).float()
    finally:
        for handle in handles:
            handle.remove()
    loss = F.cross_entropy(logits, targets(rows)[0].to(logits.device))
    gradients = torch.autograd.grad(loss, [seen[name][1] for name in modules])
    places = [(row, place) for row, (first, stop) in enumerate(spans) for place in range(first, stop)]
    where = tuple(torch.tensor(index, device=logits.device) for index in zip(*places, strict=True))
    return {
        name: (seen[name][0].detach()[where].double(), gradient[where].double())
        for name, gradient in zip(modules, gradients, strict=True)
    }
