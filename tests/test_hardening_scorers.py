"""Scorers that fail in every way a plugin can, and what is shown of the code that plugins bring.

| Plugin | What comes of it |
|---|---|
| gives NaN, infinity, a wrong shape, nothing | left out with a warning; refused when nothing else ranks |
| leaves notes that are no JSON (NaN, a tensor), or one of the time that it took | the same |
| raises anything, ends the process with `sys.exit` | the same |
| notes or says what UTF-8 does not have | the same |
| is installed | named by `peft-surgical scorers` with its distribution, module and file |
"""

import functools
import json
import re
import sys
import warnings

import pytest
import torch

import peft_surgical as ps
from peft_surgical.errors import ScorerError, SelectionError
from peft_surgical.localization import localize
from peft_surgical.plugins import PluginWarning, load_scorers
from peft_surgical.scorers.attribution import attribution

from .command_line import run, said, written
from .localizing import capital, planted, word_tokenizer
from .plugin_points import Installed, fine, module


def full_of(value):
    return lambda context: {site: torch.full((site.size,), value) for site in context.sites}


def noted(value):
    def scorer(context):
        context.notes["x"] = value
        return fine(context)

    return scorer


def timed(context):
    context.notes["seconds"] = 1.5
    return fine(context)


def undecodable(context):
    raise ValueError("cannot decode \ud83d")


def ends(context):
    sys.exit(0)


BAD = {
    "nan": (full_of(float("nan")), "not a finite number"),
    "infinite": (full_of(float("inf")), "not a finite number"),
    "shape": (lambda context: {site: torch.ones(site.size + 1) for site in context.sites}, "it must be"),
    "nothing": (lambda context: None, "must return a mapping"),
    "nan_note": (noted(float("nan")), "a note that is not JSON"),
    "tensor_note": (noted(torch.ones(2)), "a note that is not JSON"),
    "surrogate_note": (noted("\ud83d"), "a note that is not JSON"),
    "own_time": (timed, "left a note called 'seconds', as the time that it took is"),
    "undecodable": (undecodable, "failed with ValueError: cannot decode \ufffd"),
    "raises": (lambda context: 1 / 0, "failed with ZeroDivisionError"),
    "ends": (ends, "failed with SystemExit"),
}


@pytest.fixture
def bad(install):
    install(Installed(module(fine=fine, **{name: scorer for name, (scorer, _) in BAD.items()})))


@pytest.mark.usefixtures("bad")
@pytest.mark.parametrize("name", BAD)
def test_a_scorer_that_fails(name, tmp_path):
    words = BAD[name][1]
    model, tokenizer = planted(), word_tokenizer()
    # A warning would say what the error says.
    with warnings.catch_warnings(action="error", category=PluginWarning), pytest.raises(ScorerError, match=words):
        localize(model, tokenizer, capital(), [name], progress=False)
    # It never takes another with it, and what was found can be written.
    with pytest.warns(PluginWarning, match=words):
        found = localize(model, tokenizer, capital(), ["fine", name], progress=False)
    found.save(tmp_path / "loc.json")
    assert ps.Localization.load(tmp_path / "loc.json").errors.keys() == {name}
    # One that was to rank is not silently replaced.
    with pytest.warns(PluginWarning), pytest.raises(SelectionError, match=f"the scorer '{name}' failed"):
        ps.edit(model, tokenizer, capital(), out=tmp_path / "out", scorers=[name, "fine"], progress=False)
    assert written(tmp_path) == ["loc.json"]


@pytest.mark.usefixtures("bad")
def test_a_command_with_a_scorer_that_fails(tmp_path, fact_file, model_folder):
    for command in ("localize", "edit"):
        options = ["--model", model_folder, "--scorer", "nan", "--out", tmp_path / "out"]
        result = run(command, fact_file, *options, "--quiet")
        assert "'nan' of a_plugin" in said(result, 2)
        assert written(tmp_path) == ["fact.yaml"]


@pytest.mark.usefixtures("bad")
@pytest.mark.parametrize(
    ("scorers", "message", "chosen"),
    [
        (
            ["nan", "fine", "logit_drop"],
            "'nan' failed, so nothing ranks the components; the scores by fine",
            False,
        ),
        (["fine", "nan", "raises"], "but without the scores of 'nan', 'raises', which failed.", True),
    ],
)
def test_what_the_other_scorers_found_is_kept(scorers, message, chosen, tmp_path, fact_file, model_folder):
    out = tmp_path / "out"
    out.mkdir()
    (out / "localization.png").write_bytes(b"of an earlier run")
    names = [word for name in scorers for word in ("--scorer", name)]
    result = run("localize", fact_file, "--model", model_folder, "--out", out, *names, "--quiet", "--overwrite")
    assert result.exit_code == 2
    *warned, last = result.stderr.splitlines()
    assert [line.split(":")[0] for line in warned] == ["Warning"] * (2 if chosen else 1)
    assert last.startswith("Error: ")
    assert message in last
    assert not result.stdout
    found = ps.Localization.load(out / "localization.json")
    assert found.tables.keys() == {"fine", "logit_drop"} - ({"logit_drop"} if chosen else set())
    assert found.errors.keys() == {"nan", "raises"} - (set() if chosen else {"raises"})
    if chosen:
        assert len(ps.Selection.load(out / "localization.json").components) == 10
    else:
        # No picture of what was not chosen, nor of another run.
        assert written(out) == ["localization.json"]
        with pytest.raises(SelectionError, match="is a localization that holds no selection"):
            ps.Selection.load(out / "localization.json")


