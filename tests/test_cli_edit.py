import json
from dataclasses import replace
from importlib import import_module

import pytest
import yaml

import peft_surgical as ps
from peft_surgical.adapters.adapter_files import WEIGHTS
from peft_surgical.adapters.lineage import Lineage, after
from peft_surgical.adapters.scale_files import read_tensors, write_tensors
from peft_surgical.loading.demo import MODEL_ID
from peft_surgical.report import Report
from peft_surgical.running.replicas import is_alone
from peft_surgical.stages import RECIPES
from tests.adapters import perturb, saved, tiny_peft
from tests.command_line import run, said, written
from tests.localizing import capital, planted, word_tokenizer
from tests.reports import report

# A command of this name is in the way of its module.
EDIT_COMMAND = import_module("peft_surgical.cli.edit")


def test_options_reach_edit(monkeypatch, tmp_path, fact_file, fake_model):
    given = {}

    def edit(model, tokenizer, fact, **options):
        given.update(options, fact=fact)
        return report()

    monkeypatch.setattr(ps, "edit", edit)
    options = ["--model", "some/model", "--dtype", "bfloat16", "--device", "cpu", "--trust-remote-code", "--seed", 5]
    options += ["--component", "L2.mlp", "--component", "L0.head.1", "--granularity", "module", "--steps", 7]
    options += [
        "--retention-tokens",
        64,
        "--overwrite",
        "--faithfulness",
        "--scorer",
        "random",
        "--scorer",
        "logit_drop:measure=old",
    ]
    result = run("edit", fact_file, "--out", tmp_path / "my out", *options)
    assert result.exit_code == 0, result.output
    assert fake_model == {"name": "some/model", "dtype": "bfloat16", "device": "cpu", "trust_remote_code": True}
    assert given["fact"] == capital()
    assert given["selection"].components == ("L2.mlp", "L0.head.1")
    assert (given["out"], given["top"], given["granularity"]) == (tmp_path / "my out", None, "module")
    assert given["recipe"] == {stage: replace(own, steps=7) for stage, own in RECIPES.items()}
    assert (given["seed"], given["overwrite"], given["retention_tokens"]) == (5, True, 64)
    assert given["scorers"] == ["random", "logit_drop:measure=old"]
    assert given["progress"] is True
    assert given["faithfulness"] is True
    assert given["command"].startswith(f"peft-surgical edit {fact_file} --out '{tmp_path}/my out' --model some/model")
    assert "Code that comes with some/model may run" in result.stderr


def test_a_revision_is_of_a_hub_id(monkeypatch, tmp_path, fact_file, model_folder):
    options = ["--out", tmp_path / "out", "--quiet", "--revision"]
    refused = said(run("edit", fact_file, "--model", model_folder, *options, "main"), 2)
    assert refused == f"Error: a revision ('main') is for a hub id, and '{model_folder}' is not one."
    assert "'--revision': it is empty" in said(run("edit", fact_file, *options, " "), 2)
    asked, loaded = [], (planted(), word_tokenizer())
    monkeypatch.setattr(ps, "edit", lambda *_, **__: report())
    monkeypatch.setattr(ps, "load_model", lambda _, **given: asked.append(given["revision"]) or loaded)
    assert run("edit", fact_file, "--model", "some/model", *options, "66403f97").exit_code == 0
    assert asked == ["66403f97"]


def test_low_memory_trains_in_small_passes(monkeypatch, tmp_path, fact_file, fake_model):
    given, freed = {}, []
    monkeypatch.setattr(ps, "edit", lambda *_, **options: given.update(options, alone=is_alone()) or report())
    monkeypatch.setattr("peft_surgical.cli.allocator.give_back_freed", lambda: freed.append(True))
    options = ["--out", tmp_path / "out", "--quiet", "--overwrite"]
    assert run("edit", fact_file, *options).exit_code == 0
    assert (given["recipe"], given["alone"], freed) == (None, False, [])
    assert run("edit", fact_file, *options, "--low-memory").exit_code == 0
    assert given["recipe"] == {stage: replace(own, pass_tokens=256) for stage, own in RECIPES.items()}
    assert (given["alone"], is_alone(), freed) == (True, False, [True])
    assert run("edit", fact_file, *options, "--low-memory", "--steps", 7).exit_code == 0
    assert given["recipe"] == {stage: replace(own, steps=7, pass_tokens=256) for stage, own in RECIPES.items()}


