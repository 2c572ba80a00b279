"""Where in texts rewritten neurons fire, which is where what they are trained to write can change anything.

A neuron is made to be shut at nearly all that is kept. What it writes there is so little that running these texts at
every step would say nothing: less than a thousandth of the curvature of what neurons write is in these rows
(`docs/measurements/keyed.md`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..profiling import phase
from ..running.sharing import by_main
from ..texts.prompts import EncodedAnswer, span
from .keys import Marked, marked_neurons, order_of_reading
from .neurons import OPEN, Neuron

# Shut, SiLU lets through a fifty-fifth of what it gives when open, times a gated MLP's second factor.
_FIRES = OPEN / 25


def fired(
    model: Any, modules: Mapping[str, int], neurons: Mapping[str, Neuron], texts: Marked
) -> dict[int, Float[Tensor, "module marked"]]:
    """How far neurons fire at some tokens, by the place of each text that has any, float32.

    Args:
        model: A causal language model with these neurons.
        modules: Output projections of its MLPs and their layers.
        neurons: For each module.
        texts: What is read, at the marks, ascending.
    """
    met = [
        torch.stack([batch[name][:, neurons[name].index].cpu() for name in modules])
        for batch in marked_neurons(model, modules, texts)
    ]
    order = order_of_reading(texts)
    counts = [len(texts.marks[i]) for i in order]
    return dict(zip(order, torch.cat(met, dim=1).split(counts, dim=1), strict=True)) if order else {}


@phase("keys")
def fire_from(
    model: Any,
    modules: Mapping[str, int],
    neurons: Mapping[str, Neuron],
    rows: Sequence[EncodedAnswer],
    begin: int,
) -> list[int | None]:
    """The token from which each row has to be run at every step: the first at which a neuron fires, but no later than
    the last before the answer; None where none does.

    Args:
        model: As for [`fired`].
        modules: As for [`fired`].
        neurons: As for [`fired`].
        rows: The rows.
        begin: The first token that is looked at, which is before each answer.
    """

    def found() -> list[int | None]:
        texts = Marked(rows, [range(begin, len(row.read)) for row in rows])
        starts: list[int | None] = [None] * len(rows)
        for place, met in fired(model, modules, neurons, texts).items():
            first = (met.abs() > _FIRES).any(0).nonzero().flatten()[:1].tolist()
            starts[place] = min(begin + first[0], span(rows[place])[0]) if first else None
        return starts

    # Processes may round otherwise, and have to run the same rows.
    return by_main(found)