@pytest.mark.parametrize("error", [SystemExit(0), ImportError("no"), RecursionError("deep")])
def test_a_plugin_that_cannot_be_imported(error, install, tmp_path, fact_file):
    install(Installed(error, "broken"), Installed(module("other", fine=fine), "other"))
    with pytest.warns(PluginWarning, match=f"'broken' of broken was left out: {type(error).__name__}"):
        catalogue = load_scorers()
    assert catalogue["fine"].scorer is fine
    assert [(plugin.name, plugin.fault is None) for plugin in catalogue.plugins] == [
        ("broken", False),
        ("other", True),
    ]
    result = run("scorers")
    assert result.exit_code == 0
    assert "broken of broken: broken, without a file (left out)" in result.stdout
    result = run("edit", fact_file, "--scorer", "nope", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "Error: there is no scorer 'nope'; installed are" in result.stderr.splitlines()[-1]


def test_a_plugin_that_is_left_out_is_told_of_once_a_command(install, model_folder, tmp_path, fact_file):
    install(Installed(ImportError("no"), "broken"))
    for name in ("once", "again"):
        options = ("--model", model_folder, "--scorer", "random", "--out", tmp_path / name)
        result = run("localize", fact_file, *options)
        assert (result.exit_code, result.stderr.count("'broken' of broken was left out")) == (0, 1)


def test_what_a_plugin_prints_is_no_part_of_the_json(install, model_folder, tmp_path, fact_file):
    def prints(context):
        print("so far so good")
        return fine(context)

    install(Installed(module(prints=prints)))
    options = ("--model", model_folder, "--scorer", "prints", "--json", "--quiet", "--out", tmp_path / "out")
    result = run("localize", fact_file, *options)
    assert json.loads(result.stdout)["scorers"] == ["prints"]
    assert "so far so good" in result.stderr


@pytest.mark.usefixtures("bad")
def test_an_edit_whose_ranking_scorer_failed_names_what_would_be_right(model_folder, tmp_path, fact_file):
    options = ("--scorer", "nan", "--scorer", "fine", "--top", 1, "--model", model_folder, "--out", tmp_path / "out")
    result = run("edit", fact_file, *options, "--quiet")
    assert result.exit_code == 2
    words = "Error: the scorer 'nan' failed, so nothing ranks the components; name another first."
    assert result.stderr.splitlines()[-1] == words


def test_what_code_runs_is_shown(install, monkeypatch):
    plugin = module("shown_plugin", shown=fine)
    plugin.__file__ = "/somewhere/shown_plugin.py"
    monkeypatch.setitem(sys.modules, "shown_plugin", plugin)
    install(Installed(plugin, "shown_plugin"))
    text = run("scorers").stdout
    assert "Code of other packages that runs:" in text
    assert "shown_plugin of shown_plugin: shown_plugin, /somewhere/shown_plugin.py" in text
    listed = {item["name"]: item["code"] for item in json.loads(run("scorers", "--json").stdout)}
    assert listed["shown"] == f"{fine.__module__}:fine"
    assert listed["lookup"].startswith("peft_surgical.scorers.lookup:")
    install()
    assert run("scorers").stdout.rstrip().endswith("none")


def test_what_a_plugin_says_cannot_write_to_the_terminal(install):
    def coloured(context):
        "\x1b[31mred\x1b]0;title\x07"

    install(Installed(module(coloured=coloured)), Installed(ImportError("\x1b[2J"), "broken"))
    result = run("scorers")
    assert "red" in result.stdout
    assert "\x1b" not in result.output
    assert "\x07" not in result.output


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("scorer", "words"),
    [
        ("attribution:steps=-1", "'attribution' of peft-surgical: steps must be at least 1, not -1."),
        ("verified:prompts=0", "peft-surgical: candidates and prompts must be at least 1, not 40 and 0."),
        ("verified:margin=nan", "'verified' of peft-surgical: margin must be a finite number, not nan."),
        ("logit_drop:measure=all", "peft-surgical: measure must be one of difference, new, old, not 'all'."),
        ("logit_drop:ablation=no", "peft-surgical: ablation must be none, zero or mean, not 'no'."),
        ("consensus:of=random", "two other scorers or more, each once, joined by +, not 'random'."),
        ("consensus:of=random+attribution:steps=0", "peft-surgical: steps must be at least 1, not 0."),
    ],
)
def test_a_value_that_no_model_makes_right_is_told_at_once(scorer, words, tmp_path, fact_file):
    for command in (["localize"], ["edit"], ["edit", "--dry-run"]):
        # What another one may find keeps none of them going.
        options = ["--scorer", "random", "--scorer", scorer, "--out", tmp_path / "out"]
        line = said(run(*command, fact_file, *options), 2)
        assert line.startswith(f"Error: the scorer '{scorer.partition(':')[0]}' of peft-surgical: ")
        assert line.endswith(words)
    with pytest.raises(ScorerError, match=re.escape(words)):
        localize(planted(), word_tokenizer(), capital(), ["random", scorer], progress=False)
    assert written(tmp_path) == ["fact.yaml"]


def test_a_wrapper_of_a_plugin_s_takes_the_values_that_it_wants(install):
    @functools.wraps(attribution)
    def wrapped(context, *, steps=0):
        return attribution(context, steps=steps + 1)

    install(Installed(module(wrapped=wrapped)))
    found = localize(planted(), word_tokenizer(), capital(), "wrapped:steps=0", progress=False)
    assert found.tables.keys() == {"wrapped:steps=0"}