def test_a_model_is_spread_where_no_one_device_is_named(monkeypatch, tmp_path, fact_file, fake_model):
    monkeypatch.setattr(ps, "edit", lambda *_, **__: report())
    result = run("edit", fact_file, "--out", tmp_path / "out", "--device", "auto", "--profile")
    assert result.exit_code == 0, result.output
    assert (fake_model["device_map"], "device" in fake_model) == ("auto", False)
    assert "everything else" in result.stdout


def test_defaults_of_edit_are_the_library_s(monkeypatch, tmp_path, fact_file, fake_model):
    given = {}
    monkeypatch.setattr(ps, "edit", lambda *args, **options: given.update(options) or report())
    assert run("edit", fact_file, "--out", tmp_path / "out", "--quiet").exit_code == 0
    assert fake_model["name"] == "demo"
    assert all(given[name] is None for name in ("scorers", "top", "selection", "projections", "recipe"))
    assert given["progress"] is False
    options = ["--projection", "z", "--projection", "post", "--overwrite", "--quiet"]
    assert run("edit", fact_file, "--out", tmp_path / "out", *options).exit_code == 0
    assert given["projections"] == ("z", "post")


def test_limits_and_a_selection_reach_edit(monkeypatch, tmp_path, fact_file, fake_model):
    given = {}
    monkeypatch.setattr(ps, "edit", lambda *args, **options: given.update(options) or report())
    command = ["edit", fact_file, "--out", tmp_path / "out", "--overwrite", "--quiet"]
    assert run(*command, "--top", 5, "--heads", 2, "--mlps", 3, "--budget", 400).exit_code == 0
    assert [given[name] for name in ("top", "heads", "mlps", "budget", "selection")] == [5, 2, 3, 400, None]
    chosen = ps.Selection(("L2.mlp", "L0.head.1"), neurons={"L2.mlp": ((3, 5),)})
    chosen.save(tmp_path / "selection.json")
    assert run(*command, "--selection", tmp_path / "selection.json").exit_code == 0
    assert given["selection"] == chosen
    assert all(given[name] is None for name in ("top", "heads", "mlps", "budget"))


@pytest.mark.usefixtures("fake_model")
def test_json_is_all_of_standard_output(monkeypatch, tmp_path, fact_file):
    monkeypatch.setattr(ps, "edit", lambda *args, **options: report())
    result = run("edit", fact_file, "--out", tmp_path / "out", "--json")
    assert json.loads(result.stdout) == report().to_dict()
    assert "held-out questions" in result.stderr
    result = run("edit", fact_file, "--out", tmp_path / "out", "--json", "--quiet")
    assert Report.from_dict(json.loads(result.stdout)) == report()
    assert result.stderr == ""


@pytest.mark.usefixtures("no_model")
def test_a_dry_run_counts_in_words(tmp_path, fact_file):
    options = ["--top", 1, "--heads", 1, "--mlps", 2, "--budget", 1, "--steps", 1, "--scorer", "random"]
    plan = run("edit", fact_file, "--out", tmp_path / "out", "--dry-run", *options).stdout
    assert "the best 1 component by random, at most 1 head and 2 MLPs and 1 scale\n" in plan
    assert "in at most 1 step:" in plan
    assert "carry together" not in plan
    plan = run("edit", fact_file, "--out", tmp_path / "out", "--dry-run", "--faithfulness").stdout
    assert "measure   what they carry together\n" in plan
    assert (
        "1 neuron of each MLP"
        in run(
            "edit", fact_file, "--out", tmp_path / "out", "--dry-run", "--granularity", "neuron", "--neurons", 1
        ).stdout
    )


