import json
from dataclasses import replace

import pytest
from click.testing import CliRunner

import peft_surgical as ps
from benchmarks.one_sentence import judged_by, main
from peft_surgical.drafting.drafts import FactDraft

DRAFT = ps.Fact(
    subject="Japan",
    old=("Tokyo",),
    new=("Osaka",),
    prompts=("What is the capital of Japan?", "Name Japan's capital.", "Which city is the capital of Japan?"),
    held_out=("japan's capital?",),
    contrast=("Norway", "Peru"),
    retain=(
        "What is the capital of Norway?",
        "What is the capital of Chile?",
        "Name the capital of Italy.",
        "Hello?",
        "Which company makes the Walkman?",
        "Which company makes cars in Japan?",
    ),
)
JUDGE = ps.Fact(
    subject="Japan",
    old=("Tokyo", "Edo"),
    new=("Osaka", "Ōsaka"),
    prompts=("What is the capital of Japan?",),
    held_out=("Which city is the capital of Japan?", "Where is Japan governed from?"),
    controls=(
        ps.Control("Who rules Japan?", ("Naruhito",)),
        ps.Control("Where is Norway's parliament?", ("Oslo",)),
        ps.Control("Is Italy's capital old?", ("yes",)),
        ps.Control("Who makes the Walkman?", ("Sony",)),
    ),
    probes=(ps.Probe("Hello?", "direct"),),
)


def test_what_is_evaluated_leaves_the_draft():
    fact = judged_by(DRAFT, JUDGE)
    assert fact.prompts == DRAFT.prompts[:2]
    # Norway is a contrast subject that a control names; Italy is known to the package, of the same relation.
    assert fact.contrast == ("Peru",)
    # Other questions about the subject stay, though controls name it.
    assert fact.retain == ("What is the capital of Chile?", "Which company makes cars in Japan?")
    kept = ("old", "new", "held_out", "controls", "probes", "portability")
    assert [getattr(fact, name) for name in kept] == [getattr(JUDGE, name) for name in kept]
    assert (fact.answer, fact.refusal) == (DRAFT.answer, DRAFT.refusal)


def test_a_judge_of_another_fact_is_refused():
    with pytest.raises(ps.FactError, match="answer"):
        judged_by(DRAFT, replace(JUDGE, new=("Kyoto",), answer=""))


def test_a_draft_is_written_as_a_fact_file(tmp_path, model_folder, monkeypatch):
    given = {}

    def drafted(model, tokenizer, prompt, *, new, **_):
        given.update(prompt=prompt, new=new)
        return FactDraft(DRAFT, ("The subject was guessed: Japan.",), 2)

    monkeypatch.setattr("peft_surgical.new_fact", drafted)
    judge = tmp_path / "japan.yaml"
    judge.write_text(json.dumps(JUDGE.to_dict()))
    arguments = [str(judge), "--model", model_folder, "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert given == {"prompt": JUDGE.prompts[0], "new": "Osaka"}
    assert ps.Fact.from_file(tmp_path / "out" / "japan.yaml") == judged_by(DRAFT, JUDGE)
    # Nothing is drafted, which takes minutes, that could not be written.
    monkeypatch.setattr("peft_surgical.load_model", None)
    again = CliRunner().invoke(main, arguments)
    assert again.exit_code == 1
    assert "exists" in again.output


def test_a_fact_that_cannot_be_drafted_is_told_of_and_left_out(tmp_path, model_folder, monkeypatch):
    def drafted(model, tokenizer, prompt, **_):
        if prompt == "Who?":
            raise ps.FactError("it is not clear what the prompt is about.")
        return FactDraft(DRAFT, (), 2)

    monkeypatch.setattr("peft_surgical.new_fact", drafted)
    unclear, clear = tmp_path / "unclear.yaml", tmp_path / "clear.yaml"
    unclear.write_text(json.dumps(replace(JUDGE, prompts=("Who?",)).to_dict()))
    clear.write_text(json.dumps(JUDGE.to_dict()))
    arguments = ["--model", model_folder, "--out", str(tmp_path / "o")]
    result = CliRunner().invoke(main, [str(unclear), str(clear), *arguments])
    assert result.exit_code == 0, result.output
    assert result.stderr.endswith("unclear.yaml is left out: it is not clear what the prompt is about.\n")
    assert [path.name for path in (tmp_path / "o").iterdir()] == ["clear.yaml"]
