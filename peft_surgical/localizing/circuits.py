"""Selections run as circuits: all that is selected taken from the corrupted run at once, or all else.

A head is taken at `z`, what it hands to the output projection, and an MLP at `post`, its neurons after the activation
function. What is no component is never taken: embeddings of tokens and positions, norms, biases, and what a head or an
MLP computes of what others changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..errors import ModelError, brief
from ..ranges import united_index
from ..selection import Selection
from ..sites import DEFAULT_PROJECTIONS, Component, ModelShape
from .corruption import PromptPair
from .patching import Patch, patch_together
from .runs import Runs, Site, sites_of


def random_selections(selection: Selection, shape: ModelShape, count: int, seed: int) -> list[Selection]:
    """Selections of as many heads, as many MLPs and as many neurons of them, drawn from all that the model has.

    Args:
        selection: What they are to be as large as.
        shape: The model's sizes.
        count: How many.
        seed: For the draws, which are independent; two may be the same.

    Returns:
        As many as asked for, or none where no other selection is as large.
    """
    if is_alone(selection, shape):
        return []
    generator = torch.Generator(device="cpu").manual_seed(seed)
    some = selection.neurons or {}
    widths = [sum(stop - start for start, stop in some[mlp]) if mlp in some else None for mlp in selection.mlps]

    def draw(total: int, taken: int) -> list[int]:
        return torch.randperm(total, generator=generator, device="cpu")[:taken].tolist()

    found = []
    for _ in range(count):
        heads = draw(shape.n_layers * shape.n_heads, len(selection.heads))
        mlps = [f"L{layer}.mlp" for layer in draw(shape.n_layers, len(selection.mlps))]
        neurons = {
            mlp: united_index(draw(shape.d_mlp, width))
            for mlp, width in zip(mlps, widths, strict=True)
            if width is not None
        }
        names = [f"L{head // shape.n_heads}.head.{head % shape.n_heads}" for head in heads]
        found.append(Selection((*sorted(names), *sorted(mlps)), shape, neurons or None))
    return found


def is_alone(selection: Selection, shape: ModelShape) -> bool:
    """Whether no other selection has as many heads, MLPs and neurons: of each kind it has none or all."""
    heads = len(selection.heads) in (0, shape.n_layers * shape.n_heads)
    return heads and len(selection.mlps) in (0, shape.n_layers) and not selection.neurons


@torch.no_grad()
def kept(
    runs: Runs,
    shape: ModelShape,
    pairs: Iterable[PromptPair],
    circuits: Sequence[Selection],
    max_tokens: int,
) -> tuple[Float[Tensor, "prompt circuit"], Float[Tensor, "prompt circuit"]]:
    """What is left of the logit difference when a circuit alone stays clean, and when it alone does not.

    Args:
        runs: The model, in float32.
        shape: Its sizes.
        pairs: The prompts, one at least.
        circuits: What is taken together. One that is given twice is run once.
        max_tokens: Rows × positions of one forward pass.

    Returns:
        Both on the scale where the corrupted run is 0 and the clean run 1, float64.

    Raises:
        ModelError: When a patched run gives logits that are not finite.
    """
    sites = sites_of(shape, DEFAULT_PROJECTIONS)
    plain = [Selection(tuple(sorted(one.components)), shape, one.neurons) for one in circuits]
    patches: list[Patch] = []
    rows: dict[Selection, tuple[int, int]] = {}
    for one in dict.fromkeys(plain):
        both = []
        for patch in (_outside(one, sites), _inside(one, sites)):
            # Of the clean run, row 0, a patch of nothing takes nothing.
            patches += [patch] if patch else []
            both.append(len(patches) if patch else 0)
        rows[one] = (both[0], both[1])
    found = []
    for pair in pairs:
        window = runs.window([pair])
        sources, logits = runs.capture(window, window.corrupted, sites)
        values = patch_together(runs, window, patches, sources, max_tokens, window.difference).double().cpu()
        if not bool(values.isfinite().all()):
            raise ModelError(f"the model answers {brief(pair.prompt)}, patched, with logits that are not finite.")
        corrupted = window.difference(logits).double().cpu()
        found.append((values - corrupted) / (values[0] - corrupted))
    shares = torch.stack(found)
    return shares[:, [rows[one][0] for one in plain]], shares[:, [rows[one][1] for one in plain]]


def _inside(selection: Selection, sites: Sequence[Site]) -> Patch:
    return {site: _items(mask) for site, mask in _masks(selection, sites).items() if bool(mask.any())}


def _outside(selection: Selection, sites: Sequence[Site]) -> Patch:
    return {site: _items(~mask) for site, mask in _masks(selection, sites).items() if not bool(mask.all())}


def _masks(selection: Selection, sites: Sequence[Site]) -> dict[Site, Bool[Tensor, " item"]]:
    """Which heads and neurons of each site are selected."""
    masks = {site: torch.zeros(site.size, dtype=torch.bool, device="cpu") for site in sites}
    places = {(site.layer, site.of_heads): mask for site, mask in masks.items()}
    some = selection.neurons or {}
    for name in selection.components:
        component = Component.parse(name)
        mask = places[component.layer, component.index is not None]
        whole = (0, len(mask)) if component.index is None else (component.index, component.index + 1)
        for start, stop in some.get(name, (whole,)):
            mask[start:stop] = True
    return masks


def _items(mask: Bool[Tensor, " item"]) -> Int[Tensor, " item"] | None:
    return None if bool(mask.all()) else mask.nonzero()[:, 0]
