import json
from dataclasses import replace
from functools import partial

import pytest

import peft_surgical as ps
from peft_surgical.cli.recipes import differences
from peft_surgical.report import Report
from peft_surgical.stages import RECIPES
from peft_surgical.staging.recipe_files import recorded
from tests.command_line import run, said, written
from tests.outputs import contents
from tests.reports import report

SENTENCE = ["learn", "the capital of france is", "--new", "lyon", "--subject", "france"]
STAGES = {"unlearn": {"steps": 2, "general": 0}, "learn": {"steps": 3, "general": 0, "target_loss": 0.0}}
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def recipe_file(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(STAGES))
    return path


def test_a_recipe_reaches_edit_and_options_win_over_it(monkeypatch, tmp_path, fact_file, recipe_file, fake_model):
    given = {}
    monkeypatch.setattr(ps, "edit", lambda *_, **options: given.update(options) or report())
    monkeypatch.setattr("peft_surgical.cli.allocator.give_back_freed", lambda: None)
    command = ["edit", fact_file, "--out", tmp_path / "out", "--quiet", "--recipe", recipe_file]
    expected = {stage: replace(own, **STAGES[stage]) for stage, own in RECIPES.items()}
    assert run(*command).exit_code == 0
    assert given["recipe"] == expected
    assert run(*command, "--steps", 7, "--low-memory").exit_code == 0
    assert given["recipe"] == {stage: replace(own, steps=7, pass_tokens=256) for stage, own in expected.items()}


def test_a_recipe_reaches_edit_keyed_and_options_win_over_it(monkeypatch, tmp_path, fact_file, fake_model):
    given = {}
    monkeypatch.setattr(ps, "edit_keyed", lambda *_, **options: given.update(options) or report("base", "edited"))
    monkeypatch.setattr("peft_surgical.cli.allocator.give_back_freed", lambda: None)
    path = tmp_path / "recipe.yaml"
    path.write_text("steps: 4\nridge: 0.5\n")
    command = ["edit-keyed", fact_file, "--out", tmp_path / "out", "--quiet"]
    assert run(*command).exit_code == 0
    assert given["recipe"] == ps.KeyedRecipe()
    assert run(*command, "--recipe", path).exit_code == 0
    assert given["recipe"] == ps.KeyedRecipe(steps=4, ridge=0.5)
    assert run(*command, "--recipe", path, "--steps", 7, "--low-memory").exit_code == 0
    assert given["recipe"] == ps.KeyedRecipe(steps=7, ridge=0.5, pass_tokens=256)


