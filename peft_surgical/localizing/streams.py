"""What the layers read and write at some tokens of a prompt, patched: the rows of a causal trace.

A row takes one layer's `resid_pre`, `attn_out` or `mlp_out`, or several layers' of these, at a group of positions from
the other run. As everywhere, a row is born at its first layer, and all rows of a prompt are one batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import ModelError, brief, said
from ..sites import STREAMS, ModelShape
from .corruption import PromptPair
from .patching import At, Patch, patch_together
from .runs import Runs, Site
from .window import Window

Direction = Literal["noising", "denoising"]
DIRECTIONS: tuple[Direction, ...] = ("noising", "denoising")


def layers_around(layer: int, window: int, n_layers: int) -> range:
    """The layers that ROME patches together for one in their middle, fewer at the ends."""
    return range(max(0, layer - window // 2), min(n_layers, layer - (-window // 2)))


@torch.no_grad()
def traced(
    runs: Runs,
    shape: ModelShape,
    pair: PromptPair,
    groups: Sequence[Sequence[int]],
    direction: Direction,
    window: int,
    max_tokens: int,
) -> Float[Tensor, "stream layer group"]:
    """The share of the logit difference that moves with what one stream of one layer has at a group of positions.

    Args:
        runs: The model, in float32.
        shape: Its sizes.
        pair: The prompt.
        groups: Positions that are taken together. Before the first where the two runs differ nothing has to be run.
        direction: `noising` takes them from the corrupted run into the clean one, and the share is what is lost;
            `denoising` from the clean run into the corrupted one, and the share is what is recovered.
        window: Of `attn_out` and `mlp_out`, how many layers are taken together, around each.
        max_tokens: Rows × positions of one forward pass.

    Returns:
        On the scale where nothing taken is 0 and all of a `resid_pre` is 1, float64.

    Raises:
        ModelError: When a patched run gives logits that are not finite, or TransformerLens lacks a hook point.
    """
    view = runs.window([pair])
    sites = [[Site(stream, layer, shape.d_model) for layer in range(shape.n_layers)] for stream in STREAMS]
    patched, other = view.clean, view.corrupted
    if direction == "denoising":
        patched, other = other, patched
    sources, logits = _captured(runs, view, other, [site for stream in sites for site in stream])
    patches: list[Patch] = []
    places: list[tuple[int, int, int]] = []
    for number, group in enumerate(groups):
        differing = [position - view.start for position in group if position >= pair.first]
        if not differing:
            continue
        at = At(torch.tensor(differing, device=runs.device))
        for stream, of_layers in enumerate(sites):
            for layer in range(shape.n_layers):
                around = layers_around(layer, window if stream else 1, shape.n_layers)
                patches.append({of_layers[each]: at for each in around})
                places.append((stream, layer, number))
    found = torch.zeros(len(STREAMS), shape.n_layers, len(groups), dtype=torch.float64, device="cpu")
    if not patches:
        return found
    values = patch_together(runs, view, patches, sources, max_tokens, view.difference, embeddings=patched)
    before, after = values.double().cpu(), view.difference(logits).double().cpu()
    if not bool(before.isfinite().all()):
        raise ModelError(f"the model answers {brief(pair.prompt)}, patched, with logits that are not finite.")
    # Not -0 where a patch changes nothing.
    found[tuple(torch.tensor(places, device="cpu").T)] = (before[1:] - before[0]) / (after - before[0]) + 0.0
    return found


def _captured(
    runs: Runs, view: Window, embeddings: Tensor, sites: Sequence[Site]
) -> tuple[dict[Site, Tensor], Float[Tensor, "prompt vocab"]]:
    """What the other run has at each site; a hook point that there is not, or that nothing passes, is refused."""
    try:
        sources, logits = runs.capture(view, embeddings, sites)
        missing = [site.name for site in sites if site not in sources]
    except (KeyError, NotImplementedError) as error:
        raise ModelError(_missing(runs, said(error))) from error
    if missing:
        raise ModelError(_missing(runs, f"nothing passes {missing[0]}"))
    return sources, logits


def _missing(runs: Runs, why: str) -> str:
    kind = type(runs.bridge.original_model).__name__
    return f"a {kind} cannot be traced: TransformerLens does not show what its layers read and write ({why})."
