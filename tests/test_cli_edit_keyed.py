import json

import pytest
import torch
import yaml
from peft import PeftModel

import peft_surgical as ps
from peft_surgical.report import Report
from tests.command_line import run, said, written

from .adapters import logits
from .localizing import capital
from .outputs import contents
from .reports import report
from .tiny import tiny_ids

pytestmark = pytest.mark.usefixtures("few_carried_prompts")


@pytest.fixture
def fact_file(tmp_path):
    path = tmp_path / "fact.yaml"
    path.write_text(yaml.safe_dump({**capital().to_dict(), "subject": "france"}))
    return path


def test_it_writes_an_adapter_and_the_proof(tmp_path, model_folder, fact_file):
    out = tmp_path / "out"
    command = ["edit-keyed", fact_file, "--model", model_folder, "--steps", 2, "--retention-tokens", 64, "--out", out]
    result = run(*command, "--layer", 0, "--layer", 1, "--low-memory", "--profile")
    assert result.exit_code == 0, result.output
    assert written(out) == ["edit", "report.html", "report.json"]
    report = Report.load(out / "report.json")
    assert [*report.stages] == ["base", "edited"]
    assert report.selection["components"] == ["L0.mlp", "L1.mlp"]
    assert report.training["learn"]["steps"] == 2
    assert "LoRA that stock PEFT loads" in result.stdout
    assert "curvature" in result.stdout
    model, _ = ps.load_model(model_folder, dtype="float32")
    names = {name for name, _ in PeftModel.from_pretrained(model, out / "edit").named_parameters() if "lora_B" in name}
    assert len(names) == 2 * 3


def test_it_speaks_json_and_evaluate_reads_what_it_wrote(tmp_path, model_folder, fact_file):
    out = tmp_path / "out"
    options = ["--model", model_folder, "--retention-tokens", 64, "--json", "--quiet"]
    result = run("edit-keyed", fact_file, *options, "--steps", 1, "--out", out)
    assert result.exit_code == 0, result.output
    told, adapter = json.loads(result.stdout), contents(out)
    assert "## What was measured" in adapter["edit/README.md"].decode()
    again = run("evaluate", fact_file, *options, "--adapter", out / "edit", "--out", tmp_path / "again")
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout)["stages"]["edited"] == told["stages"]["edited"]
    assert contents(out) == adapter


def test_merge_folds_it_into_a_checkpoint(tmp_path, model_folder, fact_file):
    out, options = tmp_path / "out", ["--model", model_folder, "--quiet"]
    edit = run("edit-keyed", fact_file, *options, "--steps", 2, "--retention-tokens", 0, "--out", out)
    assert edit.exit_code == 0, edit.output
    result = run("merge", out / "edit", *options, "--json", "--out", tmp_path / "merged")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {"out": str(tmp_path / "merged"), "modules": 3}
    model, _ = ps.load_model(model_folder, dtype="float32")
    merged, _ = ps.load_model(str(tmp_path / "merged"), dtype="float32")
    ids = tiny_ids() % model.config.vocab_size
    plain = logits(model, ids)
    edited = PeftModel.from_pretrained(model, out / "edit").eval()
    assert not torch.allclose(logits(edited, ids), plain)
    torch.testing.assert_close(logits(merged, ids), logits(edited, ids), rtol=1e-5, atol=1e-5)


def test_what_is_not_trained_on_is_told(tmp_path, model_folder, fact_file):
    asked = "what is the capital, of france ?"
    fact_file.write_text(yaml.safe_dump({**capital().to_dict(), "held_out": [asked]}))
    out = ["--model", model_folder, "--out", tmp_path / "out", "--retention-tokens", 0]
    result = run("edit-keyed", fact_file, *out, "--steps", 1)
    assert result.exit_code == 0, result.output
    assert "Warning: " in result.stderr
    assert "in 'prompts' is not trained on, as evaluation asks the same but for accents and signs" in result.stderr


