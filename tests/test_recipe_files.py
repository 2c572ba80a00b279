import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from peft_surgical.errors import ModelError
from peft_surgical.keying.keyed import KeyedRecipe
from peft_surgical.keying.keyed_by_subject import KeyedSubjectRecipe
from peft_surgical.stages import RECIPES
from peft_surgical.staging.by_subject import SubjectRecipe
from peft_surgical.staging.recipe import Recipe
from peft_surgical.staging.recipe_files import read_recipe, read_recipes, recorded
from tests.reports import report

KINDS = [Recipe, KeyedRecipe, SubjectRecipe, KeyedSubjectRecipe]


@pytest.fixture
def file(tmp_path):
    """Writes a text into a file, or a value as JSON; returns its path."""

    def file(content):
        path = tmp_path / "recipe.yaml"
        path.write_text(content if isinstance(content, str) else json.dumps(content, allow_nan=False))
        return path

    return file


@pytest.mark.parametrize("dump", [json.dumps, yaml.safe_dump])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_recorded_is_read_back_bit_for_bit(file, kind, dump):
    own = kind(steps=3, target_loss=math.inf, compute_dtype="bfloat16")
    own = replace(own, target_loss=0.1 + 0.2) if kind is KeyedRecipe else own
    path = file(dump(recorded(own)))
    assert read_recipe(path, kind()) == own
    assert type(read_recipe(path, kind())) is kind


def test_what_is_recorded_is_every_field_and_json():
    recipe = Recipe(target_kl=-math.inf, pass_tokens=7)
    told = json.loads(json.dumps(recorded(recipe), allow_nan=False))
    assert told == {**vars(recipe), "target_kl": "-inf"}


@pytest.mark.parametrize(
    ("text", "change"),
    [
        ("steps: 20", {"steps": 20}),
        ("steps: '20' # of both", {"steps": 20}),
        ("step_kl: 1e-3", {"step_kl": 0.001}),
        ("damping: 2", {"damping": 2}),
        ("target_kl: .inf", {"target_kl": math.inf}),
        ("target_kl: -.Inf", {"target_kl": -math.inf}),
        ("pass_tokens: null", {"pass_tokens": None}),
        ("pass_tokens: None", {"pass_tokens": None}),
        ("pass_tokens:\ncompute_dtype: float16", {"pass_tokens": None, "compute_dtype": "float16"}),
        ("{}", {}),
        ('{"steps": 4, "settle": 0.25}', {"steps": 4, "settle": 0.25}),
    ],
)
def test_what_a_file_leaves_out_is_as_it_is_without(file, text, change):
    own = Recipe(steps=9, pass_tokens=5)
    assert read_recipe(file(text), own) == replace(own, **change)


@pytest.mark.parametrize("text", ["other_names: false", "other_names: False", '{"other_names": false}'])
def test_a_switch_of_a_file_is_one(file, text):
    assert read_recipe(file(text), KeyedRecipe()) == KeyedRecipe(other_names=False)
    with pytest.raises(ModelError, match=r"recipe\.yaml: other_names must be True or False; got 'no'\."):
        read_recipe(file("other_names: no"), KeyedRecipe())


def test_each_stage_has_its_own(file):
    assert read_recipes(file("learn:\n  steps: 2\n"), RECIPES) == {
        **RECIPES,
        "learn": replace(RECIPES["learn"], steps=2),
    }
    assert read_recipes(file({"unlearn": {"hold": 1}, "learn": {}}), RECIPES) == {
        **RECIPES,
        "unlearn": replace(RECIPES["unlearn"], hold=1),
    }


