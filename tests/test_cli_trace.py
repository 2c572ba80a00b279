import json
import sys
from importlib.util import find_spec

import pytest

import peft_surgical as ps
from tests.command_line import run, said, written

FILES = ["trace.json", *(["trace.png"] if find_spec("matplotlib") else [])]


def test_trace_end_to_end(tmp_path, fact_file, model_folder):
    options = [fact_file, "--model", model_folder, "--out"]
    result = run("trace", *options, tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert written(tmp_path / "out") == FILES
    found = ps.CausalTrace.load(tmp_path / "out" / "trace.json")
    model, tokenizer = ps.load_model(model_folder)
    fact = ps.Fact.from_file(fact_file)
    assert found == ps.causal_trace(model, tokenizer, fact, progress=False)
    shown = " ".join(result.stdout.split())
    assert found.told() in shown
    for row in found.rows()[1]:
        assert all(cell in shown for cell in row)
    assert f"{' and '.join(FILES)} in {tmp_path / 'out'}" in shown
    assert "--overwrite" in said(run("trace", *options, tmp_path / "out"), 2)
    how = ["--direction", "denoising", "--window", 3, "--one-by-one", "--prompts", 2, "--seed", 4]
    told = run("trace", *options, tmp_path / "json", *how, "--json", "--quiet")
    assert not told.stderr
    found = ps.CausalTrace.from_dict(json.loads(told.stdout))
    assert found == ps.CausalTrace.load(tmp_path / "json" / "trace.json")
    assert (found.direction, found.window, found.together, found.seed) == ("denoising", 3, False, 4)
    assert found == ps.causal_trace(
        model, tokenizer, fact, direction="denoising", window=3, together=False, prompts=2, seed=4, progress=False
    )


def test_it_stands_beside_a_localization_and_replaces_an_earlier_trace_alone(tmp_path, fact_file, model_folder):
    options = [fact_file, "--model", model_folder, "--quiet", "--out", tmp_path / "out"]
    assert run("localize", *options, "--scorer", "random").exit_code == 0
    before = {name: (tmp_path / "out" / name).read_bytes() for name in written(tmp_path / "out")}
    for seed in (0, 1):
        assert run("trace", *options, "--overwrite", "--seed", seed).exit_code == 0
    assert ps.CausalTrace.load(tmp_path / "out" / "trace.json").seed == 1
    assert written(tmp_path / "out") == sorted([*before, *FILES])
    assert before == {name: (tmp_path / "out" / name).read_bytes() for name in before}


def test_without_matplotlib_no_picture_is_promised(tmp_path, fact_file, model_folder, monkeypatch):
    for name in ("matplotlib", "matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, name, None)
    result = run("trace", fact_file, "--model", model_folder, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert written(tmp_path / "out") == ["trace.json"]
    assert "trace.png" not in result.stdout
    left_out = "trace.png is left out: it needs matplotlib (pip install 'peft-surgical[plot]')."
    assert left_out in result.stderr.splitlines()


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("overwrite", [(), ("--overwrite",)])
def test_a_file_of_somebody_else_s_is_not_replaced(tmp_path, fact_file, overwrite):
    out = tmp_path / "out"
    out.mkdir()
    (out / "trace.json").write_text('{"mine": 1}')
    line = said(run("trace", fact_file, "--out", out, *overwrite), 2)
    # Without the option, too: it would not help.
    assert (
        line
        == f"Error: {out / 'trace.json'} is no trace of an edit, so it is not replaced; name another output folder."
    )
    assert (out / "trace.json").read_text() == '{"mine": 1}'


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("options", "told"),
    [(["--direction", "rome"], "'rome' is not one of 'noising', 'denoising'"), (["--window", "0"], "'--window'")],
)
def test_a_wrong_option_is_told_at_once(options, told, tmp_path, fact_file):
    result = run("trace", fact_file, "--out", tmp_path / "out", *options)
    assert result.exit_code == 2
    assert told in result.stderr
    assert written(tmp_path) == ["fact.yaml"]


def test_a_failure_leaves_what_was_there(tmp_path, fact_file, model_folder, monkeypatch):
    out = tmp_path / "out"
    options = ["trace", fact_file, "--model", model_folder, "--quiet", "--out", out]
    assert run(*options).exit_code == 0
    before = {name: (out / name).read_bytes() for name in written(out)}

    def fails(*_, **__):
        raise ps.ModelError("the model answers 'so', patched, with logits that are not finite.")

    monkeypatch.setattr(ps, "causal_trace", fails)
    assert said(run(*options, "--overwrite"), 2).startswith("Error: the model answers 'so', patched")
    assert before == {name: (out / name).read_bytes() for name in written(out)}


def test_a_fact_that_the_model_does_not_know_leaves_nothing(tmp_path, fact_file, model_folder, monkeypatch):
    trace = ps.causal_trace
    monkeypatch.setattr(ps, "causal_trace", lambda *given, **how: trace(*given, **how, least=1e6))
    line = said(run("trace", fact_file, "--model", model_folder, "--quiet", "--out", tmp_path / "out"), 2)
    assert line == (
        "Error: nothing is left to trace: of 3 prompts that name france, none has a logit difference that the"
        " corruption lowers by 1e+06 or more; the model may not know the fact."
    )
    assert written(tmp_path) == ["fact.yaml"]