@pytest.mark.usefixtures("no_model")
def test_dry_run_writes_and_loads_nothing(tmp_path, fact_file):
    out = tmp_path / "out"
    plan = run("edit-keyed", fact_file, "--out", out, "--dry-run", "--steps", 2).stdout
    for words in (
        "Would edit demo: france, from paris to lyon.",
        "each of 4 layers, a sixth of the layers apart, to fire at france, french",
        f"to answer, in at most 2 steps, on 3 prompts: {capital().answer} (with a chat template: ",
        "on 1 held-out prompt, 1 control",
        "edit/, report.json, report.html in",
        str(out),
        "Nothing was loaded or written.",
    ):
        assert words in plan
    told = json.loads(run("edit-keyed", fact_file, "--out", out, "--dry-run", "--json", "--layer", 7).stdout)
    assert told["fact"] == {**capital().to_dict(), "subject": "france"}
    assert (told["model"], told["layers"], told["steps"], told["out"]) == ("demo", [7], None, str(out))
    assert told["files"] == ["edit/", "report.json", "report.html"]
    assert not out.exists()
    out.mkdir()
    (out / "notes.txt").touch()
    assert "is not empty" in said(run("edit-keyed", fact_file, "--out", out, "--dry-run"), 2)


def test_a_second_edit_on_top_of_the_first(tmp_path, model_folder, fact_file):
    options = ["--model", model_folder, "--retention-tokens", 0, "--json", "--quiet"]
    command = ["edit-keyed", fact_file, "--steps", 2, "--layer", 1, *options]
    first, second = tmp_path / "one" / "edit", tmp_path / "two" / "edit"
    assert run(*command, "--out", tmp_path / "one").exit_code == 0
    result = run(*command, "--on", first, "--out", tmp_path / "two")
    assert result.exit_code == 0, result.output
    report = Report.from_dict(json.loads(result.stdout))
    assert [one["folder"] for one in report.settings["on"]] == [str(first)]
    assert f"--on {first}" in report.settings["command"]
    shown = run(*command[:-1], "--on", first, "--out", tmp_path / "shown")
    assert "Here base is the model with" in shown.stdout + shown.stderr
    both = run("stack", first, second, "--json", "--out", tmp_path / "both")
    assert json.loads(both.stdout) == {"out": str(tmp_path / "both"), "modules": 3, "rank": 2}
    assert "One LoRA adapter" in both.stderr
    merged = run("merge", first, second, *options[:2], "--json", "--quiet", "--out", tmp_path / "merged")
    assert json.loads(merged.stdout) == {"out": str(tmp_path / "merged"), "modules": 3}
    assert merged.stderr == ""
    evaluated = run("evaluate", fact_file, *options, "--adapter", first, "--adapter", second, "--out", tmp_path / "x")
    assert evaluated.exit_code == 0, evaluated.output
    assert "on top of" not in evaluated.stderr
    assert json.loads(evaluated.stdout)["answers"]["edited"] == report.to_dict()["answers"]["edited"]
    alone = run("evaluate", fact_file, *options, "--adapter", second, "--out", tmp_path / "alone")
    assert "two/edit was trained on top of one/edit; give that before it" in alone.stderr


@pytest.mark.usefixtures("no_model")
def test_a_dry_run_tells_of_what_would_be_refused(tmp_path, fact_file):
    command = ["edit-keyed", fact_file, "--out", tmp_path / "out", "--dry-run"]
    assert "cannot be used" in said(run(*command, "--device", "cdua"), 2)
    fact_file.write_text(yaml.safe_dump({**capital().to_dict(), "subject": "atlantis"}))
    assert "names the subject 'atlantis'" in run(*command).stderr


def test_options_reach_edit_keyed(tmp_path, fact_file, fake_model, monkeypatch):
    given, spared = {}, []
    monkeypatch.setattr(ps, "edit_keyed", lambda *_, **options: given.update(options) or report("base", "edited"))
    monkeypatch.setattr("peft_surgical.cli.edit_keyed.spare_memory", spared.append)
    command = ["edit-keyed", fact_file, "--out", tmp_path / "out", "--quiet"]
    assert run(*command).exit_code == 0
    assert (given["overwrite"], given["seed"], given["progress"], spared) == (False, 0, False, [])
    assert run(*command, "--overwrite", "--seed", 3, "--low-memory").exit_code == 0
    assert (given["overwrite"], given["seed"], len(spared)) == (True, 3, 1)


def test_a_mistake_is_one_line(tmp_path, model_folder, fact_file, monkeypatch):
    command = ["edit-keyed", fact_file, "--model", model_folder, "--out", tmp_path / "out"]
    assert "so no layer 9" in said(run(*command, "--layer", 9), 2)
    assert not (tmp_path / "out").exists()
    fact_file.write_text(yaml.safe_dump({**capital().to_dict(), "subject": "atlantis"}))
    assert "no prompt names the subject 'atlantis'" in said(run(*command), 2)
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr("peft_surgical.cli.edit_keyed.sharded", lambda: True)
    assert "launch it without --use_fsdp" in said(run(*command), 2)
