"""What a localization file must hold, so that everything that reads a localization can rely on it.

A file may come from anybody: names must be components of the model that the file is about, scores finite numbers, and
neuron scores as many as an MLP has neurons.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from ..errors import SelectionError, brief
from ..sites import Component, ModelShape, check_component
from .faithfulness import Faithfulness
from .scores import Scores


def read_localization(data: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a `Localization`, checked.

    Args:
        data: What its `to_dict` gave, or anything else.

    Raises:
        SelectionError: When a value is missing, or not of its kind.
    """
    shape = ModelShape.from_dict(_get(data, "shape", Mapping))
    neurons, notes = _get(data, "neurons", Mapping), _get(data, "notes", Mapping)
    tables = {}
    for name, scores in _get(data, "scores", Mapping).items():
        if not isinstance(name, str) or not isinstance(scores, Mapping) or not scores:
            raise _damaged(f"the scores of {brief(name)} are {brief(scores)}")
        tables[name] = Scores(
            {component: _score(component, score, shape) for component, score in scores.items()},
            {mlp: _unpack(mlp, text, shape) for mlp, text in _get(neurons, name, Mapping).items()},
            _get(notes, name, Mapping),
        )
    scorers, corruption = _get(data, "scorers", list), _get(data, "corruption", list)
    errors = _get(data, "errors", Mapping)
    if not scorers or not all(isinstance(name, str) for name in scorers):
        raise _damaged(f"its scorers are {brief(scorers)}")
    if not all(isinstance(text, str) for pair in errors.items() for text in pair):
        raise _damaged(f"its errors are {brief(errors)}")
    if not all(isinstance(record, Mapping) for record in corruption):
        raise _damaged(f"its corruption is {brief(corruption)}")
    carried = None
    # Most localizations were made without it.
    if "faithfulness" in data:
        carried = Faithfulness.from_dict(data["faithfulness"])
        carried.selection.check(shape)
    return {
        **{key: _get(data, key, str) for key in ("model", "dtype", "subject")},
        "shape": shape,
        "scorers": tuple(scorers),
        "tables": tables,
        "corruption": tuple(corruption),
        "seed": _get(data, "seed", int),
        "errors": errors,
        "faithfulness": carried,
    }


def pack(values: Float[np.ndarray, " n"]) -> str:
    """Numbers as base64 of little-endian float32."""
    return base64.b64encode(values.astype("<f4").tobytes()).decode("ascii")


def unpack(text: Any) -> Float[np.ndarray, " n"]:
    """What `pack` was given.

    Raises:
        ValueError: When it is other text; or TypeError, when it is none.
    """
    return np.frombuffer(base64.b64decode(text, validate=True), "<f4").astype(np.float32)


def _unpack(mlp: Any, text: Any, shape: ModelShape) -> Float[np.ndarray, " d_mlp"]:
    if _component(mlp, shape).kind != "mlp":
        raise _damaged(f"it has neuron scores of {mlp}, and only an MLP has neurons")
    try:
        values = unpack(text)
    except (ValueError, TypeError) as error:
        raise _damaged(f"the neuron scores of {mlp} are {brief(text)}") from error
    if len(values) != shape.d_mlp:
        raise _damaged(f"it has {len(values)} neuron scores of {mlp}, and an MLP has {shape.d_mlp} neurons")
    if not np.isfinite(values).all():
        raise _damaged(f"a neuron score of {mlp} is not a finite number")
    return values


def _score(name: Any, score: Any, shape: ModelShape) -> float:
    _component(name, shape)
    if type(score) not in (int, float):
        raise _damaged(f"the score of {name} is {brief(score)}")
    try:
        value = float(score)
    except OverflowError:
        value = math.inf
    if not math.isfinite(value):
        raise _damaged(f"the score of {name} is not a finite number")
    return value


def _component(name: Any, shape: ModelShape) -> Component:
    component = Component.parse(name)
    check_component(shape, component)
    return component


def _get(data: Mapping[Any, Any], key: str, kind: type) -> Any:
    if key not in data:
        raise _damaged(f"it has no {brief(key)}")
    value = data[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise _damaged(f"its {key} is {brief(value)}")
    return value


def _damaged(what: str) -> SelectionError:
    return SelectionError(f"the localization is damaged: {what}.")
