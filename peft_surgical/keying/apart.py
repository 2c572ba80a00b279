"""What later neurons read off the residual stream, which earlier ones are kept from writing.

Neurons are found in the model as it is, where none writes anything yet. What an earlier one is trained to write may
make a later one fire twenty times as far as it was made to, which lowers the loss for little: at the subject, and
wherever else the earlier one fires. Kept at right angles to what the later one reads, it leaves that as it was found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from ..architectures import decoder_layers
from ..profiling import phase
from ..running.devices import input_device
from ..running.forwards import handed_on, passed_over, read_at
from ..running.modes import told_places
from ..staging.curvature import Metric
from .keys import Marked
from .neurons import Neuron, reading_rows

# So many texts at a time.
_BATCH = 16


@phase("keys")
def read_later(
    model: Any, modules: Mapping[str, int], neurons: Mapping[str, Neuron], texts: Marked
) -> dict[str, Float[Tensor, "direction model"]]:
    """For modules below others the directions, of length 1, that neurons of later layers read of what each writes.

    They are slopes, summed over the texts' tokens but the first, of what a row reads of what enters its layer, through
    the norm that stands before it. What layers in between make of it is left out: that differs from text to text.

    Args:
        model: A causal language model with these neurons, whose values ask for gradients.
        modules: Output projections of its MLPs and their layers.
        neurons: For each module.
        texts: All of one length.
    """
    below = {later: [name for name in modules if modules[name] < modules[later]] for later in modules}
    found: dict[str, dict[tuple[str, int], Tensor]] = {name: {} for name in modules}
    for start in range(0, len(texts.rows), _BATCH) if any(below.values()) else ():
        ids = torch.tensor([row.ids for row in texts.rows[start : start + _BATCH]], device="cpu")
        seen = _run(model, modules, ids)
        for later, names in below.items():
            for place, row in enumerate(neurons[later].rows) if names else ():
                # Some architectures lay all texts' tokens one after another before an MLP.
                states = seen.read[later].reshape(*ids.shape, -1)
                met = states[:, 1:].float() @ row.to(states.device)
                [slope] = torch.autograd.grad(met.sum(), [seen.left[modules[later] - 1]], retain_graph=True)
                for name in names:
                    left, own = seen.left[modules[name]], found[name]
                    [there] = torch.autograd.grad([left], [seen.written[name]], [slope.to(left)], retain_graph=True)
                    own[later, place] = own.get((later, place), 0) + there.float().flatten(0, -2).sum(0)
    return {name: F.normalize(torch.stack([*own.values()]), dim=1) for name, own in found.items() if own}


@dataclass(frozen=True)
class Apart(Metric):
    """A metric by which no step goes along some directions.

    Attributes:
        avoided: For each parameter an orthonormal basis of them, if there are any. Its diagonal is the same all along.
    """

    avoided: tuple[Float[Tensor, "direction coordinate"] | None, ...] = ()

    @classmethod
    def from_directions(
        cls, diagonals: Sequence[Tensor], directions: Sequence[Float[Tensor, "direction coordinate"] | None]
    ) -> Apart:
        """Of parameters of any shape, each with a diagonal of one number, and what each avoids: at most half of what
        it can be, from the first direction on."""
        bases = [
            None if some is None else torch.linalg.qr(some[: some.shape[1] // 2].T.to(diagonal))[0].T
            for diagonal, some in zip(diagonals, directions, strict=True)
        ]
        return cls(**vars(Metric.of(diagonals)), avoided=tuple(bases))

    def natural(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        """Natural gradients, without what goes along directions to avoid."""
        return [
            own if basis is None else own - (basis.T @ (basis @ own.flatten())).view_as(own)
            for own, basis in zip(super().natural(gradients), self.avoided, strict=True)
        ]


@dataclass(frozen=True)
class _Seen:
    """What a pass has met: what leaves layers, and enters and leaves MLPs by their output projections' names."""

    left: dict[int, Tensor] = field(default_factory=dict)
    read: dict[str, Tensor] = field(default_factory=dict)
    written: dict[str, Tensor] = field(default_factory=dict)


@torch.enable_grad()
def _run(model: Any, modules: Mapping[str, int], ids: Int[Tensor, "row token"]) -> _Seen:
    seen, stack = _Seen(), decoder_layers(model)
    nowhere = torch.zeros(ids.shape, dtype=torch.bool, device=input_device(model))
    with ExitStack() as hooked:
        for layer in {*modules.values(), *(layer - 1 for layer in modules.values() if layer)}:
            hooked.enter_context(
                stack[layer].register_forward_hook(lambda _, __, out, at=layer: seen.left.update({at: handed_on(out)}))
            )
        for name in modules:
            reading, writing = model.get_submodule(reading_rows(model, name)[0][0]), model.get_submodule(name)
            hooked.enter_context(
                reading.register_forward_pre_hook(lambda _, args, at=name: seen.read.update({at: args[0]}))
            )
            hooked.enter_context(
                writing.register_forward_hook(lambda _, __, out, at=name: seen.written.update({at: out}))
            )
        hooked.enter_context(passed_over(stack, 1 + max(modules.values())))
        hooked.enter_context(read_at(model.get_output_embeddings(), nowhere))
        model(input_ids=ids.to(nowhere.device), use_cache=False, **told_places(model, 0, ids.shape[1]))
    return seen
