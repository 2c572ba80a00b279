"""How far scales of neurons move the residual stream, at every token of some texts, in closed form.

An MLP's output projection W reads neurons h. Scaling them by `1 + d` adds `W (d ∘ h)` to the residual stream r of that
token, so over many tokens the squared length of what is added, relative to what it is added to, is

    Σ ‖W (d ∘ h)‖² / ‖r‖²  =  dᵀ [ (Wᵀ W) ∘ C ] d        with  C = Σ h hᵀ / ‖r‖²

It is exact, of full rank, needs no labels and no backward pass, and costs one pass over the texts up to the last
scaled layer. C is the uncentred covariance of keys that ROME (arXiv 2202.05262) inverts for a change of weights; the
elementwise product with `Wᵀ W` is what a change of scales makes of it. Layers are taken as independent of each other.

Where an RMS norm with gains g stands between the MLP and the residual stream (Gemma 3), it divides by the root mean
square m of what enters it. What counts is `g ∘ W (d ∘ h) / m`: what a small change leaves it as, but for the norm's
taking away what goes along its input, which shortens the change unless gains are unlike there.
Where a model multiplies by a factor what its MLPs write (Granite), W is that much longer or shorter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..architectures import architecture_of, decoder_layers, output_projections, residual_factor
from ..errors import SelectionError
from ..running.devices import input_device
from ..running.forwards import handed_on, passed_over, read_at
from ..running.modes import told_places
from ..tuner import SurgicalIA3Layer
from ..tuner.targets import find_module, weight_of
from ..tuner.unchanged import base_of
from .solving import solved_with

Tokens = Sequence[int]
NEURONS_ONLY = (
    "learning by subject scales neurons of MLPs and nothing else; give a config of MLPs with projections=['post']."
)


@dataclass(frozen=True)
class Displacement:
    """The quadratic form of each layer's change of scales: together, the mean squared relative displacement by it.

    Attributes:
        forms: For each layer a symmetric matrix, float32; the mean over tokens.
    """

    forms: tuple[Float[Tensor, "selected selected"], ...]

    def __add__(self, other: Displacement) -> Displacement:
        return Displacement(tuple(a + b for a, b in zip(self.forms, other.forms, strict=True)))

    def __rmul__(self, weight: float) -> Displacement:
        return Displacement(tuple(weight * form for form in self.forms))

    def factors(self, damping: float) -> list[Float[Tensor, "selected selected"]]:
        """Lower triangular factors, one a layer.

        Args:
            damping: Times the mean of a layer's diagonal is added to its diagonal: texts are few for many neurons.

        Raises:
            ModelError: If a layer has no such factor.
        """
        made = []
        for form in self.forms:
            damped = form.clone()
            # Where no text reached anything, a step still has to have a length.
            damped.diagonal().add_(damping * form.diagonal().mean().clamp_min(1e-12))
            with solved_with("damping", damping):
                made.append(torch.linalg.cholesky(damped))
        return made


def neuron_modules(model: Any, selections: Mapping[str, Any]) -> dict[str, int]:
    """Which decoder layer each selected module belongs to, ascending.

    Args:
        model: A causal language model, with an adapter's layers in it or without.
        selections: As a resolved `SurgicalIA3Config` has them.

    Raises:
        SelectionError: If anything but neurons of MLPs is selected, or what the model does not have, or its weights
            are quantized.
    """
    every = output_projections(model)
    if not selections or any(name not in every or spec["side"] != "input" for name, spec in selections.items()):
        raise SelectionError(NEURONS_ONLY)
    for name in selections:
        find_module(model, name)
    weights = [model.get_submodule(name).weight for name in selections]
    # Of a module of packed weights it is a method.
    if not all(isinstance(weight, Tensor) and weight.is_floating_point() for weight in weights):
        raise SelectionError("learning by subject reads the weights of MLPs, and this model's are quantized.")
    return {name: i for name, i in every.items() if name in selections}


@torch.no_grad()
def measure_displacement(
    model: Any,
    modules: Mapping[str, int],
    adapter: str,
    rows: Sequence[Tokens],
    *,
    leave_out: Sequence[Sequence[int]] | None = None,
    batch_size: int = 64,
) -> Displacement:
    """Measures it where the base is, whatever scales `model` has.

    Args:
        model: A causal language model with the adapter's layers in it.
        modules: Those of the adapter, from [`neuron_modules`].
        adapter: Its name.
        rows: Texts as token ids. All tokens but the first count: the first one's residual stream is like no other's.
        leave_out: For each row the positions that do not count; none when None.
        batch_size: Rows a forward.
    """
    stack = decoder_layers(model)
    layers = [model.get_submodule(name) for name in modules]
    blocks = [stack[i] for i in modules.values()]
    norms = [_norm_of(model, block) for block in blocks]
    above = 1 + max(modules.values())
    head = model.get_output_embeddings()
    leave_out = leave_out or [()] * len(rows)
    sums = [torch.zeros((), dtype=torch.float32, device="cpu") for _ in layers]
    count = 0
    # Rows of like length are padded least.
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        width = max(len(rows[i]) for i in chosen)
        device = input_device(model)
        ids = torch.tensor([[*rows[i], *[0] * (width - len(rows[i]))] for i in chosen], device=device)
        counts = torch.zeros(ids.shape, dtype=torch.bool, device=device)
        for row, i in enumerate(chosen):
            counts[row, 1 : len(rows[i])] = True
            counts[row, list(leave_out[i])] = False
        none = torch.zeros_like(counts)
        with base_of(model), passed_over(stack, above), read_at(head, none), _read(layers, blocks) as seen:
            model(input_ids=ids, use_cache=False, **told_places(model, 0, width))
        count += int(counts.sum())
        for place, layer in enumerate(layers):
            # OPT lays the tokens of all rows one after the other before its MLPs.
            entering, made, leaving = (states.reshape(*ids.shape, -1) for states in seen[place])
            index = layer.index(adapter, entering.device)
            neurons = entering[counts.to(entering.device)].float().index_select(-1, index)
            lengths = leaving[counts.to(leaving.device)].float().norm(dim=-1, keepdim=True)
            if norms[place] is not None:
                divisor = made[counts.to(made.device)].float().square().mean(-1, keepdim=True).sqrt()
                lengths = lengths * divisor.to(lengths)
            neurons = neurons / lengths.clamp_min(1e-6).to(neurons)
            sums[place] = sums[place].to(neurons) + neurons.T @ neurons
    forms = []
    for total, layer, norm in zip(sums, layers, norms, strict=True):
        weight = weight_of(layer).float()
        weight = residual_factor(model) * weight[:, layer.index(adapter, weight.device)]
        if norm is not None:
            # What a norm makes of ones are its gains, whichever way it holds them.
            weight = norm(torch.ones_like(weight[:, 0]))[:, None] * weight
        forms.append((weight.T @ weight) * total / max(count, 1))
    return Displacement(tuple(forms))


def _norm_of(model: Any, block: nn.Module) -> nn.Module | None:
    name = architecture_of(model.config.model_type).mlp_norm
    return None if name is None else block.get_submodule(name)


@contextmanager
def _read(layers: Sequence[SurgicalIA3Layer], blocks: Sequence[nn.Module]) -> Iterator[dict[int, list[Tensor]]]:
    """What enters each scaled layer, what leaves it and what leaves its block, by its place."""
    seen: dict[int, list[Tensor]] = {place: [] for place in range(len(layers))}
    with ExitStack() as hooked:
        for own, layer, block in zip(seen.values(), layers, blocks, strict=True):
            for handle in (
                layer.register_forward_pre_hook(lambda _, args, own=own: own.append(args[0])),
                layer.register_forward_hook(lambda _, __, out, own=own: own.append(out)),
                block.register_forward_hook(lambda _, __, out, own=own: own.append(handed_on(out))),
            ):
                hooked.enter_context(handle)
        yield seen
