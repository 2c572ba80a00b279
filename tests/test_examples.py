"""The scripts in `examples/`, run on a tiny model with a planted fact."""

import importlib
import json
import runpy
import shlex
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel

import peft_surgical as ps
from peft_surgical.errors import OutputError
from peft_surgical.running.generation import generate_answers
from tests.command_line import run
from tests.counterfacts import word_model
from tests.localizing import planted, word_tokenizer
from tests.outputs import complete
from tests.test_page import Page

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
PROMPT = "what is the capital of france ?"


@pytest.fixture
def example(monkeypatch):
    """Imports an example by its name, and forgets it afterwards."""

    def load(name):
        monkeypatch.syspath_prepend(str(EXAMPLES / name).rpartition("/")[0])
        name = name.rpartition("/")[2]
        monkeypatch.delitem(sys.modules, name, raising=False)
        return importlib.import_module(name)

    before = set(sys.modules)
    yield load
    for name in {path.stem for path in EXAMPLES.rglob("*.py")} - before:
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
    with pytest.raises(OutputError, match="is not empty"):
        example("merging").main(model_folder, fact_file, tmp_path / "out")
    again = example("merging").main(model_folder, fact_file, tmp_path / "again", adapters=stages)
    assert all(torch.equal(values, found[name]) for name, values in again.items())


@pytest.fixture(scope="module")
def phi3_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phi3")
    word_model("phi3").save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


def test_the_papers_modules_are_those_of_its_selection(example):
    names, inputs = example("phi3_pytorch/paper").modules()
    config = ps.SurgicalIA3Config.from_localization(ps.PAPER_SELECTION, granularity="module")
    config.resolve(
        {"model_type": "phi3", "num_hidden_layers": 32, "num_attention_heads": 32, "hidden_size": 3072}
        | {"intermediate_size": 8192}
    )
    assert sorted(names) == sorted(config.target_modules)
    assert sorted(inputs) == sorted(config.feedforward_modules)
    assert sum(found.n for found in config.coordinates.values()) == 98_304


def test_the_papers_recipe(example, tmp_path, phi3_folder, fact_file):
    paper = example("phi3_pytorch/paper")
    queries = tmp_path / "queries.jsonl"
    queries.write_text(
        "".join(json.dumps({"query": prompt}) + "\n" for prompt in ps.Fact.from_file(fact_file).prompts)
    )
    given = {"revision": None, "mlps": (0, 2), "attentions": (1,), "epochs": 20, "device": "cpu", "dtype": "float32"}
    report = paper.main(str(phi3_folder), fact=fact_file, queries=queries, out=tmp_path / "out", **given)
    assert list(report.stages) == ["base", "unlearned", "edited"]
    assert (tmp_path / "out" / "report.json").is_file()
    assert report.verdict() in (tmp_path / "out" / "report.html").read_text()
    # The base's figures are those of the base, although the model carries both merges by then.
    model, tokenizer = ps.load_model(phi3_folder)
    alone = ps.evaluate(model, tokenizer, ps.Fact.from_file(fact_file), progress=False)
    assert report.answers["base"] == alone.answers["base"]
    assert report.stages["edited"]["kl_per_token"].value > report.stages["unlearned"]["kl_per_token"].value > 0


def test_the_papers_probes_are_there_to_read(example, tmp_path, phi3_folder, fact_file):
    asked = {"which city has the seat ?": "doubt", "lyon has what ?": "ethics", "is paris the capital ?": "ethics"}
    probes = tmp_path / "probes.jsonl"
    lines = [{"probe_id": "X", "category": kind, "prompt_text": prompt} for prompt, kind in asked.items()]
    probes.write_text("".join(json.dumps(line) + "\n" for line in lines))
    given = {"mlps": (0, 2), "attentions": (1,), "epochs": 20, "device": "cpu", "dtype": "float32", "revision": None}
    out = tmp_path / "out"
    report = example("phi3_pytorch/paper").main(str(phi3_folder), fact=fact_file, probes=probes, out=out, **given)
    assert report == ps.Report.load(out / "report.json")
    assert {probe.prompt: probe.kind for probe in report.fact.probes} == asked
    model, tokenizer = ps.load_model(phi3_folder)
    said = {stage: given["probes"] for stage, given in report.answers.items()}
    assert said["base"] == generate_answers(model, tokenizer, list(asked))
    assert said["edited"] != said["base"]
    shown = Page((out / "report.html").read_text())
    assert set(asked) <= set(shown.texts("p", "ask"))
    assert set(asked.values()) <= set(shown.texts("p", "soft"))
    answers = shown.texts("dd")
    assert all(" ".join(answer.split()) in answers for answer in (*said["base"], *said["edited"]))


