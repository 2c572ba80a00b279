import json

import pytest

import peft_surgical as ps
from peft_surgical.cli.terminal import note
from tests.command_line import PROMPT, run, said, written


def test_new_end_to_end(tmp_path, model_folder):
    out = tmp_path / "facts" / "france.yaml"
    result = run("new", PROMPT, "--new", "lyon", "--model", model_folder, "--out", out, "--count", 12)
    assert result.exit_code == 0, result.output
    assert written(out.parent) == ["france.yaml"]
    fact = ps.Fact.from_file(out)
    assert (fact.subject, fact.old[0], fact.new[0]) == ("france", "paris", "lyon")
    # One more has the country's adjective.
    assert (len(fact.prompts), len(fact.held_out)) == (13, 12)
    assert "The subject was guessed: france." in result.stderr
    assert "The model was asked for the old answer" in result.stderr
    assert result.stdout.splitlines()[0] == f"{out}: france, from paris to lyon"
    assert f"edit {out} --model {model_folder}" in " ".join(result.stdout.split())
    kept = f"{len(fact.contrast)} contrast subjects and {len(fact.retain)} prompts to keep"
    assert kept in result.stdout
    assert len(fact.contrast) != len(fact.retain)
    # What it wrote is a fact like any other.
    checked = run("edit", out, "--model", model_folder, "--out", tmp_path / "out", "--dry-run")
    assert checked.exit_code == 0, checked.output


def test_what_a_note_quotes_does_not_control_the_terminal(capsys):
    note("taken from it: \x1b]0;mine\x07Paris.", quiet=False)
    assert capsys.readouterr().err == "taken from it: \ufffd]0;mine\ufffdParis.\n"


def test_new_says_it_as_json_or_not_at_all(tmp_path, model_folder):
    command = ["new", PROMPT, "--new", "lyon", "--old", "paris", "--subject", "france", "--model", model_folder]
    first = run(*command, "--out", tmp_path / "a.yaml", "--json", "--count", 4)
    told = json.loads(first.stdout)
    assert ps.Fact.from_dict(told["fact"]) == ps.Fact.from_file(tmp_path / "a.yaml")
    assert told["out"] == str(tmp_path / "a.yaml")
    second = run(*command, "--out", tmp_path / "b.yaml", "--quiet", "--count", 4)
    assert (second.exit_code, second.output) == (0, "")
    assert (tmp_path / "a.yaml").read_text() == (tmp_path / "b.yaml").read_text()
    third = run(*command, "--out", tmp_path / "b.yaml", "--quiet", "--count", 4, "--seed", 1, "--overwrite")
    assert third.exit_code == 0
    assert (tmp_path / "a.yaml").read_text() != (tmp_path / "b.yaml").read_text()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([PROMPT, "--out", "OUT"], "Missing option '--new'"),
        ([PROMPT, "--new", "lyon"], "Missing option '--out'"),
        (["--new", "lyon", "--out", "OUT"], "Missing argument 'PROMPT'"),
        ([PROMPT, "--new", "lyon", "--out", "FULL"], "full.yaml exists; name another one or give --overwrite"),
        ([PROMPT, "--new", "lyon", "--out", "FOLDER", "--overwrite"], "is a folder; name a file"),
        ([PROMPT, "--new", "lyon", "--out", "facts/"], "facts/ names a folder; name a file"),
        ([PROMPT, "--new", "lyon", "--out", "OUT", "--subject", "spain"], "does not name the subject 'spain'"),
        (["why is it so?", "--new", "lyon", "--out", "OUT"], "cannot be guessed; name it with --subject."),
        ([PROMPT, "--new", "Paris", "--old", "paris", "--out", "OUT"], "'Paris' stands in both 'old' and 'new'"),
        ([PROMPT, "--new", "new paris", "--old", "paris", "--out", "OUT"], "contains 'paris' from 'old'"),
        (["", "--new", "lyon", "--out", "OUT"], "the prompt is empty."),
        ([PROMPT, "--new", "France", "--out", "OUT"], "the new answer 'France' is the subject itself"),
        (
            ["The capital of France is Paris.", "--new", "lyon", "--old", "paris", "--out", "OUT"],
            "already holds the old",
        ),
        ([PROMPT, "--new", "...", "--old", "paris", "--out", "OUT"], "'...' has no letter, digit or sign to look for"),
        ([PROMPT, "--new", "lyon", "--out", "OUT", "--count", "1"], "'--count'"),
        ([PROMPT, "--new", "lyon", "--out", "OUT", "--subject", ""], "does not name the subject ''"),
        ([PROMPT, "--new", "lyon", "--out", "INSIDE"], "full.yaml is a file."),
        (
            ["Wie heißt die Hauptstadt von Japan?", "--new", "Osaka", "--subject", "Japan", "--out", "OUT"],
            "is not in English",
        ),
    ],
)
def test_new_refuses_before_a_model_is_loaded(tmp_path, no_model, arguments, expected):
    (tmp_path / "full.yaml").write_text("kept")
    places = {"OUT": tmp_path / "out.yaml", "FULL": tmp_path / "full.yaml", "FOLDER": tmp_path}
    places["INSIDE"] = tmp_path / "full.yaml" / "out.yaml"
    message = said(run("new", *(places.get(argument, argument) for argument in arguments)), 2)
    assert expected in message
    assert written(tmp_path) == ["full.yaml"]
    assert (tmp_path / "full.yaml").read_text() == "kept"


def test_new_refuses_answers_that_do_not_go_together(tmp_path, model_folder):
    command = ["new", PROMPT, "--model", model_folder, "--out", tmp_path / "out.yaml"]
    assert "the model already answers 'paris'" in said(run(*command, "--new", "paris"), 2)
    assert "--old" in said(run(*command, "--new", "paris"), 2)
    assert "'lyon' stands in both" in said(run(*command, "--new", "lyon", "--old", "lyon"), 2)
    assert written(tmp_path) == []


@pytest.mark.usefixtures("fake_model")
def test_an_old_answer_is_asked_for_only_where_none_was_given(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise ps.FactError("no controls are left.")

    monkeypatch.setattr(ps, "new_fact", refuse)
    command = ["new", PROMPT, "--new", "lyon", "--quiet", "--out", tmp_path / "out.yaml"]
    hint = " (The model was asked for the old answer; --old names it instead.)"
    assert said(run(*command), 2) == f"Error: no controls are left.{hint}"
    assert said(run(*command, "--old", "paris"), 2) == "Error: no controls are left."


def test_the_next_command_is_of_the_same_revision(tmp_path, fake_model):
    command = ["new", PROMPT, "--new", "lyon", "--old", "paris", "--model", "some/model", "--revision", "a b"]
    result = run(*command, "--count", 4, "--out", tmp_path / "out.yaml")
    assert "--model some/model --revision 'a b' --out DIR" in " ".join(result.stdout.split())