def test_a_report_is_read_by_the_recipe_that_it_records(file):
    recipes = {stage: replace(own, steps=5, target_loss=math.inf) for stage, own in RECIPES.items()}
    settings = {"recipe": {stage: recorded(own) for stage, own in recipes.items()}}
    assert read_recipes(file(report(settings=settings).to_dict()), RECIPES) == recipes
    with pytest.raises(
        ModelError, match=r"recipe\.yaml: this report records no recipe, as one of `evaluate` does not"
    ):
        read_recipes(file(report().to_dict()), RECIPES)
    for settings in ({}, {"settings": None}):
        older = {key: value for key, value in report().to_dict().items() if key != "settings"} | settings
        with pytest.raises(ModelError, match="this report records no recipe"):
            read_recipes(file(older), RECIPES)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ": a recipe is a mapping of fields to values, not nothing."),
        ("- steps", ": a recipe is a mapping of fields to values, not ['steps']."),
        ("stps: 3", ": there is no field 'stps'; the fields are steps, step_kl, "),
        ("learn: {steps: 3}", ": there is no field 'learn'; the fields are steps, step_kl, "),
        # Half of what a report has is none.
        ("fact: x", ": there is no field 'fact'; the fields are steps, step_kl, "),
        ("stages: x", ": there is no field 'stages'; the fields are steps, step_kl, "),
        ("steps: -1", ": steps must be a whole number of 0 or more; got -1."),
        ("steps: 2.5", ": steps must be a whole number of 0 or more; got 2.5."),
        ("steps: many", ": steps must be a whole number of 0 or more; got 'many'."),
        ("steps:", ": steps must be a whole number of 0 or more; got None."),
        ("steps: [3]", ": steps must be one value, such as 15, not ['3']."),
        ("fact_batch: 0", ": fact_batch must be a whole number of 1 or more; got 0."),
        ("step_kl: .nan", ": step_kl must be a finite number of 0 or more; got '.nan'."),
        ("step_kl: inf", ": step_kl must be a finite number of 0 or more; got inf."),
        ("compute_dtype: int8", ": unknown compute_dtype 'int8'; choose one of auto, float32"),
        ("compute_dtype: {}", ": compute_dtype must be one value, such as auto, not {}."),
        ('{"steps": true}', ": steps must be a whole number of 0 or more; got True."),
        ('{"step_kl": false}', ": step_kl must be a finite number of 0 or more; got False."),
        ('{"settle": true}', ": settle must be "),
        ('{"pass_tokens": false}', ": pass_tokens must be "),
        ('{"target_kl": true}', ": target_kl must be "),
        ('{"compute_dtype": true}', ": unknown compute_dtype True; choose one of auto, float32"),
        ("steps: 3\nsteps: 4", ": is not valid YAML in line 2: the key 'steps' stands twice."),
        ('{"steps": 3, "steps": 4}', ": the key 'steps' stands twice."),
        ("steps: !!int 3", "; a recipe holds plain texts and lists."),
        ("steps: &a 3\nhold: *a", ": line 1 has a text that begins with &a"),
        ("steps: [", ": is not valid YAML"),
    ],
)
def test_a_mistake_is_one_sentence_that_names_the_file_and_what_is_right(file, text, words):
    with pytest.raises(ModelError, match=re.escape(words)) as told:
        read_recipe(file(text), Recipe())
    assert str(told.value).startswith(f"{file(text)}: ")
    assert "\n" not in str(told.value)
    assert str(told.value).endswith(".")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("steps: 3", ": there is no stage 'steps'; give fields below the stages, unlearn and learn."),
        ("learn: {steps: x}", ": learn: steps must be a whole number of 0 or more; got 'x'."),
        ("unlearn: {held: 3}", ": unlearn: there is no field 'held'; the fields are steps, "),
        ("unlearn:", ": unlearn: a recipe is a mapping of fields to values, not nothing."),
    ],
)
def test_a_mistake_in_a_stage_names_it(file, text, words):
    with pytest.raises(ModelError, match=re.escape(words)):
        read_recipes(file(text), RECIPES)


def test_a_file_that_is_not_there_is_told_of(tmp_path):
    with pytest.raises(ModelError, match=r"none\.yaml: cannot be read \(No such file or directory\)"):
        read_recipe(tmp_path / "none.yaml", Recipe())
    (tmp_path / "large.yaml").write_bytes(b" " * 10_000_001)
    with pytest.raises(ModelError, match=r"large\.yaml: a recipe file may have 10,000,000 bytes at most"):
        read_recipe(tmp_path / "large.yaml", Recipe())


def test_the_example_of_the_documentation_is_a_recipe(file):
    page = (Path(__file__).parents[1] / "docs" / "training.md").read_text(encoding="utf-8")
    [example] = re.findall(r"^```yaml\n(.*?)^```$", page, re.M | re.S)
    assert read_recipes(file(example), RECIPES) == {
        "unlearn": replace(RECIPES["unlearn"], steps=4, hold=3),
        "learn": replace(RECIPES["learn"], steps=20, compute_dtype="float32"),
    }
