"""`peft-surgical evaluate` of an edited checkpoint, and of a base that carries edits."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from peft_surgical.report import Report

from .adapters import saved, tiny_peft
from .command_line import run, said
from .localizing import planted, word_tokenizer
from .tiny import tiny_model


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    return saved(tiny_peft(), tmp_path_factory.mktemp("adapter"))


def rome(folder, dtype=torch.float32):
    """As somebody else's edit comes: other weights, saved by transformers."""
    model = planted()
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight.mul_(-1)
    model.to(dtype).save_pretrained(folder)
    return folder


def test_base_and_edited_with_everything_that_can_be_measured(tmp_path, fact_file, model_folder):
    command = ["evaluate", fact_file, "--model", model_folder, "--retention-tokens", 60]
    edited = rome(tmp_path / "rome")
    result = run(
        *command, "--edited", edited, "--out", tmp_path / "out", "--bits", 4, "--relearn", 1, "--fluency", "--seed", 3
    )
    assert result.exit_code == 0, result.output
    line = f"Edited is the checkpoint {edited}, stored in float32: 1 of 30 tensors differs from the base's; both are"
    assert f"{line} measured in float32." in " ".join(result.stdout.split())
    # Told once.
    assert "differs from" not in result.stderr
    report = Report.load(tmp_path / "out" / "report.json")
    added = [f"{name} {what}" for what in ("in 4 bits", "relearned 1 step") for name in ("base", "edited")]
    assert list(report.stages) == ["base", *added, "edited"]
    assert report.stages["base"]["old_answer_rate"].value == 1.0
    assert report.stages["edited"]["old_answer_rate"].value == 0.0
    assert all("fluency" in figures for figures in report.stages.values())
    assert report.settings["edited"]["changed"] == ["model.layers.2.mlp.down_proj.weight"]
    assert (report.settings["adapters"], report.seed) == ([], 3)
    assert "Edited is the checkpoint" in (tmp_path / "out" / "report.html").read_text()
    # As the checkpoint answers by itself.
    word_tokenizer().save_pretrained(edited)
    alone = run("evaluate", fact_file, "--model", edited, "--retention-tokens", 0, "--out", tmp_path / "alone")
    assert alone.exit_code == 0, alone.output
    assert (
        Report.load(tmp_path / "alone" / "report.json").answers["base"]["held_out"]
        == report.answers["edited"]["held_out"]
    )


def test_a_dtype_that_is_not_given_holds_both_and_one_that_is_rounds_both(tmp_path, fact_file, model_folder):
    halves = tmp_path / "halves"
    AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.bfloat16).save_pretrained(halves)
    word_tokenizer().save_pretrained(halves)
    edited = rome(tmp_path / "rome")
    command = ["evaluate", fact_file, "--model", halves, "--edited", edited, "--retention-tokens", 0]
    result = run(*command, "--out", tmp_path / "auto")
    assert result.exit_code == 0, result.output
    assert Report.load(tmp_path / "auto" / "report.json").dtype == "float32"
    assert "both are measured in float32." in " ".join(result.stdout.split())
    options = ["--dtype", "bfloat16", "--trust-remote-code", "--quiet"]
    result = run(*command, *options, "--out", tmp_path / "asked")
    assert result.exit_code == 0, result.output
    assert Report.load(tmp_path / "asked" / "report.json").dtype == "bfloat16"
    *trusted, line = result.stderr.splitlines()
    assert trusted == [
        f"Code that comes with {name} may run, as --trust-remote-code says." for name in (halves, edited)
    ]
    assert line.startswith(f"Warning: {edited} is stored in float32 and rounded to bfloat16, as the base is")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--edited", "ROME", "--adapter", "ADAPTER"], "--edited and --adapter exclude each other"),
        (["--edited", ""], "it is empty"),
        (["--edited", "ADAPTER"], "holds an adapter and no edited checkpoint; give it as an adapter (--adapter)."),
        (["--edited", "./nowhere"], "there is no model folder nowhere."),
    ],
)
def test_what_is_refused_before_a_model_is_loaded(options, words, tmp_path, fact_file, adapter, no_model):
    places = {"ROME": tmp_path / "rome", "ADAPTER": adapter}
    options = [places.get(word, word) for word in options]
    line = said(run("evaluate", fact_file, *options, "--out", tmp_path / "out"), 2)
    assert words in line
    assert not (tmp_path / "out").exists()


def test_another_model_is_refused_in_one_line_and_nothing_is_written(tmp_path, fact_file, model_folder):
    tiny_model("llama", hidden_size=64).save_pretrained(tmp_path / "other")
    command = ["evaluate", fact_file, "--model", model_folder, "--edited", tmp_path / "other"]
    line = said(run(*command, "--out", tmp_path / "out"), 2)
    assert "is no edit of the base, whose weights alone would differ: head_dim is 16 there and 8 in" in line
    assert not (tmp_path / "out" / "report.json").exists()


def test_a_base_that_carries_edits_is_told_of_by_every_command_that_reports(tmp_path, fact_file, model_folder):
    model = get_peft_model(planted(), LoraConfig(target_modules=["down_proj"], r=2))
    model.save_pretrained(tmp_path / "out" / "first")
    merged = run("merge", tmp_path / "out" / "first", "--model", model_folder, "--out", tmp_path / "merged")
    assert merged.exit_code == 0, merged.output
    told = "The base carries 1 edit, merged into its weights: out/first."
    options = [fact_file, "--model", tmp_path / "merged", "--retention-tokens", 0, "--out"]
    commands = {
        "evaluate": [],
        "edit": ["--scorer", "random", "--steps", 1],
        "edit-keyed": ["--steps", 1],
    }
    for name, more in commands.items():
        result = run(name, *options, tmp_path / name, *more)
        assert result.exit_code == 0, result.output
        assert told in " ".join(result.stdout.split())
        report = json.loads((tmp_path / name / "report.json").read_text())
        assert [edit["adapters"][0]["name"] for edit in report["settings"]["base_edits"]] == ["out/first"]
        assert told in (tmp_path / name / "report.html").read_text()
