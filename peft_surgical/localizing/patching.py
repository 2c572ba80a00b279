"""Exact activation patching of many components in one forward pass.

Patching takes a clean run, gives one component the activation of another run, and looks at what the logits lose. One
forward pass a component computes the layers below it again each time. Here the pass begins with one clean row, and a
component's row is *born* at its own layer as a copy of the clean row: no layer below is computed twice, and all
components go through the layers above as rows of one batch. Only where a model cannot take more rows on the way, as
GPT-BigCode, are all there from the first layer on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..sites import ModelShape
from .runs import Runs, Site
from .window import Window

Sources = Mapping[Site, Tensor]


@dataclass(frozen=True, eq=False)
class At:
    """All of a site, at some positions of the window only."""

    positions: Int[Tensor, " position"]


Patch = Mapping[Site, int | Int[Tensor, " item"] | At | None]
"""What one row takes from elsewhere: of each site one head, some heads or neurons, or all, which is `None`, or [`At`]
where not everywhere."""


@dataclass(frozen=True)
class Target:
    """What one row patches: a head of a site, or a whole MLP (`index` is `None`)."""

    site: Site
    index: int | None = None


def targets_of(sites: Sequence[Site]) -> list[Target]:
    """Every head and every MLP of these sites."""
    return [Target(site, index) for site in sites for index in (range(site.size) if site.of_heads else (None,))]


def component_of(target: Target, shape: ModelShape) -> str:
    """The component that a target patches; of query heads that share a key/value head, the first.

    Args:
        target: What is patched.
        shape: The model's sizes.
    """
    layer, size = target.site.layer, target.site.size
    return f"L{layer}.mlp" if target.index is None else f"L{layer}.head.{target.index * shape.n_heads // size}"


@torch.no_grad()
def patch(
    runs: Runs,
    window: Window,
    targets: Sequence[Target],
    sources: Sources,
    max_tokens: int,
    read: Callable[[Float[Tensor, "row vocab"]], Tensor] = lambda logits: logits,
) -> Tensor:
    """What the logits are when one target at a time is taken from `sources` in the clean run.

    Args:
        runs: The model.
        window: Exactly one prompt. Outside it nothing is patched.
        targets: In any order.
        sources: Of every target's site, an activation `[1, pos, head, d_head]` or `[1, pos, neuron]`.
        max_tokens: Bounds the memory: rows × positions of one pass.
        read: What to keep of each row's logits; all unless given.

    Returns:
        One row a target, float32, in the order of `targets`.
    """
    patches: list[Patch] = [{target.site: target.index} for target in targets]
    return patch_together(runs, window, patches, sources, max_tokens, read)[1:]


@torch.no_grad()
def patch_together(
    runs: Runs,
    window: Window,
    patches: Sequence[Patch],
    sources: Sources,
    max_tokens: int,
    read: Callable[[Float[Tensor, "row vocab"]], Tensor],
    *,
    embeddings: Float[Tensor, "1 pos d_model"] | None = None,
) -> Tensor:
    """What the logits are of the clean run, and when all that a patch names is taken from `sources` in it.

    Args:
        runs: The model.
        window: Exactly one prompt. Outside it nothing is patched.
        patches: At least one, in any order, none empty.
        sources: As for [`patch`].
        max_tokens: Bounds the memory: rows × positions of one pass.
        read: What to keep of each row's logits.
        embeddings: Of another run to patch; the clean one unless given.

    Returns:
        The row of the run that is patched, and one a patch, float32, in the order of `patches`.
    """
    base = window.clean if embeddings is None else embeddings
    order = sorted(range(len(patches)), key=lambda i: _first(patches[i]))
    rows: dict[int, Tensor] = {}
    size = max(1, max_tokens // window.width - 1)
    for chunk in (order[start : start + size] for start in range(0, len(order), size)):
        plain, *kept = read(_grow(runs, window, base, [patches[i] for i in chunk], sources))
        rows.setdefault(-1, plain)
        rows.update(zip(chunk, kept, strict=True))
    return torch.stack([rows[i] for i in range(-1, len(patches))])


def _first(patch: Patch) -> int:
    """The first layer in which a patched row differs from the one that it is a copy of."""
    return min(site.layer for site in patch)


def _grow(runs: Runs, window: Window, embeddings: Tensor, patches: Sequence[Patch], sources: Sources) -> Tensor:
    """One pass; the first layers of `patches` ascend, so row `i + 1` is the one of patch `i`, and row 0 unpatched."""
    hooks: list[tuple[str, Any]] = []
    by_site: dict[Site, list[tuple[int, Any]]] = {}
    born: dict[int, int] = {}
    for row, patch in enumerate(patches, 1):
        born[_first(patch)] = born.get(_first(patch), 0) + 1
        for site, items in patch.items():
            by_site.setdefault(site, []).append((row, items))

    def grow(count: int) -> Any:
        return lambda tensor, hook: torch.cat([tensor, tensor[:1].expand(count, -1, -1)])

    def write(site: Site, parts: list[tuple[int, Any]]) -> Any:
        def hook(tensor: Tensor, hook: Any) -> Tensor:
            source = sources[site].to(tensor)[0]
            value = tensor.reshape(_shape(tensor, site, window)).clone()
            for row, items in parts:
                if items is None:
                    value[row] = source
                elif isinstance(items, At):
                    value[row, items.positions] = source[items.positions]
                else:
                    value[row][:, items] = source[:, items]
            return value.reshape(tensor.shape)

        return hook

    if runs.can_grow:
        # Before what writes at the same hook point.
        hooks += [(f"blocks.{layer}.hook_in", grow(count)) for layer, count in born.items()]
    else:
        embeddings = embeddings.expand(1 + len(patches), -1, -1)
    hooks += [(site.name, write(site, parts)) for site, parts in by_site.items()]
    return runs.logits(window, embeddings, hooks)


def _shape(tensor: Tensor, site: Site, window: Window) -> tuple[int, ...]:
    """`[row, pos, head, d_head]` or `[row, pos, neuron]`, also where a model flattens rows and positions (OPT)."""
    width = window.width
    if site.of_heads:
        d_head = tensor.shape[-1] if tensor.ndim == 4 else tensor.shape[-1] // site.size
        return (tensor.numel() // (width * site.size * d_head), width, site.size, d_head)
    return (tensor.numel() // (width * site.size), width, site.size)