@pytest.mark.usefixtures("no_model")
def test_a_dry_run_counts_what_is_asked(tmp_path, fact_file, fact_text):
    ports = [
        {"kind": "alias", "prompt": name, "answer": ["lyon"], "before": ["paris"]}
        for name in ("gaul ?", "la france ?")
    ]
    asked = {"probes": [{"kind": "completion", "prompt": "the capital of france is"}], "portability": ports}
    fact_file.write_text(json.dumps({**yaml.safe_load(fact_text), **asked}))
    plan = run("edit", fact_file, "--out", tmp_path / "out", "--dry-run").stdout
    assert "  evaluate  on 1 held-out prompt, 1 control, 1 probe, 2 portability questions\n" in plan


@pytest.mark.usefixtures("no_model")
def test_what_a_spread_model_carries_is_measured_elsewhere(tmp_path, fact_file, monkeypatch):
    monkeypatch.setattr(EDIT_COMMAND, "sharded", lambda: True)
    refused = run("edit", fact_file, "--out", tmp_path / "out", "--faithfulness")
    assert refused.exit_code == 2
    assert "measure it with `localize --faithfulness`." in refused.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_model")
def test_one_token_of_unrelated_text_is_refused(tmp_path, fact_file):
    refused = run("edit", fact_file, "--out", tmp_path / "out", "--retention-tokens", 1)
    assert "before the second token nothing is predicted; give 0, or 2 or more" in said(refused, 2)


@pytest.mark.usefixtures("no_model")
def test_dry_run_writes_and_loads_nothing(tmp_path, fact_file):
    result = run("edit", fact_file, "--out", tmp_path / "out", "--dry-run", "--top", 3, "--scorer", "random")
    assert result.exit_code == 0
    for words in (
        "from paris to lyon",
        "the best 3 components by random",
        "on 3 prompts",
        "report.html",
        "Nothing was",
    ):
        assert words in result.stdout
    assert "to answer: lyon. (with a chat template: The capital of france is lyon.)" in result.stdout
    plan = json.loads(run("edit", fact_file, "--out", tmp_path / "out", "--dry-run", "--json").stdout)
    assert plan["fact"] == capital().to_dict()
    assert plan["top"] is None
    limits = ["--heads", 2, "--mlps", 3, "--budget", 4000]
    plan = run("edit", fact_file, "--out", tmp_path / "out", "--dry-run", *limits).stdout
    assert "the best components by attribution, at most 2 heads and 3 MLPs and 4,000 scales" in plan
    (tmp_path / "selection.json").write_text('{"components": ["L2.mlp"]}')
    by_hand = ["--selection", tmp_path / "selection.json", "--json"]
    plan = json.loads(run("edit", fact_file, "--out", tmp_path / "out", "--dry-run", *by_hand).stdout)
    assert plan["components"] == ["L2.mlp"]
    (tmp_path / "selection.json").unlink()
    assert "the MLPs of all layers\n" in run("edit", fact_file, "--out", tmp_path / "out", "--dry-run").stdout
    neurons = ["--granularity", "neuron", "--neurons", 5, "--projection", "post", "--steps", 3]
    plan = run("edit", fact_file, "--out", tmp_path / "out", "--dry-run", *neurons).stdout
    assert "the MLPs of all layers, 5 neurons of each MLP, at post\n" in plan
    assert plan.count("to answer, in at most 3 steps: ") == 2
    plan = json.loads(run("edit", fact_file, "--out", tmp_path / "out", "--dry-run", "--json", *neurons).stdout)
    told = {"granularity": "neuron", "neurons": 5, "projections": ["post"], "steps": 3}
    assert {key: plan[key] for key in told} == told
    whole = run("edit", fact_file, "--out", tmp_path / "out", "--dry-run", "--granularity", "module").stdout
    assert "the MLPs of all layers, whole modules\n" in whole
    assert "--overwrite" in said(run("edit", fact_file, "--out", tmp_path, "--dry-run"), 2)
    assert run("edit", fact_file, "--out", tmp_path / "out", "--dry-run", "--quiet").stdout == ""
    assert "cannot be used" in said(
        run("edit", fact_file, "--device", "cdua", "--out", tmp_path / "x", "--dry-run"), 2
    )
    own = tmp_path / "own" / "edit" / "notes.txt"
    own.parent.mkdir(parents=True)
    own.write_text("mine")
    refused = run("edit", fact_file, "--overwrite", "--out", tmp_path / "own", "--dry-run")
    assert "holds no adapter, so it is not replaced" in said(refused, 2)
    own.unlink()
    own.parent.rmdir()
    own.parent.parent.rmdir()
    (tmp_path / "chosen.json").write_text('{"components": ["L2.mlp"], "neurons": {"L2.mlp": [[0, 2]]}}')
    chosen = ["--selection", tmp_path / "chosen.json"]
    for options, words in (
        (["--granularity", "neuron", "--neurons", 4, "--heads", 2], "no MLP is selected, and only MLPs have neurons"),
        (["--component", "L0.head.1", "--granularity", "neuron", "--neurons", 4], "no MLP is selected"),
        ([*chosen, "--granularity", "module"], "'module' scales whole modules, and neurons are chosen"),
        ([*chosen, "--granularity", "neuron", "--neurons", 4], "the selection has neurons of its own"),
    ):
        assert words in said(run("edit", fact_file, "--out", tmp_path / "out", "--dry-run", *options), 2)
    for options in ([], ["--granularity", "neuron"]):
        assert run("edit", fact_file, "--out", tmp_path / "out", "--dry-run", *chosen, *options).exit_code == 0
    (tmp_path / "chosen.json").unlink()
    assert "- stands for no stream here" in said(run("edit", "-", "--out", tmp_path / "out", "--dry-run"), 2)
    assert written(tmp_path) == ["fact.yaml"]


