"""A closed-form (IA)³ edit: the counterpart, for scales, of what ROME does to weights.

ROME's δ is what the output projection W of one MLP should give more of at the subject's last token, where its input
(its neurons) is k. Scaling the neurons by 1 + s moves that output by `W (k ∘ s) = A s`, with `A = W diag(k)`, and
other text by the quadratic form F that [`displacement_kept`] measures, of general questions and of the prompt with
other names in it. Of all s that reach δ the one that moves the other text least solves

    min ½ sᵀ F s  where  A s = δ,   so   s = F⁻¹ Aᵀ (A F⁻¹ Aᵀ)⁻¹ δ

and a ridge on either side makes both inverses exist. The product is a plain (IA)³ adapter. ROME's update changes what
one direction of neurons writes; scales have to do it neuron by neuron, whoever else uses them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

import peft_surgical as ps
from peft_surgical.architectures import output_projections
from peft_surgical.staging.by_subject import displacement_kept
from peft_surgical.staging.stage import LEARN, place_adapter
from peft_surgical.staging.subject_texts import NamedRows
from peft_surgical.tuner.targets import weight_of

from .method import Request
from .mlps import edited_layer
from .restoring import adapters_taken_off
from .rome import key_and_delta
from .values import Objective


@dataclass(frozen=True)
class ClosedFormIA3:
    """Solves for the scales of one MLP's neurons.

    Attributes:
        learning_rate: Adam's, for δ.
        layer: Which MLP; see [`edited_layer`] when None.
        damping: This multiple of the mean of F's diagonal is added to its diagonal.
        slack: This multiple of the mean of the diagonal of `A F⁻¹ Aᵀ` is added to its diagonal: how far from δ the
            change may end where the last of it costs most.
    """

    name: ClassVar[str] = "ia3_closed"
    learning_rate: float = 0.5
    layer: int | None = None
    damping: float = 0.1
    slack: float = 0.03

    @contextmanager
    def edit(self, model: Any, tokenizer: Any, request: Request, seed: int) -> Iterator[None]:
        """Puts the adapter on, and takes it off afterwards."""
        layer = edited_layer(model, self.layer)
        found = key_and_delta(model, tokenizer, request, layer, self.learning_rate)
        with adapters_taken_off(model):
            name = next(name for name, index in output_projections(model).items() if index == layer)
            config = ps.SurgicalIA3Config(components=[f"L{layer}.mlp"], projections=["post"], task_type="CAUSAL_LM")
            place_adapter(model, LEARN, config, [])
            named, recipe = NamedRows.of(model, tokenizer, request.fact), ps.SubjectRecipe()
            kept = displacement_kept(model, {name: layer}, tokenizer, request.fact, named, recipe, seed)
            scaled = model.get_submodule(name)
            change = solve(weight_of(scaled), found.key, found.delta, kept.forms[0], self.damping, self.slack)
            with torch.no_grad():
                scaled.surgical_ia3_delta[LEARN].copy_(change)
            yield

    def recipe(self, model: Any) -> dict[str, Any]:
        """ROME's constants for δ, what texts decide F, and the layer."""
        texts = {name: getattr(ps.SubjectRecipe(), name) for name in ("general", "names", "other_weight")}
        return {**Objective().recipe(), **texts, "layer": edited_layer(model, self.layer)}


def solve(
    weight: Float[Tensor, "model neuron"],
    key: Float[Tensor, " neuron"],
    delta: Float[Tensor, " model"],
    form: Float[Tensor, "neuron neuron"],
    damping: float,
    slack: float,
) -> Float[Tensor, " neuron"]:
    """The change of scales that moves the output at `key` by `delta` and other text least, float32.

    Args:
        weight: The output projection's.
        key: What enters it at the subject.
        delta: What shall leave it more.
        form: What a change of scales moves other text by.
        damping: See [`ClosedFormIA3`].
        slack: Likewise.
    """
    reach, cost = weight.double() * key.double(), form.double().clone()
    cost.diagonal().add_(damping * form.diagonal().double().mean())
    along = torch.linalg.solve(cost, reach.T)
    inner = reach @ along
    inner.diagonal().add_(slack * inner.diagonal().mean())
    change: Tensor = along @ torch.linalg.solve(inner, delta.double())
    return change.float()
