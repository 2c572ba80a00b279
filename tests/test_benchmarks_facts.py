import json

import pytest
from click.testing import CliRunner

import peft_surgical as ps
from benchmarks.facts import main
from peft_surgical.stages import RECIPES

from .reports import ANSWERS, FACT, report

OF_SUBJECT = ("subject_kept", "subject_leak")


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
        assert {stage: _told(kinds) for stage, kinds in figures.items()} == report["stages"]
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


def test_controls_that_name_the_subject_are_counted_alone(paths, tmp_path, monkeypatch):
    """Of France and of Gaul three are asked, of which the base knows two; of these the edit loses one."""
    asked = ["Who sings in France?", "What is eaten in Gaul?", "Is France old?", "What is the capital of Italy?"]
    controls = [{"prompt": prompt, "answer": ["yes"]} for prompt in asked]
    fact = ps.Fact.from_dict({**FACT.to_dict(), "aliases": ["Gaul"], "controls": controls})
    answers = {
        "base": {**ANSWERS["base"], "controls": ["Yes.", "Yes.", "No.", "Yes."]},
        "edited": {**ANSWERS["edited"], "controls": ["Yes.", "Lyon.", "Lyon.", "No."]},
    }
    monkeypatch.setattr(ps, "edit_keyed", lambda *_, **options: report(fact=fact, answers=answers))
    monkeypatch.setattr(ps, "load_model", lambda name: (None, None))
    result = invoke(paths[0], "--model", "demo", "--out", tmp_path / "out", "--keyed")
    assert result.exit_code == 0, result.output
    base, edited = json.loads(result.stdout.splitlines()[-1])["a.yaml"].values()
    assert [(base[name]["value"], base[name]["n"]) for name in OF_SUBJECT] == [(1, 2), (0, 3)]
    assert [(edited[name]["value"], edited[name]["n"]) for name in OF_SUBJECT] == [(0.5, 2), (2 / 3, 3)]
    assert (edited["control_kept"]["value"], edited["control_leak"]["value"]) == (1 / 3, 0.5)
    assert "| 0.500 [0.095, 0.905] n=2 |" in result.stdout


def _told(figures):
    """What the report tells."""
    return {name: figure for name, figure in figures.items() if name not in OF_SUBJECT}


@pytest.mark.usefixtures("no_model")
def test_a_folder_that_is_in_the_way_is_told_before_the_first_edit(paths, tmp_path):
    (tmp_path / "out" / "b").mkdir(parents=True)
    (tmp_path / "out" / "b" / "notes.txt").write_text("mine")
    result = invoke(*paths, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "b is not empty" in result.output
