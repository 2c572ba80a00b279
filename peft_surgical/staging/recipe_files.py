"""Recipes as a report records them, and from a file: how an edit was made can be given back, to make it again.

A file is YAML or JSON with a recipe's fields, or with those of each stage below its name. What it leaves out is as
it is without the file. A report is such a file, too, by the recipe that it records.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import FactError, ModelError, brief
from ..texts.fact_files import read_plain_file

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

R = TypeVar("R", bound="DataclassInstance")


def recorded(recipe: DataclassInstance) -> dict[str, Any]:
    """A recipe's fields as JSON. That has no infinity, so an infinite limit is a word, which a file may hold, too."""
    return {name: str(value) if value in (math.inf, -math.inf) else value for name, value in asdict(recipe).items()}


def read_recipe(path: str | os.PathLike[str], own: R) -> R:
    """Reads one recipe.

    Args:
        path: The file.
        own: The recipe that holds without it.

    Returns:
        A recipe of the kind of `own`.

    Raises:
        ModelError: If the file cannot be read, names a field that there is not, or has a value that is refused.
    """
    return _filled(_read(path), own, str(path))


def read_recipes(path: str | os.PathLike[str], own: Mapping[str, R]) -> dict[str, R]:
    """Reads a recipe for each of several stages.

    Args:
        path: The file.
        own: Each stage's recipe that holds without it.

    Raises:
        ModelError: As for [`read_recipe`], or if the file names a stage that there is not.
    """
    data = _read(path)
    for name in data:
        if name not in own:
            stages = " and ".join(own)
            raise ModelError(f"{path}: there is no stage {brief(name)}; give fields below the stages, {stages}.")
    return {stage: _filled(data.get(stage, {}), recipe, f"{path}: {stage}") for stage, recipe in own.items()}


def _read(path: str | os.PathLike[str]) -> Mapping[str, Any]:
    try:
        data = read_plain_file(path, "recipe")
    except FactError as error:
        raise ModelError(str(error)) from error
    if isinstance(data, Mapping) and {"fact", "stages"} <= data.keys():
        settings = data.get("settings")
        if not isinstance(settings, Mapping) or "recipe" not in settings:
            raise ModelError(f"{path}: this report records no recipe, as one of `evaluate` does not.")
        data = settings["recipe"]
    return _mapping(data, str(path))


def _mapping(data: object, where: str) -> Mapping[str, Any]:
    if not isinstance(data, Mapping):
        given = "nothing" if data is None else brief(data)
        raise ModelError(f"{where}: a recipe is a mapping of fields to values, not {given}.")
    return data


def _filled(data: object, own: R, where: str) -> R:
    """A recipe with what a file says of it."""
    known = [field.name for field in fields(own)]
    given = _mapping(data, where)
    for name, value in given.items():
        if name not in known:
            raise ModelError(f"{where}: there is no field {brief(name)}; the fields are {', '.join(known)}.")
        if isinstance(value, (Mapping, list)):
            raise ModelError(f"{where}: {name} must be one value, such as {getattr(own, name)}, not {brief(value)}.")
    try:
        return replace(own, **{name: _value(word) for name, word in given.items()})
    except ModelError as error:
        raise ModelError(f"{where}: {error}") from error


def _value(word: object) -> object:
    """What a word of a file stands for, such as a number. Whether it fits its field, the recipe says."""
    if word is None or word == "None":
        return None
    if not isinstance(word, str):
        # JSON's true and false.
        return word
    if word.lower() in ("true", "false"):
        return word.lower() == "true"
    for kind in (int, float):
        # YAML has a dot before infinity.
        with suppress(ValueError):
            return kind(word.lower().replace(".inf", "inf"))
    return word
