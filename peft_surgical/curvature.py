"""How far a change of scales moves the model elsewhere: their Fisher information, and steps measured with it.

A scale acts on every token. Which changes are quiet on other text and which are not is what a plain gradient of the
edit's loss does not say; the Fisher information of the scales does. With labels drawn from the model's own
distribution at the positions read, it is the mean of the squared gradients of their log-likelihood, and
`½ dᵀ F d` is the divergence from the model, in nats a position, that a small change `d` causes. The natural gradient
(Amari 1998), `F⁻¹ g`, is the step that lowers the edit's loss most for the divergence it costs.

Gradients of single tokens are squared instead of those of whole sequences (the "expand" setting of K-FAC,
arXiv 2311.00636): a few hundred answers then give full rank where whole sequences would give a few hundred directions.
Modules are taken as independent, and wide ones are cut into blocks, so that memory stays linear in the coordinates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .errors import ModelError
from .prompts import EncodedAnswer, span
from .suffix import SuffixRunner
from .tuner import SurgicalIA3Layer

# Coordinates that share a block; a block takes the square of it in float32, and its factor once more.
BLOCK = 2048


def trained_layers(model: nn.Module, adapter: str) -> list[SurgicalIA3Layer]:
    """The layers of a model that hold an adapter's scales, in the model's order."""
    return [m for m in model.modules() if isinstance(m, SurgicalIA3Layer) and adapter in m.coordinates]


@dataclass(frozen=True)
class Curvature:
    """Fisher information of an adapter's scales, in blocks along the diagonal.

    Attributes:
        blocks: For each layer the squares along its diagonal, `[block, block]`, float32, nats a position read.
    """

    blocks: tuple[tuple[Float[Tensor, "block block"], ...], ...]

    def __add__(self, other: Curvature) -> Curvature:
        return Curvature(
            tuple(
                tuple(a + b for a, b in zip(x, y, strict=True)) for x, y in zip(self.blocks, other.blocks, strict=True)
            )
        )

    def __rmul__(self, weight: float) -> Curvature:
        return Curvature(tuple(tuple(weight * block for block in layer) for layer in self.blocks))

    def metric(self, damping: float) -> Metric:
        """The metric for steps.

        Args:
            damping: Times the mean of a block's diagonal is added to it. It stands for what the sample did not show,
                and for the curvature between modules that blocks leave out.
        """
        factors = []
        for layer in self.blocks:
            own = []
            for block in layer:
                # A block that no token reached still needs a factor.
                level = (damping * block.diagonal().mean()).clamp_min(1e-12)
                own.append(torch.linalg.cholesky(block + level * torch.eye(len(block), device=block.device)))
            factors.append(tuple(own))
        return Metric(tuple(factors))


@dataclass(frozen=True)
class Metric:
    """Damped curvature, factored: turns gradients into steps.

    Attributes:
        factors: Lower triangular factors of the blocks.
    """

    factors: tuple[tuple[Float[Tensor, "block block"], ...], ...]

    @classmethod
    def identity(cls, parameters: Sequence[Tensor]) -> Metric:
        """The metric in which the natural gradient is the plain one."""
        return cls(tuple((torch.eye(len(p), device=p.device),) for p in parameters))

    def apply(self, changes: Sequence[Float[Tensor, " selected"]]) -> list[Float[Tensor, " selected"]]:
        """The gradient of the predicted divergence `½ dᵀ F d` at each layer's change of scales, nats."""
        made = []
        for change, layer in zip(changes, self.factors, strict=True):
            parts = change.split([len(factor) for factor in layer])
            made.append(torch.cat([factor @ (factor.T @ part) for part, factor in zip(parts, layer, strict=True)]))
        return made

    def natural(self, gradients: Sequence[Float[Tensor, " selected"]]) -> list[Float[Tensor, " selected"]]:
        """Natural gradients, one for each layer's gradient."""
        made = []
        for gradient, layer in zip(gradients, self.factors, strict=True):
            parts = gradient.split([len(factor) for factor in layer])
            solved = [torch.cholesky_solve(p[:, None], factor)[:, 0] for p, factor in zip(parts, layer, strict=True)]
            made.append(torch.cat(solved))
        return made


