import json

import pytest
from click.testing import CliRunner

import peft_surgical as ps
from benchmarks.facts import main
from peft_surgical.stages import RECIPES

from .reports import report


def invoke(*arguments):
    return CliRunner().invoke(main, list(map(str, arguments)))


@pytest.fixture
def paths(tmp_path, fact_text):
    found = [tmp_path / "a.yaml", tmp_path / "b.yaml"]
    for path in found:
        path.write_text(fact_text)
    return found


@pytest.mark.usefixtures("few_carried_prompts")
def test_each_fact_is_edited_from_the_base_and_told_by_its_file(paths, tmp_path, model_folder, monkeypatch):
    for name in RECIPES:
        monkeypatch.setitem(RECIPES, name, ps.Recipe(steps=1, general=0, neighbours=2, variants=0, everyday=0))
    out = tmp_path / "out"
    result = invoke(*paths, "--model", model_folder, "--out", out)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout.splitlines()[-1])
    assert list(found) == ["a.yaml", "b.yaml"]
    assert found["a.yaml"] == found["b.yaml"]
    for name, figures in found.items():
        report = json.loads((out / name.removesuffix(".yaml") / "report.json").read_text())
        assert figures == report["stages"]
    assert "| france: paris → lyon |" in result.stdout
    # The planted model answers no control right, so nothing can be kept of them.
    assert "control_kept" not in found["a.yaml"]["edited"]
    assert "| – |" in result.stdout


def test_keyed_edits_are_keyed(paths, tmp_path, model_folder, monkeypatch):
    def edit_keyed(model, tokenizer, fact, *, out, seed, overwrite):
        asked.append((fact.subject, out, seed, overwrite))
        return report()

    asked = []
    monkeypatch.setattr(ps, "edit_keyed", edit_keyed)
    result = invoke(paths[0], "--model", model_folder, "--out", tmp_path / "out", "--keyed", "--seed", 3)
    assert result.exit_code == 0, result.output
    assert asked == [("france", tmp_path / "out" / "a", 3, False)]
    assert json.loads(result.stdout.splitlines()[-1]) == {"a.yaml": report().to_dict()["stages"]}


@pytest.mark.usefixtures("no_model")
def test_a_folder_that_is_in_the_way_is_told_before_the_first_edit(paths, tmp_path):
    (tmp_path / "out" / "b").mkdir(parents=True)
    (tmp_path / "out" / "b" / "notes.txt").write_text("mine")
    result = invoke(*paths, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "b is not empty" in result.output
