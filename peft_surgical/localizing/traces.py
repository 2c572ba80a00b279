"""A causal trace as a record: what moves with each stream, layer and class of tokens, and the file that keeps it.

`peft_surgical.causal_trace` measures it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int

from ..counts import counted
from ..errors import SelectionError, brief
from ..measuring.metrics import Figure, check_number, mean, student
from ..sites import STREAMS, ModelShape
from ..writing.files import read_json, why_unread, write_json
from .localization_files import pack, unpack
from .streams import DIRECTIONS
from .token_classes import CLASSES

FORMAT = 1
_TEXTS, _LISTS = ("model", "dtype", "subject"), ("prompts", "unnamed", "left_out")


@dataclass(frozen=True, eq=False)
class CausalTrace:
    """Where in prompts, and in which layer, what tells the subject is: a share of the logit difference each.

    Attributes:
        model: The model's name or path.
        dtype: The model's dtype. Effects are computed in float32 all the same.
        shape: The model's sizes.
        subject: What the fact is about.
        direction: `noising`: taken from the corrupted run into the clean one, the share that is lost; `denoising`:
            from the clean run into the corrupted one, the share that is recovered.
        window: Of `attn_out` and `mlp_out`, how many layers are taken together, around each.
        together: Whether all tokens of a class are taken at once; else one at a time, and their mean is the prompt's.
        prompts: What was measured, in the order of `values`.
        values: The share for each prompt, stream, layer and class, in the order of `streams` and `classes`; NaN where
            the prompt has no token of a class.
        unnamed: The prompts that were left out because they do not name the subject.
        left_out: The prompts that were left out because the corruption takes less than `least` from their logit
            difference.
        least: See `left_out`.
        seed: What the corruption began with.
    """

    model: str
    dtype: str
    shape: ModelShape
    subject: str
    direction: Literal["noising", "denoising"]
    window: int
    together: bool
    prompts: tuple[str, ...]
    values: Float[np.ndarray, "prompt stream layer class"]
    unnamed: tuple[str, ...]
    left_out: tuple[str, ...]
    least: float
    seed: int

    @property
    def streams(self) -> tuple[str, ...]:
        """What is traced of a layer, by TransformerLens's names."""
        return STREAMS

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes of tokens, in the order in which they stand."""
        return tuple(CLASSES)

    @property
    def n(self) -> Int[np.ndarray, " class"]:
        """How many prompts have a token of each class."""
        found: Int[np.ndarray, " class"] = (~np.isnan(self.values[:, 0, 0])).sum(0)
        return found

    @property
    def mean(self) -> Float[np.ndarray, "stream layer class"]:
        """The mean over the prompts that have such a token; NaN where none has."""
        return self._ends()[0]

    @property
    def low(self) -> Float[np.ndarray, "stream layer class"]:
        """Lower end of Student's 95% interval over the prompts."""
        return self._ends()[1]

    @property
    def high(self) -> Float[np.ndarray, "stream layer class"]:
        """Upper end of the same."""
        return self._ends()[2]

    def figure(self, stream: str, layer: int, token_class: str) -> Figure | None:
        """One value with its N and interval; None where no prompt has a token of the class.

        Args:
            stream: One of `streams`.
            layer: From 0.
            token_class: One of `classes`.

        Raises:
            SelectionError: When there is no such stream, layer or class.
        """
        for name, known in ((stream, self.streams), (token_class, self.classes)):
            if name not in known:
                raise SelectionError(f"a trace has {', '.join(known)}, not {brief(name)}.")
        if type(layer) is not int or not 0 <= layer < self.shape.n_layers:
            raise SelectionError(f"the model has layers 0 to {self.shape.n_layers - 1}, not {brief(layer)}.")
        column = self.values[:, self.streams.index(stream), layer, self.classes.index(token_class)]
        column = column[~np.isnan(column)]
        return mean(column.tolist()) if len(column) else None

    def told(self) -> str:
        """What the figures are, in a sentence."""
        n, unnamed, left = len(self.prompts), len(self.unnamed), len(self.left_out)
        told = {
            "noising": "lost where it is taken from the corrupted run",
            "denoising": "recovered in the corrupted run where it is taken from the clean run",
        }[self.direction]
        prompts = counted(n, "prompt")
        if unnamed:
            prompts += f"; {unnamed} left out, not naming {self.subject}"
        if left:
            prompts += f"; {left} left out, as the corruption lowers the logit difference by less than {self.least:g}"
        around = f", attn_out and mlp_out of {self.window} layers together" if self.window > 1 else ""
        return f"The most that any layer carries, as the share of the logit difference {told}{around} ({prompts}):"

    def rows(self) -> tuple[list[str], list[list[str]]]:
        """The largest figure of each class and stream as text: a header, and a row a class that a prompt has."""
        body, means = [], self.mean
        for number, (name, words) in enumerate(CLASSES.items()):
            if not self.n[number]:
                continue
            cells = []
            for stream in range(len(STREAMS)):
                column = means[stream, :, number]
                layer = int(column.argmax())
                # Where nothing differs, no layer is the one.
                at = f" at L{layer}" if column.any() else ""
                cells.append(f"{self.figure(STREAMS[stream], layer, name)}{at}")
            body.append([words, str(self.n[number]), *cells])
        return ["token", "N", *STREAMS], body

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw the means: for each stream a heatmap of class by layer.

        Args:
            path: The image to write; its ending decides the format (`.png`, `.svg`, `.pdf`).

        Raises:
            MissingPackageError: When matplotlib is not installed.
            OutputError: When the image cannot be written, or no prompt was measured.
        """
        from .plots import plot_trace

        plot_trace(self, path)

    def to_dict(self) -> dict[str, Any]:
        """The trace as JSON: `values` is base64 of little-endian float32; `n`, `mean`, `low` and `high`, stream by
        layer by class, are for other readers and follow from it."""
        ends = {name: _listed(array) for name, array in zip(("mean", "low", "high"), self._ends(), strict=True)}
        return {
            "format": FORMAT,
            **{name: getattr(self, name) for name in (*_TEXTS, "direction", "window", "together", "least", "seed")},
            "shape": self.shape.to_dict(),
            "streams": list(self.streams),
            "classes": list(self.classes),
            **{name: list(getattr(self, name)) for name in _LISTS},
            "n": self.n.tolist(),
            **ends,
            "values": pack(self.values),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> CausalTrace:
        """What `to_dict` gave.

        Raises:
            SelectionError: When it is something else.
        """
        if not isinstance(data, Mapping) or data.get("format") != FORMAT or "direction" not in data:
            raise SelectionError(f"this is not a causal trace of format {FORMAT}.")
        if missing := [field.name for field in fields(cls) if field.name not in data]:
            raise _damaged(f"it has no {missing[0]!r}")
        for name, known in (("streams", STREAMS), ("classes", tuple(CLASSES))):
            if data.get(name) != list(known):
                raise _damaged(f"its {name} are {brief(data.get(name))}")
        for name in _TEXTS:
            if not isinstance(data[name], str):
                raise _damaged(f"its {name} is {brief(data[name])}")
        for name in _LISTS:
            if not isinstance(data[name], list) or not all(isinstance(prompt, str) for prompt in data[name]):
                raise _damaged(f"its {name} are {brief(data[name])}")
        right = {
            "direction": data["direction"] in DIRECTIONS,
            "window": type(data["window"]) is int and data["window"] >= 1,
            "together": type(data["together"]) is bool,
            "seed": type(data["seed"]) is int,
        }
        for name, is_right in right.items():
            if not is_right:
                raise _damaged(f"its {name} is {brief(data[name])}")
        try:
            check_number(data["least"])
        except TypeError as error:
            raise _damaged(str(error)) from None
        if not isinstance(data["shape"], Mapping):
            raise _damaged(f"its shape is {brief(data['shape'])}")
        shape = ModelShape.from_dict(data["shape"])
        kept: dict[str, Any] = {name: data[name] for name in (*_TEXTS, *right, "least")}
        kept |= {name: tuple(data[name]) for name in _LISTS}
        values = _unpacked(data["values"], (len(kept["prompts"]), len(STREAMS), shape.n_layers, len(CLASSES)))
        return cls(**kept, shape=shape, values=values)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the trace as JSON.

        Raises:
            OutputError: When its folder does not exist or cannot be written.
        """
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> CausalTrace:
        """Read what `save` wrote.

        Raises:
            SelectionError: When the file is missing or not a causal trace.
        """
        try:
            data = read_json(path)
        except (OSError, ValueError) as error:
            raise SelectionError(f"{path} cannot be read as a causal trace: {why_unread(error)}.") from error
        try:
            return cls.from_dict(data)
        except SelectionError as error:
            raise SelectionError(f"{Path(path)}: {error}") from error

    def __eq__(self, other: object) -> bool:
        """Whether another trace has the same figures and was made the same way."""
        if not isinstance(other, CausalTrace):
            return NotImplemented
        names = [field.name for field in fields(self) if field.name != "values"]
        same = all(getattr(self, name) == getattr(other, name) for name in names)
        return same and np.array_equal(self.values, other.values, equal_nan=True)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        # A prompt shows what a call returned, and hundreds of numbers say nothing there.
        return f"CausalTrace({self.subject!r} in {self.model!r}, {self.direction}, {len(self.prompts)} prompts)"

    def _ends(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Means, and the two ends of their intervals."""
        found = np.full((3, *self.values.shape[1:]), np.nan)
        for number, n in enumerate(self.n):
            if n:
                own = self.values[..., number].astype(np.float64)
                own = own[~np.isnan(own[:, 0, 0])]
                middle = own.mean(0)
                half = student(int(n) - 1) * own.std(0, ddof=1) / np.sqrt(n) if n > 1 else np.zeros_like(middle)
                found[..., number] = middle, middle - half, middle + half
        return found[0], found[1], found[2]


def _listed(array: np.ndarray) -> list[Any]:
    """As nested lists, in which JSON's null is what is not there."""
    return [_listed(part) if part.ndim else None if np.isnan(part) else float(part) for part in array]


def _unpacked(text: Any, shape: tuple[int, ...]) -> Float[np.ndarray, "prompt stream layer class"]:
    try:
        values = unpack(text)
    except (ValueError, TypeError) as error:
        raise _damaged(f"its values are {brief(text)}") from error
    if values.size != np.prod(shape):
        raise _damaged(f"it has {values.size} values, and its prompts, streams, layers and classes are {shape}")
    values = values.reshape(shape)
    absent = np.isnan(values)
    if np.isinf(values).any() or not (absent == absent[:, :1, :1]).all():
        raise _damaged("a value is not a finite number")
    return values


def _damaged(what: str) -> SelectionError:
    return SelectionError(f"the causal trace is damaged: {what}.")
