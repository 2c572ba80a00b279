"""Recipes as several commands are asked for them: by a file, and by options that change a part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import TypeVar

from ..keying.keyed import KeyedRecipe
from ..stages import LOW_MEMORY_TOKENS, RECIPES
from ..staging.recipe import Recipe
from ..staging.recipe_files import read_recipe, read_recipes

R = TypeVar("R", bound=Recipe)


def keyed_recipe(path: Path | None, steps: int | None, low_memory: bool) -> KeyedRecipe:
    """How a keyed edit trains."""
    recipe = KeyedRecipe() if path is None else read_recipe(path, KeyedRecipe())
    return _changed(recipe, steps, low_memory)


def stage_recipes(path: Path | None, steps: int | None, low_memory: bool) -> dict[str, Recipe]:
    """How each stage of an edit by scales trains."""
    recipes = RECIPES if path is None else read_recipes(path, RECIPES)
    return {stage: _changed(recipe, steps, low_memory) for stage, recipe in recipes.items()}


def _changed(recipe: R, steps: int | None, low_memory: bool) -> R:
    """A recipe with what `--steps` and `--low-memory` say, whatever it said of these itself."""
    if steps is not None:
        recipe = replace(recipe, steps=steps)
    return replace(recipe, pass_tokens=LOW_MEMORY_TOKENS) if low_memory else recipe


def differences(recipes: Mapping[str, Recipe], own: Mapping[str, Recipe], path: Path) -> str:
    """What recipes have otherwise than the stages' own, in words.

    Args:
        recipes: By stage.
        own: Those that hold without a file.
        path: The file.
    """
    parts = []
    for stage, recipe in recipes.items():
        pairs = ((field.name, getattr(recipe, field.name)) for field in fields(recipe))
        others = [f"{name} {value}" for name, value in pairs if value != getattr(own[stage], name)]
        if others:
            parts.append(f"{stage} with {', '.join(others)}")
    return f"of {path}: {'; '.join(parts) or 'as without it'}"