@pytest.mark.usefixtures("few_carried_prompts")
@pytest.mark.parametrize(
    ("more", "kind"), [([], ps.SubjectRecipe), (["--keyed"], ps.KeyedSubjectRecipe)], ids=["scales", "keyed"]
)
def test_a_recipe_reaches_learn_and_is_told(tmp_path, model_folder, more, kind):
    path = tmp_path / "recipe.yaml"
    path.write_text("steps: 1\nnames: 3\ntarget_loss: -.inf\n")
    command = [*SENTENCE, *more, "--model", model_folder, "--json", "--quiet"]
    result = run(*command, "--recipe", path, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["training"]["steps"] == 1
    assert told["recipe"] == recorded(kind(steps=1, names=3)) | {"target_loss": "-inf"}
    # What it told makes the same.
    path.write_text(json.dumps(told["recipe"]))
    again = run(*command, "--recipe", path, "--out", tmp_path / "again")
    assert json.loads(again.stdout)["recipe"] == told["recipe"]
    weights = [(tmp_path / name / "edit" / WEIGHTS).read_bytes() for name in ("out", "again")]
    assert weights[0] == weights[1]


@pytest.mark.usefixtures("few_carried_prompts")
def test_an_edit_is_made_again_from_its_report_or_the_recipe_in_it(tmp_path, model_folder, fact_file, recipe_file):
    edit = partial(run, "edit", fact_file, "--model", model_folder, "--retention-tokens", 48, "--quiet")
    assert edit("--recipe", recipe_file, "--steps", 2, "--out", tmp_path / "out").exit_code == 0
    made = Report.load(tmp_path / "out" / "report.json")
    assert made.settings["recipe"] == {
        stage: recorded(replace(own, **STAGES[stage] | {"steps": 2})) for stage, own in RECIPES.items()
    }
    (tmp_path / "again.json").write_text(json.dumps(made.settings["recipe"]))
    for number, path in enumerate((tmp_path / "again.json", tmp_path / "out" / "report.json")):
        result = edit("--recipe", path, "--out", tmp_path / str(number))
        assert result.exit_code == 0, result.output
        again = Report.load(tmp_path / str(number) / "report.json")
        assert (again.answers, again.settings["recipe"]) == (made.answers, made.settings["recipe"])
        own, other = (contents(tmp_path / name / "edit") for name in ("out", str(number)))
        assert own[WEIGHTS] == other[WEIGHTS]


@pytest.mark.usefixtures("few_carried_prompts")
@pytest.mark.parametrize(
    ("words", "fields"),
    [(["edit"], STAGES), (["edit-keyed", "--layer", 1], {"steps": 2, "ridge": 0.5})],
    ids=["edit", "edit-keyed"],
)
def test_an_edit_on_top_of_another_is_made_again_from_its_report(tmp_path, model_folder, fact_file, words, fields):
    (tmp_path / "recipe.json").write_text(json.dumps(fields))
    edit = partial(run, words[0], fact_file, *words[1:], "--model", model_folder, "--retention-tokens", 0, "--quiet")
    for name, path, on in (
        ("first", "recipe.json", []),
        ("second", "first/report.json", ["--on", tmp_path / "first" / "edit"]),
        ("again", "second/report.json", ["--on", tmp_path / "first" / "edit"]),
    ):
        result = edit("--recipe", tmp_path / path, *on, "--out", tmp_path / name)
        assert result.exit_code == 0, result.output
    made, again = (Report.load(tmp_path / name / "report.json") for name in ("second", "again"))
    for each in (made, again):
        assert [one["folder"] for one in each.settings["on"]] == [str(tmp_path / "first" / "edit")]
    assert made.settings["recipe"] == again.settings["recipe"]
    first, second, third = ((tmp_path / n / "edit" / WEIGHTS).read_bytes() for n in ("first", "second", "again"))
    assert second == third != first
    # What it was made on top of is not taken from a report.
    assert edit("--recipe", tmp_path / "second/report.json", "--out", tmp_path / "alone").exit_code == 0
    assert "on" not in Report.load(tmp_path / "alone" / "report.json").settings
    card = (tmp_path / "second" / "edit" / "README.md").read_text()
    assert "Here base is the model with first/edit folded in." in card


@pytest.mark.usefixtures("no_model")
def test_a_dry_run_tells_what_a_recipe_changes(tmp_path, fact_file, recipe_file):
    command = ["edit", fact_file, "--out", tmp_path / "out", "--dry-run"]
    told = " ".join(run(*command, "--recipe", recipe_file).stdout.split())
    assert (
        f" recipe of {recipe_file}: unlearn with steps 2, general 0; learn with steps 3, target_loss 0.0, gen" in told
    )
    plan = json.loads(run(*command, "--recipe", recipe_file, "--json").stdout)
    assert plan["recipe"] == {stage: recorded(replace(own, **STAGES[stage])) for stage, own in RECIPES.items()}
    assert "recipe" not in run(*command).stdout
    plan = json.loads(run(*command, "--steps", 3, "--json").stdout)
    assert plan["recipe"] == {stage: recorded(replace(own, steps=3)) for stage, own in RECIPES.items()}
    assert differences(RECIPES, RECIPES, recipe_file) == f"of {recipe_file}: as without it"


@pytest.mark.usefixtures("no_model")
def test_a_dry_run_of_a_keyed_edit_tells_it_too(tmp_path, fact_file):
    (tmp_path / "own.yaml").write_text("steps: 4\nnear_batch: 2\n")
    command = ["edit-keyed", fact_file, "--out", tmp_path / "out", "--dry-run", "--recipe", tmp_path / "own.yaml"]
    told = " ".join(run(*command, "--steps", 3).stdout.split())
    assert f" recipe of {tmp_path / 'own.yaml'}: learn with steps 3, near_batch 2 evaluate" in told
    assert json.loads(run(*command, "--json").stdout)["recipe"] == recorded(ps.KeyedRecipe(steps=4, near_batch=2))


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("command", ["edit", "edit-keyed", "learn", "learn --keyed"])
def test_a_mistake_is_told_before_a_model_is_loaded(tmp_path, fact_file, command):
    name, *more = command.split()
    path = tmp_path / "recipe.yaml"
    path.write_text("stps: 3\n")
    words = [*SENTENCE, *more] if name == "learn" else [name, fact_file]
    line = said(run(*words, "--recipe", path, "--out", tmp_path / "out"), 2)
    assert line.startswith(f"Error: {path}: there is no {'stage' if name == 'edit' else 'field'} 'stps'; ")
    line = said(run(*words, "--recipe", tmp_path / "none.yaml", "--out", tmp_path / "out"), 2)
    assert line == f"Error: {tmp_path / 'none.yaml'}: cannot be read (No such file or directory)."
    assert written(tmp_path) == ["fact.yaml", "recipe.yaml"]


@pytest.mark.usefixtures("no_model")
def test_a_recipe_of_another_command_is_refused_by_what_it_holds(tmp_path, fact_file):
    keyed, staged = tmp_path / "keyed.json", tmp_path / "staged.json"
    keyed.write_text(json.dumps(report(settings={"recipe": recorded(ps.KeyedRecipe())}).to_dict()))
    staged.write_text(json.dumps(STAGES))
    line = said(run("edit", fact_file, "--recipe", keyed, "--out", tmp_path / "out"), 2)
    assert line == f"Error: {keyed}: there is no stage 'steps'; give fields below the stages, unlearn and learn."
    line = said(run("edit-keyed", fact_file, "--recipe", staged, "--out", tmp_path / "out"), 2)
    assert "there is no field 'unlearn'; the fields are steps, " in line
