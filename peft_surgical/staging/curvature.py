"""How far a change of scales moves the model elsewhere: their Fisher information, and steps measured with it.

A scale acts on every token. Which changes are quiet on other text and which are not is what a plain gradient of the
edit's loss does not say; the Fisher information `F` of the scales does: `½ dᵀ F d` is the divergence from the model,
in nats a position, that a small change `d` causes. The natural gradient (Amari 1998), `F⁻¹ g`, is the step that lowers
the edit's loss most for the divergence it costs.

`F` is the mean of `g gᵀ` over texts, with `g` what a backward pass makes of slopes `u` of the logits whose `u uᵀ` is,
in the mean, the Fisher information of the distribution there, `diag(p) - p pᵀ`. With random signs `ε` for the tokens,
`u = √p ε - p (√p · ε)` is such a slope (Martens, Sutskever and Swersky 2012, arXiv 1206.6464, propagate curvature so).
All likely tokens are in each of them. Slopes of labels drawn from `p`, the more common estimate, are small where the
model is sure of the label and large where another is drawn, so they need several draws to say as much.

A few hundred texts give a few hundred directions `g`, among tens of thousands of coordinates. All layers share them:
scales of different layers move the same text, and what one does another can take back, which a metric of independent
layers does not know. Outside of these directions only a diagonal is known. So the metric is the two together: a damped
diagonal, and the sampled directions on top, weighted so that a step all but avoids them (as AlphaEdit, arXiv
2410.02355, projects a change of weights into the null space of what is to be kept). It is inverted by Woodbury's
identity; memory is linear in the coordinates.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Float64, Int8, Num
from torch import Tensor, nn

from ..adapters.scale_files import PREFIX
from ..errors import ArchitectureError, ModelError
from ..running.at_once import deal
from ..running.freed import release_freed
from ..running.halving import parts
from ..running.pieces import Pieces
from ..running.replicas import Replica
from ..running.sharing import add_up, by_each, share
from ..running.suffix import SuffixRunner
from ..running.workers import Worker, tokens_of, workers_of
from ..texts.prompts import EncodedAnswer, answer_count, span
from ..tuner import SurgicalIA3Layer

# How much more a sampled direction costs than it was measured to: a step may as well avoid it.
_WEIGHT = 10.0

# What goes through the model at once where nothing else limits it.
_TOKENS = 1536


@dataclass(frozen=True)
class Curvature:
    """Fisher information of an adapter's scales, `Σ g gᵀ` over samples.

    Attributes:
        gradients: For each layer the samples' gradients with respect to its scales, `[sample, selected]`, float32,
            scaled so that the sum over samples is in nats a position read.
    """

    gradients: tuple[Float[Tensor, "sample selected"], ...]

    def __add__(self, other: Curvature) -> Curvature:
        return Curvature(tuple(torch.cat(pair) for pair in zip(self.gradients, other.gradients, strict=True)))

    def __rmul__(self, weight: float) -> Curvature:
        return Curvature(tuple(math.sqrt(weight) * gradients for gradients in self.gradients))

    def metric(self, damping: float) -> Metric:
        """The metric for steps.

        Args:
            damping: Times the mean of the diagonal is added to it. It stands for what the samples did not show.
        """
        squares = [gradients.square().sum(0) for gradients in self.gradients]
        coordinates = sum(len(square) for square in squares)
        level = damping * sum(float(square.sum()) for square in squares) / max(coordinates, 1)
        # Where no text reached anything, a step still has to have a length.
        return Metric.of([square + max(level, 1e-12) for square in squares], self.gradients)


@dataclass(frozen=True)
class Metric:
    """Damped curvature, factored: turns gradients into steps.

    Attributes:
        diagonals: For each layer the damped diagonal.
        gradients: For each layer the sampled directions.
        factor: Lower triangular factor of `1 / w + G D⁻¹ Gᵀ`, with `G` the directions, `w` their weight and `D` the
            diagonal; float64, on the CPU.
    """

    diagonals: tuple[Float[Tensor, " selected"], ...]
    gradients: tuple[Float[Tensor, "sample selected"], ...]
    factor: Float64[Tensor, "sample sample"]

    @classmethod
    def of(cls, diagonals: Sequence[Tensor], gradients: Sequence[Tensor] | None = None) -> Metric:
        """The metric of a diagonal and sampled directions, if any; of parameters of any shape where there are none."""
        if gradients is None:
            gradients = [diagonal.new_zeros(0, diagonal.numel()) for diagonal in diagonals]
        samples = len(gradients[0]) if gradients else 0
        # It is small, and float32 may lose what sets nearly equal samples apart.
        inner = torch.eye(samples, dtype=torch.float64, device="cpu") / _WEIGHT
        for diagonal, own in zip(diagonals, gradients, strict=True):
            inner += ((own / diagonal.flatten()) @ own.T).cpu()
        return cls(tuple(diagonals), tuple(gradients), torch.linalg.cholesky(inner))

    def apply(self, changes: Sequence[Float[Tensor, " selected"]]) -> list[Float[Tensor, " selected"]]:
        """The gradient of the predicted divergence `½ dᵀ F d` at each layer's change of scales, nats."""
        along = _WEIGHT * self._along(changes)
        return [
            diagonal.view_as(change) * change + (own.T @ along.to(own)).view_as(change)
            for change, diagonal, own in zip(changes, self.diagonals, self.gradients, strict=True)
        ]

    def natural(self, gradients: Sequence[Float[Tensor, " selected"]]) -> list[Float[Tensor, " selected"]]:
        """Natural gradients, one for each layer's gradient."""
        diagonals = [own.view_as(gradient) for own, gradient in zip(self.diagonals, gradients, strict=True)]
        scaled = [gradient / diagonal for gradient, diagonal in zip(gradients, diagonals, strict=True)]
        along = torch.cholesky_solve(self._along(scaled)[:, None], self.factor)[:, 0]
        return [
            own_scaled - (own.T @ along.to(own)).view_as(own_scaled) / diagonal
            for own_scaled, diagonal, own in zip(scaled, diagonals, self.gradients, strict=True)
        ]

    def _along(self, changes: Sequence[Float[Tensor, " selected"]]) -> Float64[Tensor, " sample"]:
        """How far changes go along each sampled direction, all layers together."""
        total = self.factor.new_zeros(len(self.factor))
        for own, change in zip(self.gradients, changes, strict=True):
            total += (own @ change.flatten()).cpu()
        return total


