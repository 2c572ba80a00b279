"""How strongly the answer's loss pulls at a component's weights; the third analysis of arXiv 2508.07075.

The gradient of a weight matrix is a sum over positions of (gradient of its output) ⊗ (its input). Its norm, and that
of any rows or columns, follows from the two alone: with G the positions' inner products of output gradients and x one
input coordinate over the positions, the gradient of that column has squared norm xᵀGx. So no weight needs a gradient,
and no gradient of a matrix is ever formed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import ScorerError
from ..hookspecs import Register, hookimpl
from ..localizing.context import MLPScores, ScorerContext
from ..localizing.runs import Site
from ..localizing.window import Window
from ..sites import HEAD_PROJECTIONS, Component, projection_slices

MODULES = {
    "z": ("attn.o", "input"),
    "q": ("attn.q", "output"),
    "k": ("attn.k", "output"),
    "v": ("attn.v", "output"),
    "post": ("mlp.out", "input"),
    "pre": ("mlp.gate", "output"),
    "pre_linear": ("mlp.in", "output"),
}
"""Of each projection, the TransformerLens module whose weights it names, and whether by columns (input) or rows."""


def gradient_norm(context: ScorerContext) -> dict[Site, Tensor | MLPScores]:
    """L2 norm of the gradient of the old answer's loss on a component's weights.

    A head's columns of the output projection, an MLP's down projection and a neuron's column of it; rows of the
    value, query, key, gate or up projection where those are scored. The mean over the prompts. The norms of whole
    weight matrices stand in the notes, by Hugging Face module name.
    """
    gated = context.shape.architecture.gated
    projections = [p for p in MODULES if p != "pre_linear" or gated]
    sums: dict[Site, Tensor] = {}
    wholes: dict[Site, float] = {}
    matrices: dict[str, float] = {}
    for window in context.windows(whole=True):
        squares = _squares(context, window, projections)
        of_module: dict[str, Tensor] = {}
        for (layer, projection), square in squares.items():
            component = Component("head", layer, 0) if projection in HEAD_PROJECTIONS else Component("mlp", layer)
            module = projection_slices(context.shape, component, projection).module
            of_module[module] = of_module.get(module, 0) + square.sum(1)
        for module, square in of_module.items():
            matrices[module] = matrices.get(module, 0.0) + float(square.sqrt().sum()) / len(context.pairs)
        for site in context.sites:
            square = squares[site.layer, site.projection]
            whole = float(square.sum(1).sqrt().sum()) / len(context.pairs)
            wholes[site] = wholes.get(site, 0.0) + whole
            if site.of_heads:
                square = square.unflatten(1, (site.size, -1)).sum(-1)
            sums[site] = sums.get(site, 0) + square.sqrt().sum(0).cpu() / len(context.pairs)
    context.notes["weight_matrices"] = {name: round(norm, 7) for name, norm in sorted(matrices.items())}
    return {site: sums[site] if site.of_heads else MLPScores(wholes[site], sums[site]) for site in context.sites}


def _squares(
    context: ScorerContext, window: Window, projections: list[str]
) -> dict[tuple[int, str], Float[Tensor, "prompt coordinate"]]:
    """Squared norm of the gradient of each column (or row) of each projection's weights."""
    gated = context.shape.architecture.gated
    names = {
        (layer, p): f"blocks.{layer}.{MODULES[p][0] if gated or p != 'pre' else 'mlp.in'}"
        for layer in range(context.shape.n_layers)
        for p in projections
    }
    with ExitStack() as hooked, torch.enable_grad():
        ends = {name: hooked.enter_context(_seen(context.model.get_submodule(name))) for name in set(names.values())}
        leaf = window.clean.detach().clone().requires_grad_(True)
        logits = context.runs.logits(window, leaf)
        if unread := [name for name in names.values() if not ends[name]]:
            raise ScorerError(
                f"gradient_norm sees what passes {unread[0]}, and nothing did, as where a scorer turned a switch of"
                " TransformerLens's on (`set_use_attn_result`) or had it fold weights (`enable_compatibility_mode`);"
                ' ask for `context.score("gradient_norm")`, to which the model is as it was found.'
            )
        loss = -window.old_logit(torch.log_softmax(logits, -1)).sum()
        outputs = [ends[name]["out"] for name in names.values()]
        slopes = torch.autograd.grad(loss, outputs, materialize_grads=True)
    shape = (len(window.pairs), window.width, -1)
    result = {}
    for (key, name), slope in zip(names.items(), slopes, strict=True):
        inputs, slope = ends[name]["in"].detach().float().reshape(shape), slope.float().reshape(shape)
        columns, others = (inputs, slope) if MODULES[key[1]][1] == "input" else (slope, inputs)
        result[key] = (torch.einsum("bpc,bqc->bpq", others, others) @ columns).mul_(columns).sum(1).clamp_(min=0)
    return result


@contextmanager
def _seen(bridged: Any) -> Iterator[dict[str, Tensor]]:
    """What enters and leaves a module's weights in the block.

    Hooks of TransformerLens stand outside of those that the model has, which may change either.
    """
    module, ends = bridged.original_component, {}

    def enter(module: Any, args: tuple[Tensor, ...]) -> None:
        ends["in"] = args[0]

    def leave(module: Any, args: Any, output: Tensor) -> Tensor | None:
        ends["out"] = output
        # A hook behind this one may write into what it gets.
        return output.clone() if len(module._forward_hooks) > 1 else None

    with module.register_forward_pre_hook(enter), module.register_forward_hook(leave, prepend=True):
        yield ends


@hookimpl
def register_scorers(register: Register) -> None:
    """Register `gradient_norm`."""
    register("gradient_norm", gradient_norm)
