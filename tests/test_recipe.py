import math
import time
from dataclasses import replace
from functools import cache

import pytest
import torch

from peft_surgical.errors import ModelError
from peft_surgical.keying.keyed import KeyedRecipe
from peft_surgical.keying.keyed_by_subject import KeyedSubjectRecipe
from peft_surgical.stages import LOW_MEMORY_TOKENS, RECIPES, low_memory
from peft_surgical.staging.by_subject import SubjectRecipe
from peft_surgical.staging.recipe import Recipe, TrainingRecord

from .test_keyed import NAMED, PROMPTS, RECIPE, taught

# All that is near in each step, as neurons fire at little of it.
NUMBERS = replace(RECIPE, near_batch=200)
AMOUNTS = {
    Recipe: ("step_kl", "settle", "damping", "margin", "retain_weight", "pull", "undo", "near_weight"),
    KeyedRecipe: ("step_kl", "share_of_loss"),
    SubjectRecipe: ("length", "shrink", "other_weight"),
    KeyedSubjectRecipe: ("share_of_loss", "length"),
}


def test_a_dtype_that_is_none_is_refused():
    with pytest.raises(ModelError, match="unknown compute_dtype 'int8'; choose one of auto, float32"):
        Recipe(compute_dtype="int8")


@pytest.mark.parametrize(
    ("options", "least"),
    [
        *(({name: 0}, 1) for name in ("fact_batch", "draws", "retain_tokens")),
        *(
            ({name: -1}, 0)
            for name in ("steps", "hold", "near_batch", "far_batch", "variants", "neighbours", "everyday", "general")
        ),
    ],
)
def test_a_count_that_is_too_small_is_refused(options, least):
    [(name, count)] = options.items()
    with pytest.raises(ModelError, match=f"{name} must be a whole number of {least} or more; got {count}"):
        Recipe(**options)


@pytest.mark.parametrize(("recipe", "name"), [(recipe, name) for recipe, names in AMOUNTS.items() for name in names])
def test_an_amount_that_leads_nowhere_is_refused(recipe, name):
    with pytest.raises(ModelError, match=f"{name} must be a finite number of 0 or more; got -1.0"):
        recipe(**{name: -1.0})


@pytest.mark.parametrize(
    ("recipe", "name"), [(SubjectRecipe, "damping"), (KeyedRecipe, "ridge"), (KeyedSubjectRecipe, "ridge")]
)
@pytest.mark.parametrize("amount", [0, -1.0])
def test_what_makes_equations_solvable_is_above_0(recipe, name, amount):
    with pytest.raises(ModelError, match=f"{name} must be a finite number above 0; got {amount}"):
        recipe(**{name: amount})


@pytest.mark.parametrize(
    ("recipe", "name"),
    [
        *((recipe, "target_loss") for recipe in (Recipe, KeyedRecipe, SubjectRecipe, KeyedSubjectRecipe)),
        (Recipe, "target_kl"),
    ],
)
def test_a_target_is_a_number(recipe, name):
    with pytest.raises(ModelError, match=f"{name} must be a number; got 'b'"):
        recipe(**{name: "b"})


@pytest.mark.parametrize("tokens", [0, 2.5, "x", True])
def test_tokens_of_a_pass_are_whole(tokens):
    with pytest.raises(ModelError, match=f"pass_tokens must be a whole number of 1 or more, .* got {tokens!r}"):
        Recipe(pass_tokens=tokens)


def keyed(recipe):
    """What neurons write after training; their subject has namesakes, and they fire at some of what is kept."""
    prompts, retain = ([text.replace("france", "new france") for text in texts] for texts in (PROMPTS, NAMED.retain))
    fact = replace(NAMED, subject="new france", prompts=tuple(prompts), retain=tuple(retain))
    return [*taught(fact=fact, recipe=recipe).model.parameters()]


@cache
def keyed_as_it_is():
    return keyed(NUMBERS)


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 4},
        {"step_kl": 1e-5},
        {"hold": 0},
        {"damping": 9.0},
        {"target_loss": 1e9, "target_kl": 1e9},
        {"margin": 9.0},
        {"retain_weight": 0.0},
        {"pull": 0.0},
        {"fact_batch": 1},
        {"near_batch": 0},
        {"far_batch": 0},
        {"near_weight": 0.0},
        {"draws": 2},
        {"variants": 0},
        {"neighbours": 0},
        {"general": 0},
        {"retain_tokens": 1},
        {"held": 1},
        {"share_of_loss": 1e-4},
        {"namesakes": 0},
        {"ridge": 1.0},
    ],
)
@pytest.mark.usefixtures("few_carried_prompts")
def test_each_number_of_a_recipe_matters(change):
    found = keyed(replace(NUMBERS, **change))
    assert not all(torch.equal(a, b) for a, b in zip(found, keyed_as_it_is(), strict=True))


def test_less_memory_is_for_stages_alone():
    plain = low_memory()
    assert {stage: replace(recipe, pass_tokens=None) for stage, recipe in plain.items()} == dict(RECIPES)
    less = Recipe(steps=3, pass_tokens=LOW_MEMORY_TOKENS)
    assert low_memory(Recipe(steps=3)) == dict.fromkeys(RECIPES, less)
    with pytest.raises(ModelError, match="must be a Recipe, and is of the type KeyedSubjectRecipe"):
        low_memory(KeyedSubjectRecipe())


def test_what_training_reached_is_of_the_prompts_that_were_seen():
    rest = {"steps": 2, "kl": None, "reached": False, "started": time.perf_counter(), "dtype": torch.bfloat16}
    record = TrainingRecord.of([0.5, math.inf, 1.5], **rest)
    assert (record.loss, record.worst, record.compute_dtype) == (1.0, 1.5, "bfloat16")
    none = TrainingRecord.of([math.inf], **rest)
    assert (none.loss, none.worst) == (math.inf, math.inf)


def test_steps_that_take_a_millisecond_are_told_from_none(monkeypatch):
    monkeypatch.setattr(time, "perf_counter", lambda: 8.001)
    record = TrainingRecord.of([], steps=1, kl=None, reached=False, started=8.0, dtype=torch.float32)
    assert record.seconds == 0.001
