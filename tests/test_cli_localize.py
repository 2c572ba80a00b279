from dataclasses import replace

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
    assert line == "Error: no component fits heads=2: the scorer scored no heads."
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