def measure_curvature(
    runner: SuffixRunner,
    layers: Sequence[SurgicalIA3Layer],
    adapter: str,
    indices: Sequence[int],
    rows: Sequence[EncodedAnswer],
    *,
    seed: int = 0,
    batch_size: int = 32,
    on_logits: Callable[[int, Float[Tensor, "position vocab"]], Any] | None = None,
) -> Curvature:
    """Estimates the Fisher information of an adapter's scales, where the model now is.

    Args:
        runner: Has taken in the rows.
        layers: Those of the adapter, active and trainable.
        adapter: Its name.
        indices: The rows' indices in the runner.
        rows: What to read: the distributions that predict their answers' tokens.
        seed: Draws the labels.
        batch_size: Rows a forward.
        on_logits: Called with each row's place in `rows` and the logits that predict its answer.

    Returns:
        The mean over positions read.

    Raises:
        ModelError: If a logit is not finite.
    """
    device = runner.device
    generator = torch.Generator(device=device).manual_seed(seed)
    widths = [layer.coordinates[adapter].n for layer in layers]
    total = [[torch.zeros(b, b, device=device) for b in _cut(width)] for width in widths]
    read = 0
    # Rows of like length are padded least.
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
    with _products(layers, adapter) as products:
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            products.clear()
            logits = runner.logits([indices[i] for i in chosen], [span(rows[i]) for i in chosen]).float()
            if not torch.isfinite(logits).all():
                raise ModelError("the model gives logits that are not finite on what is to be kept.")
            lengths = [stop - start for start, stop in (span(rows[i]) for i in chosen)]
            for i, part in zip(chosen, logits.detach().split(lengths), strict=True):
                if on_logits is not None:
                    on_logits(i, part)
            labels = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator)[:, 0]
            read += len(labels)
            nn.functional.cross_entropy(logits, labels, reduction="sum").backward()
            for layer, products_of in products.items():
                for made in products_of:
                    for block, part in zip(total[layer], made.split(_cut(widths[layer]), dim=-1), strict=True):
                        block.addmm_(part.T, part)
    for layer in layers:
        layer.surgical_ia3_delta[adapter].grad = None
    return Curvature(tuple(tuple(block / max(read, 1) for block in own) for own in total))


def _cut(width: int) -> list[int]:
    """Sizes of the blocks of a layer, as equal as they come."""
    count = -(-width // BLOCK)
    return [width // count + (i < width % count) for i in range(count)]


@contextmanager
def _products(layers: Sequence[SurgicalIA3Layer], adapter: str) -> Iterator[dict[int, list[Tensor]]]:
    """Collects, in a backward pass, each token's own gradient with respect to each scale: activation times slope.

    Tokens that nothing read depends on are left out.
    """
    found: dict[int, list[Tensor]] = {}

    def watch(position: int, layer: SurgicalIA3Layer) -> None:
        plain = layer.apply_scale
        index = layer.surgical_ia3_index[adapter]

        def selected(x: Tensor) -> Tensor:
            return x.detach().reshape(-1, layer.width).index_select(-1, index).float()

        def watched(x: Tensor, names: list[str]) -> Tensor:
            scaled = plain(x, names)
            if scaled.requires_grad:
                multiplied = selected(x) * layer.others_scale(adapter, names).detach()

                def keep(slope: Tensor) -> None:
                    product = multiplied * selected(slope)
                    found.setdefault(position, []).append(product[product.any(-1)])

                scaled.register_hook(keep)
            return scaled

        layer.apply_scale = watched  # type: ignore[method-assign]

    try:
        for position, layer in enumerate(layers):
            watch(position, layer)
        yield found
    finally:
        for layer in layers:
            layer.__dict__.pop("apply_scale", None)
