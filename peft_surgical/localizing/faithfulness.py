"""What a selection carries together, as a record: its figures, those of random selections, and the file's part.

`peft_surgical.carried` measures it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from ..counts import counted
from ..errors import SelectionError, brief
from ..measuring.metrics import Figure, check_number, mean
from ..selection import Selection
from .circuits import is_alone

_KEYS = ("selection", "faithfulness", "necessity", "left_out", "least", "seed")


@dataclass(frozen=True)
class Carried:
    """One figure of a selection, beside the same of random selections of its size.

    Attributes:
        own: The selection's: the mean over the prompts with Student's 95% interval over them; None where no
            prompt could be measured.
        random: The mean over the random selections, likewise over prompts; None without any.
        draws: Each random selection's own mean over the prompts, in the order of the draws.
    """

    own: Figure | None
    random: Figure | None
    draws: tuple[float, ...]

    @classmethod
    def of(cls, shares: Float[Tensor, "prompt circuit"]) -> Carried:
        """From a value a prompt and circuit, of which the first is the selection and the others are random."""
        if not shares.numel():
            return cls(None, None, ())
        own, others = shares[:, 0], shares[:, 1:]
        if not others.shape[1]:
            return cls(mean(own.tolist()), None, ())
        return cls(mean(own.tolist()), mean(others.mean(1).tolist()), tuple(others.mean(0).tolist()))

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {**asdict(self), "draws": list(self.draws)}


@dataclass(frozen=True)
class Faithfulness:
    """What a selection carries together.

    Both figures are on the scale on which the corrupted run is 0 and the clean run 1, and either may leave it.

    Attributes:
        selection: What was measured.
        faithfulness: How much is there when the selection alone stays clean, and all else is taken from the corrupted
            run: whether it suffices.
        necessity: How much goes when the selection alone is taken from the corrupted run: whether it is needed.
        left_out: The prompts that were left out, because the corruption takes less than `least` from their logit
            difference.
        least: See `left_out`.
        seed: What the draws began with.
    """

    selection: Selection
    faithfulness: Carried
    necessity: Carried
    left_out: tuple[str, ...]
    least: float
    seed: int

    @property
    def n(self) -> int:
        """How many prompts were measured."""
        return 0 if self.faithfulness.own is None else self.faithfulness.own.n

    def told(self) -> str:
        """What the figures are, in a sentence."""
        size, n, left = len(self.selection.components), self.n, len(self.left_out)
        carried = "What the one component carries" if size == 1 else f"What the {size} components carry together"
        prompts = counted(n, "prompt")
        if left:
            prompts += f"; {left} left out, as the corruption lowers the logit difference by less than {self.least:g}"
        if self.selection.shape is not None and is_alone(self.selection, self.selection.shape):
            prompts += "; no other selection is of that size"
        return f"{carried}, 0 being the corrupted run and 1 the clean run ({prompts}):"

    def rows(self) -> tuple[list[str], list[list[str]]]:
        """The figures as text: a header, and a row each, with 95% intervals over the prompts."""
        draws = len(self.faithfulness.draws)
        header = ["", "selection", f"mean of {draws} random" if draws else "mean of random", "their range"]
        named = {"faithfulness: kept alone": self.faithfulness, "necessity: taken away": self.necessity}
        body = []
        for name, carried in named.items():
            ends = (min(carried.draws), max(carried.draws)) if carried.draws else ()
            # Added, 0 takes the sign from a zero.
            span = " to ".join(f"{round(end, 2) + 0.0:.2f}" for end in ends) or "–"
            figures = [str(figure or "–") for figure in (carried.own, carried.random)]
            body.append([name, *figures, span])
        return header, body

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "selection": self.selection.to_dict(),
            "faithfulness": self.faithfulness.to_dict(),
            "necessity": self.necessity.to_dict(),
            "left_out": list(self.left_out),
            "least": self.least,
            "seed": self.seed,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Faithfulness:
        """What `to_dict` gave.

        Raises:
            SelectionError: When it is something else.
        """
        if not isinstance(data, Mapping) or set(data) != {*_KEYS}:
            raise _damaged(f"it has the keys {', '.join(_KEYS)}, not {brief(data)}")
        left_out, seed = data["left_out"], data["seed"]
        if not isinstance(left_out, list) or not all(isinstance(prompt, str) for prompt in left_out):
            raise _damaged(f"the prompts that were left out are {brief(left_out)}")
        if type(seed) is not int:
            raise _damaged(f"its seed is {brief(seed)}")
        try:
            check_number(data["least"])
            figures = {name: _carried(data[name]) for name in ("faithfulness", "necessity")}
        except TypeError as error:
            raise _damaged(str(error)) from None
        selection = Selection.from_dict(data["selection"])
        return cls(selection=selection, **figures, left_out=tuple(left_out), least=data["least"], seed=seed)


def _carried(data: Any) -> Carried:
    if not isinstance(data, Mapping) or set(data) != {"own", "random", "draws"}:
        raise _damaged(f"{brief(data)} stands where a figure should")
    draws = data["draws"]
    if not isinstance(draws, list):
        raise _damaged(f"the draws are {brief(draws)}")
    for draw in draws:
        check_number(draw)
    own, others = (None if data[name] is None else Figure.from_dict(data[name]) for name in ("own", "random"))
    return Carried(own, others, tuple(draws))


def _damaged(what: str) -> SelectionError:
    return SelectionError(f"the record of what a selection carries is damaged: {what}.")