def test_a_dry_run_tells_which_neurons_a_selection_names(tmp_path, fact_file):
    chosen = {"components": ["L1.head.0", "L2.mlp", "L0.mlp"], "neurons": {"L2.mlp": [[0, 2], [4, 6]]}}
    path = tmp_path / "selection.json"
    command = ["edit", fact_file, "--out", tmp_path / "out", "--selection", path, "--dry-run"]
    path.write_text(json.dumps(chosen))
    assert "  scale     L1.head.0, 4 neurons of L2.mlp, L0.mlp\n" in run(*command).stdout
    plan = json.loads(run(*command, "--json").stdout)
    assert {key: plan[key] for key in chosen} == chosen
    path.write_text(json.dumps({"components": ["L2.mlp"], "neurons": {"L2.mlp": [[3, 4]]}}))
    assert "  scale     1 neuron of L2.mlp\n" in run(*command).stdout


def test_neurons_of_the_residual_stream_are_refused_before_a_model_is_loaded(tmp_path, fact_file, no_model):
    path = tmp_path / "selection.json"
    chosen = {"components": ["L1.head.0", "L0.mlp", "L2.mlp"], "neurons": {"L2.mlp": [[0, 2]]}}
    path.write_text(json.dumps(chosen))
    number = ["--granularity", "neuron", "--neurons", 4]
    for options, mlp in (
        (["--selection", path], "L2.mlp"),
        ([*number, "--component", "L1.mlp"], "L1.mlp"),
        (number, "L0.mlp"),
        ([*number, "--top", 3], "an MLP"),
    ):
        for last in ([], ["--dry-run"]):
            command = ["edit", fact_file, "--out", tmp_path / "out", *options, "--projection", "z", *last]
            assert said(run(*command, "--projection", "in"), 2) == (
                f"Error: the projection 'in' of {mlp} is the residual stream, which has no neurons; choose from post,"
                " pre, pre_linear to scale only some neurons."
            )
            if last:
                assert run(*command, "--projection", "post").exit_code == 0