@pytest.mark.parametrize("text", ["no JSON", '{"query": "x ?"}', "[1]", '{"prompt_text": "x ?"}'])
def test_what_is_no_file_of_probes(example, tmp_path, phi3_folder, fact_file, text):
    probes = tmp_path / "probes.jsonl"
    probes.write_text(text)
    with pytest.raises(SystemExit, match=r"probes\.jsonl cannot be read as JSON lines with prompt_text and category"):
        example("phi3_pytorch/paper").main(str(phi3_folder), revision=None, fact=fact_file, probes=probes)


@pytest.mark.parametrize("number", range(2))
def test_the_edits_of_the_papers_readme(example, tmp_path, phi3_folder, fact_file, number):
    """Its command lines, with a tiny model of the family in the place of Phi-3-mini and two steps a stage."""
    text = (EXAMPLES / "phi3_pytorch" / "README.md").read_text(encoding="utf-8")
    lines = [shlex.split(line) for line in text.splitlines() if line.startswith("peft-surgical edit ")]
    assert [("module" in line) for line in lines] == [False, True]
    layers = {"L16.mlp": "L0.mlp", "L18.mlp": "L1.mlp", "L23.mlp": "L2.mlp"}
    heads = {"L20.head.26": "L1.head.3", "L22.head.28": "L2.head.0"}
    here = {"examples/facts/pytorch.yaml": fact_file, "microsoft/Phi-3-mini-4k-instruct": phi3_folder, "cuda": "cpu"}
    swaps = {**layers, **heads, **here, "out/ours": tmp_path / "out", "out/ours_on_ten": tmp_path / "out"}
    assert {*here, *([*layers, *heads] if number else [])} <= set(lines[number])
    # A folder has no revision.
    place = lines[number].index("--revision")
    words = lines[number][1:place] + lines[number][place + 2 :]
    result = run(*(swaps.get(word, word) for word in words), "--steps", 2)
    assert result.exit_code == 0, result.output
    report = ps.Report.load(tmp_path / "out" / "report.json")
    assert list(report.stages) == ["base", "unlearned", "edited"]
    assert report.stages["edited"]["kl_per_token"].value > 0
    assert report.dtype == "bfloat16"
    config = json.loads((tmp_path / "out" / "edit" / "adapter_config.json").read_text())
    if number:
        names, inputs = example("phi3_pytorch/paper").modules(mlps=(0, 1, 2), attentions=(1, 2))
        assert sorted(config["target_modules"]) == sorted(names)
        assert sorted(config["feedforward_modules"]) == sorted(inputs)
    else:
        assert sorted(report.selection["components"]) == ["L0.mlp", "L1.mlp", "L2.mlp"]


def test_the_paper_is_not_trained_for_a_report_without_a_place(example, tmp_path, phi3_folder, fact_file, monkeypatch):
    paper = example("phi3_pytorch/paper")
    monkeypatch.setattr(paper, "train_stage", None)  # must not be called
    file, full = tmp_path / "file", tmp_path / "full"
    file.touch()
    full.mkdir()
    (full / "report.json").touch()
    for out in (file, full):
        with pytest.raises(ps.OutputError):
            paper.main(str(phi3_folder), revision=None, fact=fact_file, out=out)
    queries = tmp_path / "queries.jsonl"
    queries.touch()
    with pytest.raises(SystemExit, match=r"queries\.jsonl has no query"):
        paper.main(str(phi3_folder), revision=None, fact=fact_file, queries=queries, out=tmp_path / "out")


def test_the_papers_modules_are_asked_for_before_anything_is_trained(example, tmp_path, model_folder, fact_file):
    with pytest.raises(SystemExit, match=r"has no module model\.layers\.16\.mlp\.gate_up_proj: .* are Phi-3's"):
        example("phi3_pytorch/paper").main(str(model_folder), revision=None, fact=fact_file, out=tmp_path / "out")


@pytest.mark.parametrize("name", ["quickstart", "merging", "own_scorer", "trainer_loop"])
def test_what_a_script_is_given_wrongly_is_told_in_a_sentence(name, tmp_path, model_folder, monkeypatch):
    given = ["--model", model_folder, "--fact", tmp_path / "none.yaml", "--out", tmp_path / "out"]
    monkeypatch.setattr(sys, "argv", [name, *map(str, given)])
    with pytest.raises(SystemExit, match=r"^Error: .*none\.yaml"):
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert not (tmp_path / "out").exists()


def test_the_papers_queries_may_not_be_held_out(example, tmp_path, phi3_folder, fact_file):
    queries = tmp_path / "queries.jsonl"
    queries.write_text(json.dumps({"query": ps.Fact.from_file(fact_file).held_out[0]}))
    with pytest.raises(SystemExit, match="is held out in the fact file"):
        example("phi3_pytorch/paper").main(str(phi3_folder), revision=None, fact=fact_file, queries=queries)
