import json
from dataclasses import replace

import pytest

import peft_surgical as ps
from peft_surgical.localizing.scores import Scores
from tests.command_line import run, said, written


def test_a_limit_that_nothing_is_within_leaves_what_was_there(tmp_path, fact_file, model_folder, monkeypatch):
    localize = ps.localize

    def of_mlps(*arguments, **options):
        found = localize(*arguments, **options)
        scores = {name: score for name, score in found.scores["random"].items() if "mlp" in name}
        return replace(found, tables={"random": Scores(scores)})

    monkeypatch.setattr(ps, "localize", of_mlps)
    out = tmp_path / "out"
    command = ["localize", fact_file, "--model", model_folder, "--scorer", "random", "--heads", 2, "--out", out]
    line = said(run(*command, "--quiet"), 2)
    assert line == "Error: no component fits --heads 2: the scorer scored no heads."
    assert not out.exists()
    out.mkdir()
    earlier = '{"format": 1, "scorers": [], "scores": "of an earlier run"}'
    for name in ("localization.json", "localization.png"):
        (out / name).write_text(earlier)
    assert said(run(*command, "--quiet", "--overwrite"), 2) == line
    assert [(out / name).read_text() for name in written(out)] == [earlier] * 2


def test_a_budget_is_an_upper_bound(tmp_path, fact_file, model_folder):
    options = ["--model", model_folder, "--scorer", "random", "--budget", 10**9, "--out", tmp_path / "out"]
    assert run("localize", fact_file, *options).exit_code == 0
    assert len(ps.Selection.load(tmp_path / "out" / "localization.json").components) == 15


def test_what_the_chosen_carry_is_told_and_recorded(tmp_path, fact_file, model_folder):
    options = [fact_file, "--model", model_folder, "--scorer", "logit_drop", "--heads", 2, "--mlps", 1]
    options += ["--prompts", 2, "--seed", 4]
    result = run("localize", *options, "--faithfulness", "--draws", 3, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    saved = ps.Localization.load(tmp_path / "out" / "localization.json")
    found = saved.faithfulness
    chosen = ps.Selection.load(tmp_path / "out" / "localization.json")
    assert (found.selection, found.seed, found.n) == (chosen, 4, 2)
    assert [len(carried.draws) for carried in (found.faithfulness, found.necessity)] == [3, 3]
    shown = result.stdout[result.stdout.index("What the 3 components carry together") :]
    for row in found.rows()[1]:
        assert all(cell in shown for cell in row)
    model, tokenizer = ps.load_model(model_folder)
    fact = ps.Fact.from_file(fact_file)
    assert found == ps.faithfulness(model, tokenizer, fact, chosen, draws=3, seed=4, prompts=2, progress=False)
    where = ps.localize(model, tokenizer, fact, ["logit_drop"], seed=4, prompts=2, progress=False)
    assert saved.scores == where.scores
    plain = run("localize", *options, "--out", tmp_path / "plain")
    assert "carry together" not in plain.stdout
    assert replace(saved, faithfulness=None) == ps.Localization.load(tmp_path / "plain" / "localization.json")
    shown = run("localize", *options, "--faithfulness", "--draws", 0, "--json", "--quiet", "--out", tmp_path / "json")
    assert json.loads(shown.stdout)["faithfulness"]["necessity"]["draws"] == []


@pytest.mark.parametrize("overwrite", [(), ("--overwrite",)])
def test_scores_are_there_whatever_becomes_of_what_they_carry(
    tmp_path, fact_file, model_folder, monkeypatch, overwrite
):
    def fails(*_, draws, **__):
        # As the help says.
        assert draws == 20
        raise ps.ModelError("the model answers 'so', patched, with logits that are not finite.")

    options = [fact_file, "--model", model_folder, "--scorer", "random", "--top", 2]
    assert run("localize", *options, "--out", tmp_path / "plain").exit_code == 0
    out = tmp_path / "out"
    if overwrite:
        assert run("localize", *options, "--seed", 1, "--faithfulness", "--draws", 1, "--out", out).exit_code == 0
    monkeypatch.setattr(ps, "faithfulness", fails)
    line = said(run("localize", *options, "--faithfulness", "--quiet", "--out", out, *overwrite), 2)
    assert line == (
        f"Error: what was found is in {out}, but not what it carries together: the model answers 'so', patched, with"
        " logits that are not finite."
    )
    assert written(out) == written(tmp_path / "plain")
    for read in (ps.Localization.load, ps.Selection.load):
        found, plain = (read(folder / "localization.json") for folder in (out, tmp_path / "plain"))
        assert getattr(found, "scores", found) == getattr(plain, "scores", plain)
    assert ps.Localization.load(out / "localization.json").faithfulness is None


def test_draws_alone_measure_nothing_and_are_refused(tmp_path, fact_file, no_model):
    line = run("localize", fact_file, "--draws", 3, "--out", tmp_path / "out")
    assert line.exit_code == 2
    assert "--draws says beside how many random selections --faithfulness measures; give both." in line.stderr
    assert not (tmp_path / "out").exists()
