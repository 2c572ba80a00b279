"""From what a scorer returned to one number a component, checked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from ..errors import ScorerError, brief
from ..sites import ModelShape
from .context import MLPScores
from .runs import Site

SECONDS = "seconds"
"""The note of how long a scorer took."""


@dataclass(frozen=True, eq=False)
class Scores:
    """One scorer's table.

    Attributes:
        components: Component name to score, in the precision that the scorer gave.
        neurons: MLP name to one score a neuron, float32, when the scorer tells them apart.
        notes: What the scorer said besides, JSON.
    """

    components: Mapping[str, float]
    neurons: Mapping[str, Float[np.ndarray, " d_mlp"]] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)

    def __eq__(self, other: object) -> bool:
        """Whether another table has the same scores and notes; the `seconds` that it took are left out."""
        if not isinstance(other, Scores):
            return NotImplemented
        same = (self.components, _timeless(self.notes)) == (other.components, _timeless(other.notes))
        same = same and self.neurons.keys() == other.neurons.keys()
        return same and all(np.array_equal(values, other.neurons[name]) for name, values in self.neurons.items())


def _timeless(notes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: None if name == SECONDS else note for name, note in notes.items()}


def check_scores(raw: Any, sites: Sequence[Site], shape: ModelShape, scorer: str) -> Scores:
    """Turn a scorer's result into a table.

    Args:
        raw: What the scorer returned.
        sites: What it was asked to score.
        shape: The model's sizes.
        scorer: How to call it in a message, with its distribution.

    Raises:
        ScorerError: When the result is no mapping or empty, names a site that was not asked for, or one twice, or has
            a wrong shape or a number that is complex or not finite (of a neuron, in float32).
    """
    if not isinstance(raw, Mapping):
        raise ScorerError(f"{scorer} must return a mapping of sites to scores, not {brief(raw)}.")
    if not raw:
        given = "+".join(dict.fromkeys(site.projection for site in sites))
        raise ScorerError(f"{scorer} scored none of the sites ({given}); it must return a mapping of some to scores.")
    known: dict[Any, Site] = {**{site: site for site in sites}, **{site.name: site for site in sites}}
    found: dict[Site, Any] = {}
    for key, values in raw.items():
        if key not in known:
            raise ScorerError(f"{scorer} scored {brief(key)}, which is not one of the sites that it was given.")
        if known[key] in found:
            raise ScorerError(f"{scorer} scored {known[key].name} twice, once as a site and once by its name.")
        found[known[key]] = values
    components: dict[str, float] = {}
    neurons: dict[str, np.ndarray] = {}
    for site in sites:
        if site not in found:
            continue
        if site.of_heads:
            values = _array(found[site], site, scorer, (site.size,))
            for head in range(shape.n_heads):
                # Under grouped-query attention several query heads read one key/value head and share its score.
                components[f"L{site.layer}.head.{head}"] = float(values[head * site.size // shape.n_heads])
        elif isinstance(found[site], MLPScores):
            name = f"L{site.layer}.mlp"
            components[name] = float(_array([found[site].whole], site, scorer, (1,))[0])
            neurons[name] = _stored(_array(found[site].neurons, site, scorer, (site.size,)), site, scorer)
        else:
            name = f"L{site.layer}.mlp"
            values = _array(found[site], site, scorer, (site.size, 1))
            components[name] = float(values.sum())
            if len(values) > 1:
                neurons[name] = _stored(values, site, scorer)
    return Scores(components, neurons)


def check_notes(notes: Mapping[str, Any], scorer: str) -> dict[str, Any]:
    """Refuses notes that could not stand in a localization file.

    Returns:
        A copy of them as such a file gives them back, with lists for tuples.

    Raises:
        ScorerError: When they are not JSON, which has no NaN, or one has the name of what is noted of every scorer.
    """
    if SECONDS in notes:
        raise ScorerError(
            f"{scorer} left a note called {SECONDS!r}, as the time that it took is; give it another name."
        )
    try:
        # Encoded as the file will be: UTF-8 has no lone surrogates.
        text = json.dumps(notes, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ScorerError(f"{scorer} left a note that is not JSON: {error}.") from error
    return dict(json.loads(text))


def _array(values: Any, site: Site, scorer: str, lengths: tuple[int, ...]) -> np.ndarray:
    try:
        tensor = torch.as_tensor(values, device="cpu")
        real = not tensor.is_complex()
        if real and not isinstance(values, (torch.Tensor, np.ndarray)):
            # Python's numbers were rounded to the caller's default dtype.
            tensor = torch.as_tensor(values, dtype=torch.float64, device="cpu")
        array = tensor.to(torch.float64).numpy(force=True) if real else np.empty(0)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ScorerError(f"{scorer} gave {brief(values)} for {site.name}: that is no array of numbers.") from error
    if not real:
        raise ScorerError(f"{scorer} gave complex numbers for {site.name}; scores must be real.")
    if array.ndim != 1 or len(array) not in lengths:
        wanted = " or ".join(f"[{length}]" for length in lengths)
        raise ScorerError(f"{scorer} gave scores of shape {list(array.shape)} for {site.name}; it must be {wanted}.")
    _check_finite(array, site, scorer)
    return array


def _stored(values: np.ndarray, site: Site, scorer: str) -> np.ndarray:
    """Scores of neurons as a localization keeps them, in float32."""
    with np.errstate(over="ignore"):
        narrow = values.astype(np.float32)
    _check_finite(narrow, site, scorer)
    return narrow


def _check_finite(array: np.ndarray, site: Site, scorer: str) -> None:
    if not np.isfinite(array).all():
        raise ScorerError(f"{scorer} gave a score for {site.name} that is not a finite number.")