def measure_curvature(
    runner: SuffixRunner,
    layers: Sequence[SurgicalIA3Layer],
    adapter: str,
    indices: Sequence[int],
    rows: Sequence[EncodedAnswer],
    **options: Any,
) -> Curvature:
    """Estimates the Fisher information of an adapter's scales, where the model now is.

    Args:
        runner: Has taken in the rows.
        layers: Those of the adapter, active and trainable.
        adapter: Its name.
        indices: The rows' indices in the runner.
        rows: What to read: the distributions that predict their answers' tokens.
        **options: As [`sample_curvature`] takes them.

    Returns:
        A sample a row and draw, together the mean over positions read.

    Raises:
        ModelError: If a logit is not finite.
    """
    parameters = [layer.surgical_ia3_delta[adapter] for layer in layers]

    def watching(replica: Replica) -> AbstractContextManager[RowGradients]:
        return _row_gradients(replica.model, [replica.twin(layer) for layer in layers], adapter)

    return sample_curvature(runner, parameters, watching, indices, rows, **options)


def sample_curvature(
    runner: SuffixRunner,
    parameters: Sequence[nn.Parameter],
    watching: Callable[[Replica], AbstractContextManager[RowGradients]],
    indices: Sequence[int],
    rows: Sequence[EncodedAnswer],
    *,
    draws: int = 1,
    seed: int = 0,
    tokens: int | None = None,
    on_logits: Callable[[int, Float[Tensor, "position vocab"]], Any] | None = None,
) -> Curvature:
    """Estimates the Fisher information of parameters of any kind, where the model now is.

    Args:
        runner: Has taken in the rows.
        parameters: All that trains.
        watching: Takes down, on a replica of the model, each row's gradients, flat, by the place of the parameter.
        indices: The rows' indices in the runner.
        rows: What to read: the distributions that predict their answers' tokens.
        draws: Samples a row: how often signs are drawn, each with a backward pass of its own.
        seed: Draws the signs.
        tokens: At most so many tokens at once, padding included but not a shared prefix that runs once, and always one
            row a forward. When None, 320 a worker on a processor, 224 in float32, twice that for one by itself, and
            1,536 elsewhere. The signs do not depend on it; fewer take less memory and more time.
        on_logits: Called with the place in `rows`, and the logits that predict its answer, of each row that this
            process reads: of all rows, but where processes share the work (`sharing`). Workers call it at the same
            time.

    Returns:
        As [`measure_curvature`].

    Raises:
        ModelError: If a logit is not finite.
    """
    # What each row does through a shared prefix has to be told apart: a step finds what their sum does not see, and a
    # refusal then spreads through the prefix to other questions.
    if not runner.tells_rows_apart(parameters):
        runner = runner.unshared()
    release_freed()
    made = [parameter.new_zeros(draws, len(rows), parameter.numel()) for parameter in parameters]
    order = sorted(range(len(rows)), key=lambda i: runner.length(indices[i]))
    positions = answer_count(rows)
    workers = workers_of(runner, parameters, tokens)
    tokens = tokens_of(tokens, workers) or _TOKENS
    batches = share(parts(order, [runner.load(indices[i]) for i in order], tokens // len(workers)))

    def sample(worker: Worker, own: Iterator[list[int]]) -> None:
        with worker.runner.prefix_once(apart=True) as begun, watching(worker.replica) as found:
            for chosen in own:
                read_from, spans = [indices[i] for i in chosen], [span(rows[i]) for i in chosen]
                found.rows, found.tokens = len(chosen), worker.runner.width(read_from)
                pieces = worker.runner.read(read_from, spans)
                counts = [stop - begin for begin, stop in spans]
                generators = [_generator(seed, rows[i]) for i in chosen]
                for draw in range(draws):
                    found.gradients.clear()
                    for places, logits in _sketched(pieces, counts, generators):
                        if on_logits is not None and draw == 0:
                            for place, read in zip(places, logits.split([counts[i] for i in places]), strict=True):
                                on_logits(chosen[place], read)
                    pieces.back(retain_graph=draw + 1 < draws)
                    for position, gradients in found.gradients.items():
                        made[position][draw, chosen] = gradients
                    through = [] if begun is None else begun.of_each(worker.parameters)
                    for position, further in enumerate(through):
                        if further is not None:
                            made[position][draw, chosen] += further.flatten(1)

    by_each(lambda: deal(workers, batches, sample))
    add_up(made)
    for parameter in parameters:
        parameter.grad = None
    scale = 1 / math.sqrt(draws * max(positions, 1))
    # In place: they are the largest thing that training holds.
    return Curvature(tuple(own.flatten(0, 1).mul_(scale) for own in made))


def _sketched(
    pieces: Pieces, counts: Sequence[int], generators: Sequence[torch.Generator]
) -> Iterator[tuple[range, Float[Tensor, "read vocab"]]]:
    """Leads slopes back from logits, piece after piece; yields the places of each piece's rows and its logits."""
    for places, read in pieces:
        logits = read.detach().float()
        # Of what is not finite the sum is not finite either.
        if not logits.sum().isfinite():
            raise ModelError("the model gives logits that are not finite on what is to be kept.")
        signs = torch.cat([_signs(generators[i], counts[i], logits.shape[-1]) for i in places])
        read.backward(_sketch(logits.softmax(-1), signs.to(logits.device)).to(read))
        yield places, logits


def _generator(seed: int, row: EncodedAnswer) -> torch.Generator:
    """A row's own, so that its signs do not depend on the rows beside it, nor on how many processes share them."""
    content = ",".join(map(str, [seed, row.answer_start, *row.ids])).encode()
    return torch.Generator().manual_seed(int.from_bytes(hashlib.blake2b(content, digest_size=7).digest(), "little"))


def _signs(generator: torch.Generator, positions: int, vocab: int) -> Int8[Tensor, "position vocab"]:
    """Plus and minus one, as likely."""
    return torch.randint(0, 2, (positions, vocab), generator=generator, dtype=torch.int8, device="cpu").mul_(2).sub_(1)


def _sketch(
    probabilities: Float[Tensor, "position vocab"], signs: Num[Tensor, "position vocab"]
) -> Float[Tensor, "position vocab"]:
    """Slopes `u` of logits whose `u uᵀ` is, in the mean over signs, the Fisher information of a distribution."""
    roots = probabilities.sqrt().mul_(signs)
    # In place: of all that a pass holds these are the largest.
    return roots.addcmul_(probabilities, roots.sum(-1, keepdim=True), value=-1)


@dataclass
class RowGradients:
    """What one pass through a model tells of its rows.

    Attributes:
        rows: How many there are.
        tokens: How many tokens each has, with padding.
        gradients: By the place of a layer each row's own gradient, `[row, selected]`.
    """

    rows: int = 0
    tokens: int = 0
    gradients: dict[int, Float[Tensor, "row selected"]] = field(default_factory=dict)


@contextmanager
def _row_gradients(model: nn.Module, layers: Sequence[SurgicalIA3Layer], adapter: str) -> Iterator[RowGradients]:
    """Collects, in a backward pass, each row's own gradient with respect to each scale: activation times slope, summed
    over the row's tokens.

    A layer that runs more than once in a pass adds up. Some architectures lay the tokens of all rows one after the
    other; those of a row stay together.
    """
    found = RowGradients()

    def watch(position: int, layer: SurgicalIA3Layer) -> None:
        plain = layer.apply_scale
        whole = layer.coordinates[adapter].covers(layer.width)

        def selected(x: Tensor) -> Tensor:
            tokens = x.detach().reshape(found.rows, found.tokens, layer.width)
            return (tokens if whole else tokens.index_select(-1, layer.index(adapter, x.device))).float()

        def watched(x: Tensor, names: list[str]) -> Tensor:
            scaled = plain(x, names)
            if scaled.requires_grad:
                if x.numel() != found.rows * found.tokens * layer.width:
                    name = next(name for name, module in model.named_modules() if module is layer)
                    raise ArchitectureError(
                        f"a stage trains on modules that see all tokens of a text; {name.removeprefix(PREFIX)} does"
                        " not, as this model sends them there token by token."
                    )

                def keep(slope: Tensor) -> None:
                    own = (selected(x) * selected(slope)).sum(1) * layer.others_scale(adapter, names).detach()
                    before = found.gradients.get(position)
                    found.gradients[position] = own if before is None else before + own

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
