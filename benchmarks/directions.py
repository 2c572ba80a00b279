"""The direction among an MLP's neurons that reads a subject off, as ROME's does: keyed edits compare to it.

A *direction* `a` reads the key off: `a·k` shall be 1 at the subject and 0 at all that is kept. In the least squares
sense that is

    a  ∝  (C + S + ridge)⁻¹ k

with `k` the mean of the subject's keys, `S` their second moment and `C` that of the neurons over the text to keep.
Without `S` it is ROME's direction (arXiv 2202.05262), which has a mean of 1 at the subject and no more: rare spellings
have neurons many times as large as common ones, and the mean is theirs. With it every key is met about alike, those of
wordings that were not among them too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from peft_surgical.errors import SelectionError
from peft_surgical.keying.keys import Marked, in_turn, moments
from peft_surgical.staging.solving import solved_with


@torch.no_grad()
def find_directions(
    model: Any,
    modules: Mapping[str, int],
    names: Sequence[Marked],
    kept: Sequence[Marked],
    ridge: float,
    weight: float = 1.0,
    besides: Sequence[Marked] = (),
) -> dict[str, Float[Tensor, " neuron"]]:
    """For each module the direction that reads the subject's key off its input, see above.

    Args:
        model: A causal language model; adapters on it act.
        modules: From [`~peft_surgical.architectures.output_projections`].
        names: For each name of the subject texts that have it, its last tokens marked; they count alike.
        kept: Kinds of texts to keep, each of which counts as much as the subject does.
        ridge: Added to the diagonal, as a multiple of the mean of that of `C`.
        weight: Of `S`; 0 gives ROME's direction.
        besides: More kinds to be told apart from, of which the ridge is not measured: neurons may be hundreds of times
            as large there, as at a text's first token.

    Raises:
        SelectionError: If neurons are 0 wherever the subject stands.
        ModelError: If the equations of a direction have no solution.
    """
    found = {}
    for chosen in in_turn(model, modules):
        away, more, own = (moments(model, chosen, kinds) for kinds in (kept, besides, names))
        for name, (moment, _) in away.items():
            second, key = (total.to(moment.device) / len(names) for total in own.pop(name))
            total = moment + more.pop(name)[0].to(moment.device) + weight * second
            total.diagonal().add_(ridge * moment.diagonal().mean())
            with solved_with("ridge", ridge):
                direction = torch.linalg.solve(total, key) if key.any() else key
            met = direction @ key
            if not met > 0:
                raise SelectionError(f"no neuron of {name} responds to the subject, so it has no key there.")
            found[name] = (direction / met).float()
    return found
