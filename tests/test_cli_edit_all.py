import json
import shutil
from importlib import import_module

import pytest
import yaml

import peft_surgical as ps
from peft_surgical.cli.translate import INTERRUPTED
from peft_surgical.joint.resuming import Planned
from peft_surgical.report import Report
from tests.command_line import run, said, written

from .outputs import contents
from .reports import report
from .test_many import FRANCE, ITALY, JAPAN

pytestmark = pytest.mark.usefixtures("few_carried_prompts")

# A command of this name is in the way of its module.
EDIT_ALL = import_module("peft_surgical.cli.edit_all")
LITTLE = {"neighbours": 2, "general": 2, "everyday": 2, "variants": 0, "retain_tokens": 2}


@pytest.fixture
def files(tmp_path):
    """A file each of three facts."""
    found = {}
    for fact in (FRANCE, ITALY, JAPAN):
        found[fact.subject] = tmp_path / f"{fact.subject}.yaml"
        found[fact.subject].write_text(yaml.safe_dump(fact.to_dict()))
    return found


@pytest.fixture
def recipe(tmp_path):
    """A recipe that keeps little, for keyed edits."""
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(LITTLE))
    return path


@pytest.mark.parametrize("scales", [False, True])
def test_it_edits_all_and_measures_all_together(scales, tmp_path, model_folder, files, recipe):
    out = tmp_path / "out"
    options = ["--model", model_folder, "--steps", 1, "--retention-tokens", 64, "--recipe", recipe, "--out", out]
    if scales:
        recipe.write_text(yaml.safe_dump({"unlearn": LITTLE, "learn": {**LITTLE}}))
        options.append("--scales")
    result = run("edit-all", files["france"], files["italy"], *options, "--profile", "--low-memory")
    assert result.exit_code == 0, result.output
    assert written(out) == ["edit", "france", "italy", "together.json"]
    assert ("learn" in written(out / "france")) is scales
    assert Report.load(out / "italy" / "report.json").settings["command"].startswith("peft-surgical edit-all")
    assert "1 of 2, france: Of 1 held-out question" in result.stderr
    assert "everything else" in result.stdout
    for words in ("Right after each fact's edit → with all 2 edits", "with all edits", "controls kept", "Left out: 1"):
        assert words in result.stdout
    result = run("edit-all", *files.values(), *options, "--low-memory", "--json", "--quiet")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told == json.loads((out / "together.json").read_text())
    assert [fact["name"] for fact in told["facts"]] == ["france", "italy", "japan"]
    assert result.stderr == ""


@pytest.mark.usefixtures("no_model")
def test_dry_run_checks_all_and_writes_and_loads_nothing(tmp_path, files):
    out = tmp_path / "out"
    plan = run("edit-all", *files.values(), "--out", out, "--dry-run").stdout
    for words in (
        "Would edit demo: 3 facts, each on top of those before it, by keyed edits.",
        "  italy/  italy, from rome to paris",
        "on 3 held-out prompts, 4 controls",
        "Nothing was loaded or written.",
    ):
        assert words in plan
    assert "  learn      each fact\n" in plan
    assert "recipe" not in plan
    told = json.loads(run("edit-all", files["italy"], "--out", out, "--dry-run", "--json", "--scales").stdout)
    assert told["facts"] == [{"name": "italy", "fact": ITALY.to_dict(), "finished": False}]
    assert (told["keyed"], [*told["recipe"]]) == (False, ["unlearn", "learn"])
    assert told["files"] == ["italy/", "edit/", "together.json"]
    assert not out.exists()


@pytest.mark.usefixtures("no_model")
def test_a_dry_run_tells_of_what_would_be_refused(tmp_path, files):
    command = ["edit-all", files["italy"], "--out", tmp_path / "out", "--dry-run"]
    assert "cannot be used" in said(run(*command, "--device", "cdua"), 2)
    files["italy"].write_text(yaml.safe_dump({**ITALY.to_dict(), "subject": "atlantis"}))
    assert "names the subject 'atlantis'" in run(*command).stderr


def test_no_edit_stays_on_top_of_one_that_is_made_anew(tmp_path, capsys):
    plans = [Planned(f.subject, f, tmp_path, done) for f, done in ((FRANCE, None), (ITALY, report()))]
    for both, stay in ((plans, [False, False]), (plans[::-1], [True, False])):
        EDIT_ALL._tell(both, "demo", True, {}, {}, tmp_path, True, False)
        assert [fact["finished"] for fact in json.loads(capsys.readouterr().out)["facts"]] == stay


def test_options_reach_edit_all(tmp_path, files, fake_model, monkeypatch):
    class Made(Exception):
        pass

    def edit_all(*_, **options):
        given.append(options)
        raise Made

    given, spared = [], []
    monkeypatch.setattr(ps, "edit_all", edit_all)
    monkeypatch.setattr(EDIT_ALL, "spare_memory", spared.append)
    command = ["edit-all", files["italy"], "--out", tmp_path / "out"]
    for more in ([], ["--overwrite", "--seed", 3, "--low-memory", "--quiet"]):
        assert isinstance(run(*command, *more).exception.__context__.__cause__, Made)
    told = [(options["overwrite"], options["seed"], options["progress"]) for options in given]
    assert told == [(False, 0, True), (True, 3, False)]
    assert len(spared) == 1


