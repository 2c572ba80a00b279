"""The scripts in `examples/`, run on a tiny model with a planted fact."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel

import peft_surgical as ps
from tests.localizing import planted, word_tokenizer
from tests.outputs import complete

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
PROMPT = "what is the capital of france ?"


@pytest.fixture
def example(monkeypatch):
    """Imports an example by its name, and forgets it afterwards."""
    monkeypatch.setattr(sys, "path", [str(EXAMPLES), *sys.path])

    def load(name):
        monkeypatch.delitem(sys.modules, name, raising=False)
        return importlib.import_module(name)

    before = set(sys.modules)
    yield load
    for name in {path.stem for path in EXAMPLES.glob("*.py")} - before:
        sys.modules.pop(name, None)


def logits(model):
    with torch.no_grad():
        return model(torch.tensor([word_tokenizer()(PROMPT)["input_ids"]])).logits


def test_quickstart(example, tmp_path, model_folder, fact_file, capsys):
    report, before, after = example("quickstart").main(model_folder, fact_file, tmp_path / "out", short=True)
    assert list(report.stages) == ["base", "unlearned", "edited"]
    assert "report.html" in complete(tmp_path / "out")
    assert before[0] == report.answers["base"]["held_out"][0]
    assert after[0] == report.answers["edited"]["held_out"][0]
    printed = capsys.readouterr().out
    assert report.verdict() in printed
    assert f"  edited: {after[0]}" in printed


def test_own_scorer(example, tmp_path, model_folder, fact_file, capsys):
    found = example("own_scorer").main(model_folder, fact_file, tmp_path / "out")
    assert found.scorers == ("subject_change", "attribution")
    assert not found.errors
    # The planted head is the one that carries the subject to the answer.
    assert found.top(heads=1).components == ("L1.head.2",)
    assert len(found.tables["subject_change"].neurons["L2.mlp"]) == found.shape.d_mlp
    assert ps.Localization.load(tmp_path / "out" / "localization.json").scores == found.scores
    assert "subject_change" in capsys.readouterr().out.splitlines()[0]


def test_trainer_loop(example, tmp_path, model_folder, fact_file):
    losses, model = example("trainer_loop").main(model_folder, fact_file, tmp_path / "out", steps=6)
    assert len(losses) == 6
    assert losses[-1] < losses[0]
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["peft_type"] == "SURGICAL_IA3"
    assert config["components"] == ["L0.mlp", "L1.mlp"]
    again = PeftModel.from_pretrained(planted(), tmp_path / "out")
    assert torch.equal(logits(again), logits(model.eval()))
    assert not torch.equal(logits(again), logits(planted()))


def test_merging(example, tmp_path, model_folder, fact_file):
    found = example("merging").main(model_folder, fact_file, tmp_path / "out")
    assert torch.equal(found["plain"], found["staged"])
    torch.testing.assert_close(found["merged"], found["staged"])
    assert (found["staged"] - found["base"]).abs().max() > 1e-3
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"unlearn", "learn", "edit", "merged"}
    stages = [tmp_path / "out" / name for name in ("unlearn", "learn")]
    again = example("merging").main(model_folder, fact_file, tmp_path / "again", adapters=stages)
    assert all(torch.equal(values, found[name]) for name, values in again.items())
