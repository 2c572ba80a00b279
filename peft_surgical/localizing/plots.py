"""`localization.png`: for each scorer a layer × head and a layer × MLP heatmap, with the selection outlined.

And `trace.png`: for each stream of a causal trace a layer × token heatmap.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from ..errors import MissingPackageError, OutputError
from ..profiling import phase
from ..selection import Selection
from ..sites import STREAMS, Component
from ..writing.files import write_bytes
from .results import Localization
from .token_classes import CLASSES

if TYPE_CHECKING:
    from .traces import CausalTrace

_LARGEST = 1e300


@phase("picture")
def plot_localization(localization: Localization, selection: Selection | None, path: str | os.PathLike[str]) -> None:
    """Draw the scores of every scorer.

    Heads and MLPs have colour scales of their own, with 0 in the middle where there are negative scores; a component
    without a score is left grey.

    Args:
        localization: The scores.
        selection: What to outline; nothing when `None`.
        path: The image to write; its ending decides the format (`.png`, `.svg`, `.pdf`).

    Raises:
        MissingPackageError: When matplotlib is not installed.
        SelectionError: When the selection is not of the model that was localized.
        OutputError: When the image cannot be written, or no scorer gave scores to draw.
    """
    if not localization.tables:
        raise OutputError(f"{path} cannot be drawn: no scorer gave scores.")
    if selection is not None:
        selection.check(localization.shape)
    _save(_figure(localization, selection), Path(path))


@phase("picture")
def plot_trace(trace: CausalTrace, path: str | os.PathLike[str]) -> None:
    """Draw the means of a causal trace.

    Each stream has a colour scale of its own, with 0 in the middle where there are negative shares; a class that no
    prompt has is left out.

    Args:
        trace: What was measured.
        path: The image to write; its ending decides the format (`.png`, `.svg`, `.pdf`).

    Raises:
        MissingPackageError: When matplotlib is not installed.
        OutputError: When the image cannot be written, or no prompt was measured.
    """
    if not trace.prompts:
        raise OutputError(f"{path} cannot be drawn: no prompt was measured.")
    _save(_trace_figure(trace), Path(path))


def _trace_figure(trace: CausalTrace) -> Any:
    layers, had = trace.shape.n_layers, [number for number, n in enumerate(trace.n) if n]
    tall = 0.35 + 0.16 * len(had)
    figure = _canvas(3.4 + 0.16 * layers, len(STREAMS) * (tall + 0.4))
    axes = figure.subplots(len(STREAMS), 1, squeeze=False, sharex=True)[:, 0]
    moved = "lost" if trace.direction == "noising" else "recovered"
    for axis, stream, grid in zip(axes, STREAMS, trace.mean, strict=True):
        _heatmap(figure, axis, grid[:, had].T).set_label(f"share {moved}", fontsize=7)
        around = trace.window > 1 and stream != STREAMS[0]
        title = f"{stream} of {trace.window} layers together" if around else stream
        axis.set_title(title, fontsize=9, loc="left", parse_math=False)
        axis.set_yticks(range(len(had)), [list(CLASSES.values())[number] for number in had])
        axis.tick_params(labelsize=7, length=2)
    _label_layers(axes[-1], layers)
    return figure


def _canvas(width: float, height: float) -> Any:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingPackageError(
            "drawing needs matplotlib; install it with `pip install 'peft-surgical[plot]'`."
        ) from error
    # No pyplot: it keeps global state and may open a window.
    figure = Figure(figsize=(width, height), dpi=200, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _label_layers(axis: Any, layers: int) -> None:
    axis.set_xlabel("layer", fontsize=8)
    axis.set_xticks(range(0, layers, max(1, layers // 15)))


def _figure(localization: Localization, selection: Selection | None) -> Any:
    names = list(localization.tables)
    shape = localization.shape
    rows, width = len(names), 2.2 + 0.16 * shape.n_layers
    tall = 0.35 + 0.11 * max(4, min(shape.n_heads, 40))
    figure = _canvas(width, rows * (tall + 1.05))
    axes = figure.subplots(2 * rows, 1, squeeze=False, height_ratios=[tall, 0.22] * rows, sharex=True)[:, 0]
    chosen = () if selection is None else selection.components
    for row, name in enumerate(names):
        upper, lower = axes[2 * row], axes[2 * row + 1]
        _heatmap(figure, upper, localization.head_scores(name).T).set_label("score", fontsize=7)
        _heatmap(figure, lower, localization.mlp_scores(name)[None])
        _outline(upper, lower, chosen)
        upper.set_title(name, fontsize=9, loc="left", parse_math=False)
        upper.set_ylabel("head", fontsize=8)
        upper.set_yticks(range(0, shape.n_heads, max(1, shape.n_heads // 8)))
        lower.set_yticks([0], ["MLP"])
        for axis in (upper, lower):
            axis.tick_params(labelsize=7, length=2)
    _label_layers(axes[-1], shape.n_layers)
    return figure


def _heatmap(figure: Any, axis: Any, grid: Float[np.ndarray, "row layer"]) -> Any:
    """Draws the scores; the colour bar."""
    # The span of the colours would overflow.
    grid = np.clip(grid, -_LARGEST, _LARGEST)
    size = (float(np.nanmax(np.abs(grid))) if np.isfinite(grid).any() else 0.0) or 1.0
    signed = bool((np.nan_to_num(grid) < 0).any())
    image = axis.imshow(
        grid,
        aspect="auto",
        interpolation="nearest",
        cmap="RdBu_r" if signed else "Reds",
        vmin=-size if signed else 0.0,
        vmax=size,
    )
    axis.set_facecolor("0.85")
    bar = figure.colorbar(image, ax=axis, pad=0.01, aspect=12 if grid.shape[0] > 1 else 2, fraction=0.04)
    bar.ax.tick_params(labelsize=6, length=2)
    bar.ax.locator_params(nbins=5 if grid.shape[0] > 1 else 2)
    return bar


def _outline(upper: Any, lower: Any, names: tuple[str, ...]) -> None:
    from matplotlib.patches import Rectangle

    for name in names:
        component = Component.parse(name)
        axis, row = (lower, 0) if component.index is None else (upper, component.index)
        corner = (component.layer - 0.5, row - 0.5)
        axis.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="black", linewidth=1.1, clip_on=False))


def _save(figure: Any, path: Path) -> None:
    kind = path.suffix.lstrip(".") or "png"
    buffer = io.BytesIO()
    try:
        figure.savefig(buffer, format=kind)
    except ValueError as error:
        raise OutputError(f"{path} cannot be drawn: {error}") from error
    write_bytes(path, buffer.getvalue())