@pytest.mark.usefixtures("no_model")
def test_dry_run_tells_the_limit_of_steps_and_what_a_recipe_changes(tmp_path, files, recipe):
    command = ["edit-all", *files.values(), "--out", tmp_path / "out", "--dry-run", "--recipe", recipe, "--steps", 2]
    plan = run(*command).stdout
    assert "  learn      each fact, in at most 2 steps\n" in plan
    assert "unlearn" not in plan
    assert f" recipe of {recipe}: learn with steps 2, " in " ".join(plan.split())
    recipe.write_text(yaml.safe_dump({"learn": LITTLE}))
    plan = run(*command, "--scales").stdout
    for stage in ("  unlearn  ", "  learn    "):
        assert f"{stage}  each fact, in at most 2 steps\n" in plan
    assert f" recipe of {recipe}: unlearn with steps 2; learn with steps 2, " in " ".join(plan.split())


@pytest.mark.usefixtures("no_model")
def test_a_mistake_in_any_file_is_told_before_a_model_is_loaded(tmp_path, files):
    out = ["--out", tmp_path / "out"]
    files["italy"].write_text("subject: [1")
    files["japan"].write_text("subject: japan")
    told = said(run("edit-all", *files.values(), *out), 2)
    assert f"{files['italy']}: is not valid YAML" in told
    assert f"{files['japan']}: the key 'old' is missing." in told
    assert "is given twice; give it once" in said(run("edit-all", files["france"], files["france"], *out), 2)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").touch()
    told = said(run("edit-all", files["france"], *out), 2)
    assert "holds notes.txt, which is none of these edits; name another output folder or give --overwrite" in told
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("stepps: 3")
    assert "there is no field 'stepps'" in said(run("edit-all", files["france"], *out, "--recipe", wrong), 2)


def test_a_fact_that_cannot_be_edited_is_told_at_the_end(tmp_path, model_folder, files, recipe):
    out = tmp_path / "out"
    files["italy"].write_text(yaml.safe_dump({**ITALY.to_dict(), "subject": "atlantis"}))
    options = ["--model", model_folder, "--steps", 1, "--retention-tokens", 0, "--recipe", recipe, "--out", out]
    result = run("edit-all", *files.values(), *options)
    assert result.exit_code == 2
    assert written(out) == ["edit", "france", "japan", "together.json"]
    assert "2 of 3, italy: cannot be edited and is left out" in result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith("Error: 1 of 3 facts could not be edited. italy: no prompt names the subject 'atlantis'")
    assert "Not edited: italy" in result.stdout


def test_ctrl_c_says_that_the_same_command_goes_on(tmp_path, model_folder, files, recipe, monkeypatch):
    from peft_surgical import many

    whole = many.edit_keyed

    def interrupted(model, tokenizer, fact, **options):
        if fact.subject == "italy":
            raise KeyboardInterrupt
        return whole(model, tokenizer, fact, **options)

    out = tmp_path / "out"
    options = ["--model", model_folder, "--steps", 1, "--retention-tokens", 0, "--recipe", recipe, "--out", out]
    with monkeypatch.context() as patch:
        patch.setattr(many, "edit_keyed", interrupted)
        result = run("edit-all", *files.values(), *options)
    assert result.exit_code == INTERRUPTED
    assert f"{out} holds what is complete; run the same command again to go on from there." in result.stderr
    kept = contents(out)
    assert run("edit-all", *files.values(), *options, "--dry-run").stdout.count("(is there, and stays)") == 1
    result = run("edit-all", *files.values(), *options)
    assert result.exit_code == 0, result.output
    assert "1 of 3, france: is there already." in result.stderr
    assert {name: content for name, content in contents(out).items() if name in kept} == kept
    told = said(run("edit-all", *reversed(files.values()), *options), 2)
    assert "other edits before it" in told
    assert "give --overwrite" in told
    other = tmp_path / "other"
    shutil.copytree(model_folder, other)
    told = said(run("edit-all", *files.values(), *options, "--model", other), 2)
    assert "another base model" in told
    assert "give --overwrite" in told
    assert "another seed (0)" in said(run("edit-all", *files.values(), *options, "--seed", 1), 2)


def test_other_commands_leave_the_folder_of_all_edits_as_it_is_and_able_to_go_on(
    tmp_path, model_folder, files, recipe
):
    out, common = tmp_path / "out", ["--model", model_folder, "--retention-tokens", 0, "--quiet"]
    command = ["edit-all", files["france"], *common, "--steps", 1, "--recipe", recipe, "--out", out]
    assert run(*command).exit_code == 0
    before = contents(out)
    for one in (
        ["edit-keyed", files["italy"]],
        ["edit", files["italy"]],
        ["learn", "the sky is", "--subject", "sky", "--new", "red"],
    ):
        told = said(run(*one, "--model", model_folder, "--out", out, "--overwrite"), 2)
        assert f"{out} is the folder of several edits; name another output folder." in told
    assert contents(out) == before
    evaluated = run("evaluate", files["france"], *common, "--adapter", out / "edit", "--out", out, "--overwrite")
    assert evaluated.exit_code == 0, evaluated.output
    report = (out / "report.json").read_bytes()
    for more in ([], ["--overwrite"], [files["italy"]]):
        result = run(*command, *more)
        assert result.exit_code == 0, result.output
    assert (out / "report.json").read_bytes() == report
    # Nor is a run in the way that was killed before it wrote what it measured.
    (out / "together.json").unlink()
    assert run(*command, files["italy"]).exit_code == 0
    # Nor before there was an adapter of all.
    (out / "together.json").unlink()
    shutil.rmtree(out / "edit")
    assert run(*command, files["italy"], "--dry-run").exit_code == 0
    assert run(*command, files["italy"]).exit_code == 0
    (out / "report.json").write_text("{}")
    assert "holds report.html, which is none of these" in said(run(*command, files["italy"]), 2)
