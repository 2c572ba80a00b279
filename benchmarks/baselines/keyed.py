"""What scales lack, and what still merges into the weights: updates of rank one that are keyed to the subject.

A scale acts on every token alike. An update `b aᵀ` of an MLP's output projection adds `b` in so far as the neurons
point along `a`; with `a = C⁻¹ k`, for `k` the neurons at the subject's last token and `C` their second moment over the
text to keep, that is as much as at the subject there and next to nothing elsewhere (the key of ROME, arXiv 2202.05262;
of several layers, MEMIT, arXiv 2210.07229). Here the values `b` are trained on all of a fact's prompts, held to the
base's answers on what the stages of `edit` keep, with the stages' own loop, loss and metric. On what is kept a value
does so little that the metric alone would allow steps of any length, so they have a second bound, by the loss.

The updates are a stock LoRA adapter of rank 1, whose `A` is `a` and frozen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from peft_surgical.curvature import Metric, RowGradients, sample_curvature
from peft_surgical.errors import FactError
from peft_surgical.prompts import EncodedAnswer, encode_answer, span
from peft_surgical.retain import TopDistribution
from peft_surgical.retained import Rows, answer_logits, base_rows
from peft_surgical.stages import LEARN, RECIPES, training_prompts
from peft_surgical.subjects import subject_spans
from peft_surgical.suffix import SuffixRunner, shared_prefix
from peft_surgical.training import Recipe, train

from .adapters import module_names
from .fitting import decoder_layers
from .method import Request
from .mlps import edited_layer, output_projection
from .restoring import adapters_taken_off

BATCH = 32


@dataclass(frozen=True)
class Keyed:
    """Trains the values of keys that it finds.

    Attributes:
        share: At most this share of the fact's loss a step takes away, by its own prediction; the rest is the learn
            stage's recipe.
        layers: Whose MLPs; all when None.
        ridge: Added to the second moment's diagonal, as a multiple of the diagonal's mean.
    """

    name: ClassVar[str] = "keyed"
    share: float = 0.5
    layers: tuple[int, ...] | None = None
    ridge: float = 0.01

    @contextmanager
    def edit(self, model: Any, tokenizer: Any, request: Request, seed: int) -> Iterator[None]:
        """Trains the adapter, and takes it off afterwards.

        Raises:
            FactError: If no prompt names the subject.
            SelectionError: If the model has no such layer.
        """
        recipe, fact, blocks = RECIPES[LEARN], request.fact, decoder_layers(model)
        layers = [edited_layer(model, layer) for layer in (range(len(blocks)) if self.layers is None else self.layers)]
        kept = base_rows(model, tokenizer, fact, recipe, seed, progress=False)
        prompts = training_prompts(fact, recipe)
        rows = [encode_answer(tokenizer, prompt, fact.answer) for prompt in prompts]
        marks = [
            [found[-1] for found in subject_spans(tokenizer, prompt, fact.subject, row.ids)]
            for prompt, row in zip(prompts, rows, strict=True)
        ]
        if not any(marks):
            raise FactError(f"no prompt names the subject {fact.subject!r}, by which to learn.")
        directions = self.directions(model, rows, marks, kept, layers)
        every = [*rows, *kept.rows]
        prefix = shared_prefix([row.ids for row in every], [span(row)[0] for row in every])
        with adapters_taken_off(model):
            values = place(model, directions)
            runner = SuffixRunner(model, blocks, min(layers), every[0].ids[:prefix], pad=tokenizer.pad_token_id or 0)
            runner.add([row.ids for row in every])
            base = [TopDistribution.of(logits) for logits in answer_logits(runner, kept.rows, len(rows))]
            metric = self.metric(runner, model, values, kept, len(rows), recipe, seed)
            train(
                runner,
                values.values(),
                rows,
                kept.rows,
                base,
                recipe,
                metric=metric,
                near=kept.near,
                share_of_loss=self.share,
                seed=seed,
            )
            yield

    def metric(
        self,
        runner: SuffixRunner,
        model: Any,
        values: Mapping[int, nn.Parameter],
        kept: Rows,
        offset: int,
        recipe: Recipe,
        seed: int,
    ) -> Metric:
        """What a change of the values costs on what is kept.

        Args:
            runner: Has taken in what is kept, from index `offset` on.
            model: Its model.
            values: As [`place`] returned them.
            kept: What is kept.
            offset: See `runner`.
            recipe: Gives the weight of near rows and the damping.
            seed: As for the stages.
        """
        indices = range(offset, offset + len(kept.rows))
        parts = [
            sample_curvature(
                runner, [*values.values()], values_watched(model, [*values]), indices[part], kept.rows[part], seed=seed
            )
            for part in (slice(kept.near), slice(kept.near, None))
        ]
        metric = (recipe.near_weight * parts[0] + parts[1]).metric(recipe.damping)
        shaped = (own.view_as(value) for own, value in zip(metric.diagonals, values.values(), strict=True))
        return replace(metric, diagonals=tuple(shaped))

    def directions(
        self,
        model: Any,
        rows: Sequence[EncodedAnswer],
        marks: Sequence[Sequence[int]],
        kept: Rows,
        layers: Sequence[int],
    ) -> dict[int, Float[Tensor, " neuron"]]:
        """For each layer `C⁻¹ k`, of the length that makes its product with `k` 1.

        Args:
            model: The base.
            rows: The fact's prompts with the answer.
            marks: For each the positions of its subject's last tokens.
            kept: What `C` is of: the rows near the fact, and the others, as much together.
            layers: Of which MLPs.
        """
        kinds = (kept.rows[: kept.near], kept.rows[kept.near :])
        moments = [second_moments(model, own, layers) for own in kinds if own]
        found = {}
        for layer, key in mean_neurons(model, rows, marks, layers).items():
            total = torch.stack([own[layer] for own in moments]).sum(0)
            ridge = self.ridge * total.diagonal().mean() * torch.eye(len(total)).to(total)
            direction = torch.linalg.solve(total + ridge, key)
            found[layer] = (direction / (direction @ key)).float()
        return found


def place(model: Any, directions: Mapping[int, Float[Tensor, " neuron"]]) -> dict[int, nn.Parameter]:
    """Puts updates that change nothing yet on a bare model.

    Args:
        model: The model.
        directions: The layers, and what of their neurons is read.

    Returns:
        The values by layer, `[model, 1]` each: all that trains.
    """
    config = LoraConfig(
        r=1, lora_alpha=1, target_modules=module_names(model, ("mlp_out",), list(directions)), task_type="CAUSAL_LM"
    )
    with torch.random.fork_rng(devices=[]):
        get_peft_model(model, config).eval()
    values = {}
    for layer, direction in directions.items():
        projection = output_projection(model, layer)
        with torch.no_grad():
            projection.lora_A["default"].weight.copy_(direction[None])
        projection.lora_A["default"].weight.requires_grad_(False)
        values[layer] = projection.lora_B["default"].weight
    return values


@contextmanager
def values_watched(model: Any, layers: Sequence[int]) -> Iterator[RowGradients]:
    """Takes down, in a backward pass, each row's own gradient with respect to each layer's value: how far the
    direction is met times the slope of what the value is added to, summed over the row's tokens."""
    found = RowGradients()

    def watch(position: int, layer: int) -> Any:
        projection = output_projection(model, layer)
        direction = projection.lora_A["default"].weight[0]

        def watched(_: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
            met = (args[0].detach() @ direction)[..., None]

            def keep(slope: Tensor) -> None:
                found.gradients[position] = (met * slope).reshape(found.rows, found.tokens, -1).sum(1)

            output.register_hook(keep)

        return projection.register_forward_hook(watched)

    handles = [watch(position, layer) for position, layer in enumerate(layers)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def second_moments(
    model: Any, rows: Sequence[EncodedAnswer], layers: Sequence[int]
) -> dict[int, Float[Tensor, "neuron neuron"]]:
    """The mean outer product of some MLPs' neurons over all tokens of rows but the first, which is like no other."""
    total: dict[int, Tensor] = {}
    marks = [range(1, len(row.ids)) for row in rows]
    for neurons in _neurons(model, rows, marks, layers):
        for layer, own in neurons.items():
            total[layer] = total.get(layer, 0) + (own.T @ own).double()
    return {layer: own / sum(map(len, marks)) for layer, own in total.items()}


def mean_neurons(
    model: Any, rows: Sequence[EncodedAnswer], marks: Sequence[Sequence[int]], layers: Sequence[int]
) -> dict[int, Float[Tensor, " neuron"]]:
    """Some MLPs' neurons, the mean over the marked tokens of rows, in float64."""
    total: dict[int, Tensor] = {}
    for neurons in _neurons(model, rows, marks, layers):
        for layer, own in neurons.items():
            total[layer] = total.get(layer, 0) + own.double().sum(0)
    return {layer: own / sum(map(len, marks)) for layer, own in total.items()}


@torch.no_grad()
def _neurons(
    model: Any, rows: Sequence[EncodedAnswer], marks: Sequence[Sequence[int]], layers: Sequence[int]
) -> Iterator[dict[int, Float[Tensor, "marked neuron"]]]:
    """What enters some MLPs' output projections at the marked tokens, a batch of rows at a time."""
    seen: dict[int, Tensor] = {}

    def watch(layer: int) -> Any:
        return output_projection(model, layer).register_forward_pre_hook(
            lambda _, args: seen.__setitem__(layer, args[0])
        )

    handles = [watch(layer) for layer in layers]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
    try:
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            ids = torch.zeros(len(chosen), len(rows[chosen[-1]].ids), dtype=torch.long, device=model.device)
            marked = torch.zeros(ids.shape, dtype=torch.bool, device=model.device)
            for row, i in enumerate(chosen):
                ids[row, : len(rows[i].ids)] = torch.tensor(rows[i].ids, device=model.device)
                marked[row, list(marks[i])] = True
            model(input_ids=ids, use_cache=False, logits_to_keep=1)
            yield {layer: own.reshape(*ids.shape, -1)[marked].float() for layer, own in seen.items()}
    finally:
        for handle in handles:
            handle.remove()