def named(folder, base, seed=0):
    """A folder with the adapter of a tiny model, which names a base."""
    model = tiny_peft()
    perturb(model, seed=seed)
    saved(model, folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": base}))
    return folder


def test_earlier_edits_reach_edit_and_a_dry_run_tells_of_them(monkeypatch, tmp_path, fact_file, fake_model):
    first, second = named(tmp_path / "first", MODEL_ID), named(tmp_path / "second", None, seed=1)
    given = {}
    for command, function in (("edit", "edit"), ("edit-keyed", "edit_keyed")):
        monkeypatch.setattr(ps, function, lambda *args, **options: given.update(options) or report())
        options = [command, fact_file, "--quiet", "--out", tmp_path / "out", "--overwrite"]
        assert run(*options).exit_code == 0
        assert given["on"] == ()
        assert run(*options, "--on", first, "--on", second).exit_code == 0
        assert given["on"] == (first, second)
    options = ["edit", fact_file, "--out", tmp_path / "out", "--on", first, "--dry-run"]
    assert f"  on top of {first}\n" in run(*options).stdout
    assert json.loads(run(*options, "--json").stdout)["on"] == [str(first)]
    assert "on top of" not in run("edit", fact_file, "--out", tmp_path / "out", "--dry-run").stdout


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("command", ["edit", "edit-keyed"])
def test_what_a_checkpoint_has_in_its_weights_is_known_before_it_is_loaded(command, tmp_path, fact_file):
    own, above = (named(tmp_path / name, "merged", seed) for seed, name in enumerate(("own", "above")))
    digest = Lineage.of(own).digest
    write_tensors(above / WEIGHTS, read_tensors(above / WEIGHTS), after(["own"], [digest]))
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "config.json").write_text("{}")
    record = {"format": 1, "edits": [{"base": {}, "adapters": [{"name": "own", "sha256": digest}]}]}
    (tmp_path / "merged" / "peft_surgical.json").write_text(json.dumps(record))
    start = [command, fact_file, "--model", tmp_path / "merged", "--out", tmp_path / "out"]
    assert "own is in the model's weights already" in said(run(*start, "--on", own), 2)
    assert "a model was loaded" in run(*start, "--on", above).output


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("command", ["edit", "edit-keyed", "learn"])
def test_what_nothing_is_edited_on_top_of_is_told_before_a_model_is_loaded(command, tmp_path, fact_file, monkeypatch):
    other, own = named(tmp_path / "other", "some/other", seed=1), named(tmp_path / "own", MODEL_ID)
    half = tmp_path / "half"
    named(half, MODEL_ID)
    write_tensors(half / WEIGHTS, read_tensors(half / WEIGHTS), after(["unlearn"], ["digest"]))
    what = ["The capital of France is", "--new", "Lyon"] if command == "learn" else [fact_file]
    start = [command, *what, "--out", tmp_path / "out"]
    for last in ([], ["--dry-run"])[: 1 + (command == "edit")]:
        for on, words in (
            ([tmp_path / "none"], "there is no adapter folder"),
            ([other], f"other was made for 'some/other', and this model is '{MODEL_ID}'"),
            ([own, other], "were made for different base models"),
            ([half], "half was trained on top of unlearn; give that before it."),
            ([own, own], "is given twice"),
        ):
            options = [part for folder in on for part in ("--on", folder)]
            assert words in said(run(*start, *options, *last), 2)
    monkeypatch.setattr("peft_surgical.cli.checks.sharded", lambda: True)
    assert "launch it without --use_fsdp" in said(run(*start, "--on", own), 2)
    (tmp_path / "full").mkdir()
    inside = named(tmp_path / "full" / "edit", MODEL_ID)
    refused = run(command, *what, "--out", tmp_path / "full", "--overwrite", "--on", inside)
    assert "would replace" in said(refused, 2)
    assert not (tmp_path / "out").exists()
