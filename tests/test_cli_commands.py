"""Every command once for real, on a tiny model with a planted fact, and what their files agree on."""

import contextlib
import json
import os
import re
import shutil
import sys
from importlib.util import find_spec

import pytest
import torch
from peft import LoHaConfig, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import peft_surgical as ps
from peft_surgical.report import Report
from tests.command_line import PROMPT, run, said, written
from tests.launching import start
from tests.localizing import planted, word_tokenizer


@pytest.fixture(scope="module")
def edited(model_folder, fact_text, tmp_path_factory):
    """What `edit` left in its folder, and what it printed."""
    folder = tmp_path_factory.mktemp("edited")
    (folder / "fact.yaml").write_text(fact_text)
    arguments = ["edit", folder / "fact.yaml", "--model", model_folder, "--out", folder / "out", "--top", 4]
    return folder / "out", run(*arguments, "--steps", 8, "--scorer", "logit_drop", "--seed", 3)


def test_edit_end_to_end(edited):
    out, result = edited
    assert result.exit_code == 0, result.output
    files = {"localization.json", "unlearn", "learn", "edit", "report.json", "report.html"}
    assert files <= set(written(out))
    found = Report.load(out / "report.json")
    assert list(found.stages) == ["base", "unlearned", "edited"]
    assert found.seed == 3
    assert " ".join(result.stdout.split()).count(found.verdict()) == 1
    html = (out / "report.html").read_text()
    assert "--scorer logit_drop --seed 3" in html
    assert "\x1b" not in result.output


def test_bars_and_colours_are_for_a_terminal(tmp_path, fact_file, model_folder):
    """Through a pseudo-terminal, and through pipes."""
    pty, termios = pytest.importorskip("pty"), pytest.importorskip("termios")
    command = ["-m", "peft_surgical.cli", "localize", fact_file, "--model", model_folder]
    command += ["--scorer", "logit_drop", "--top", "3"]
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (40, 100))
    process = start([*command, "--out", tmp_path / "a"], theirs, theirs, TERM="xterm-256color", NO_COLOR="1")
    os.close(theirs)
    seen = read_all(ours)
    process.join()
    assert process.exitcode == 0, seen
    assert b"%|" in seen
    codes = {int(code) for found in re.findall(rb"\x1b\[([\d;]*)m", seen) for code in found.split(b";") if code}
    # Bold and faint are no colours.
    assert codes <= {0, 1, 2, 3, 22, 23}
    # Less than a pipe holds.
    (out, to_out), (err, to_err) = os.pipe(), os.pipe()
    process = start([*command, "--out", tmp_path / "b"], to_out, to_err)
    os.close(to_out), os.close(to_err)
    stdout, stderr = read_all(out), read_all(err)
    process.join()
    assert process.exitcode == 0, stderr
    assert b"\x1b" not in stdout + stderr
    assert b"%|" not in stderr
    assert b"\r" not in stderr
    assert b"logit_drop" in stdout


def read_all(descriptor):
    with os.fdopen(descriptor, "rb", buffering=0) as file, contextlib.suppress(OSError):  # the end of a terminal
        seen = b""
        while read := file.read(4096):
            seen += read
    return seen


def test_localize_end_to_end(tmp_path, fact_file, model_folder):
    options = ["--model", model_folder, "--scorer", "logit_drop", "--scorer", "random", "--top", 2]
    result = run("localize", fact_file, "--out", tmp_path / "out", *options)
    assert result.exit_code == 0, result.output
    found = ps.Localization.load(tmp_path / "out" / "localization.json")
    assert found.scorers == ("logit_drop", "random")
    pictured = ["localization.png"] if find_spec("matplotlib") else []
    assert written(tmp_path / "out") == ["localization.json", *pictured]
    assert all((tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG") for name in pictured)
    best = found.top(2).components
    assert ps.Selection.load(tmp_path / "out" / "localization.json").components == best
    assert [line.split()[1] for line in result.stdout.splitlines() if line.strip()[:2] in ("1 ", "2 ")] == list(best)
    again = run("localize", fact_file, "--out", tmp_path / "out", *options)
    assert "--overwrite" in said(again, 2)
    shown = json.loads(run("localize", fact_file, "--out", tmp_path / "json", *options, "--json", "--quiet").stdout)
    assert shown.keys() == json.loads((tmp_path / "json" / "localization.json").read_text()).keys()
    assert shown["selection"]["components"] == list(best)


def test_without_matplotlib_no_picture_is_promised(tmp_path, fact_file, model_folder, monkeypatch):
    command = ["edit", fact_file, "--out", tmp_path / "out", "--model", model_folder, "--top", 1]
    command += ["--steps", 1, "--scorer", "random", "--retention-tokens", 0]
    pictured = find_spec("matplotlib") is not None
    assert ("localization.png" in run(*command, "--dry-run").stdout) is pictured
    for name in ("matplotlib", "matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, name, None)
    assert "write     localization.json, unlearn/, learn/, edit/, report.json, " in run(*command, "--dry-run").stdout
    planned = json.loads(run(*command, "--dry-run", "--json").stdout)["files"]
    assert planned == ["localization.json", "unlearn/", "learn/", "edit/", "report.json", "report.html"]
    result = run(*command)
    assert result.exit_code == 0, result.output
    assert written(tmp_path / "out", ".peft_surgical") == sorted(name.strip("/") for name in planned)
    assert "localization.png" not in result.stdout
    assert all(name in result.stdout for name in planned)
    left_out = "localization.png is left out: it needs matplotlib (pip install 'peft-surgical[plot]')."
    assert left_out in result.stderr.splitlines()
    assert run(*command, "--overwrite", "--quiet").stderr == ""
    localized = run("localize", fact_file, *command[4:6], "--scorer", "random", "--out", tmp_path / "where")
    assert left_out in localized.stderr.splitlines()
    assert written(tmp_path / "where") == ["localization.json"]


def test_what_localize_chose_is_edited(edited, tmp_path, fact_file, model_folder):
    where, options = tmp_path / "where", ["--model", model_folder, "--scorer", "logit_drop"]
    # A head has 8 coordinates at z, an MLP reads 32 of the residual stream.
    limits = ["--heads", 2, "--mlps", 1, "--budget", 44]
    result = run("localize", fact_file, "--out", where, *options, *limits)
    assert result.exit_code == 0, result.output
    chosen = ps.Selection.load(where / "localization.json")
    assert (len(chosen.heads), chosen.mlps) == (1, ("L2.mlp",))
    assert [name for name in chosen.components if name in result.stdout] == list(chosen.components)
    command = ["edit", fact_file, *options, "--steps", 2, "--retention-tokens", 0, "--quiet"]
    recorded = []
    for name, how in {
        "limits": limits,
        "file": ["--selection", where / "localization.json"],
        "again": ["--selection", tmp_path / "file" / "report.json"],
    }.items():
        result = run(*command, "--out", tmp_path / name, *how)
        assert result.exit_code == 0, result.output
        recorded.append(Report.load(tmp_path / name / "report.json").selection)
        assert ps.Selection.load(tmp_path / name / "localization.json") == chosen
    assert recorded[0] == recorded[1] == recorded[2]
    assert recorded[0]["components"] == list(chosen.components)
    assert recorded[0]["scales"] == 8 + 32


def test_evaluate_stages(edited, tmp_path, fact_file, model_folder):
    out, _ = edited
    command = ["evaluate", fact_file, "--model", model_folder, "--retention-tokens", 300]
    staged = run(*command, "--adapter", out / "unlearn", "--adapter", out / "learn", "--out", tmp_path / "staged")
    assert staged.exit_code == 0, staged.output
    found, original = Report.load(tmp_path / "staged" / "report.json"), Report.load(out / "report.json")
    assert found.answers == original.answers
    assert [each["folder"] for each in found.settings["adapters"]] == [
        str(out / name) for name in ("unlearn", "learn")
    ]
    kl = {stage: figures["kl_per_token"].value for stage, figures in found.stages.items()}
    # The adapters did something, and not both the same.
    assert 0 == kl["base"] < kl["unlearned"] != kl["edited"] > 0
    whole = run(*command, "--adapter", out / "edit", "--out", tmp_path / "whole", "--json", "--quiet")
    stages = json.loads(whole.stdout)["stages"]
    assert list(stages) == ["base", "edited"]
    assert stages["edited"]["kl_per_token"]["value"] == pytest.approx(kl["edited"], rel=1e-4)
    few = run(*command, "--adapter", out / "edit", "--out", tmp_path / "few", "--json", "--bits", 8, "--bits", 4)
    stages = json.loads(few.stdout)["stages"]
    # The last is the one that the verdict is about.
    assert list(stages) == ["base", *(f"{name} in {n} bits" for n in (8, 4) for name in ("base", "edited")), "edited"]
    assert stages["edited"]["kl_per_token"]["value"] == pytest.approx(kl["edited"], rel=1e-4)
    rounded = [stages[name]["kl_per_token"]["value"] for name in stages if "bits" in name]
    assert len({*rounded, 0, stages["edited"]["kl_per_token"]["value"]}) == 6
    deep = run(
        *command,
        "--adapter",
        out / "edit",
        "--out",
        tmp_path / "deep",
        "--relearn",
        2,
        "--relearn",
        1,
        "--fluency",
        "--margins",
    )
    assert deep.exit_code == 0, deep.output
    found = Report.load(tmp_path / "deep" / "report.json")
    assert found.margins.keys() == found.stages.keys()
    assert all("answer_margin" in figures for figures in found.stages.values())
    assert "over lyon" not in staged.stdout
    assert "nats/token" in deep.stdout.replace("KL to base, nats/token", "")
    relearned = [f"{name} relearned {steps}" for steps in ("2 steps", "1 step") for name in ("base", "edited")]
    assert list(found.stages) == ["base", *relearned, "edited"]
    assert len({figures["kl_per_token"].value for figures in found.stages.values()}) == 6
    assert all(
        figures["fluency"].n == len(found.answers["base"]["continuations"]) for figures in found.stages.values()
    )
    assert "n-gram entropy" in deep.stdout
    assert "n-gram entropy" in (tmp_path / "deep" / "report.html").read_text()
    bare = run(*command, "--out", tmp_path / "bare", "--quiet")
    assert (bare.exit_code, bare.output) == (0, "")
    assert written(tmp_path / "bare") == ["report.html", "report.json"]


def test_stack_merge_and_ask_agree(edited, tmp_path, model_folder):
    out, _ = edited
    stages = [out / "unlearn", out / "learn"]
    one = run("stack", *stages, "--out", tmp_path / "one", "--json")
    merged = run("merge", *stages, "--model", model_folder, "--out", tmp_path / "merged", "--json")
    edit = ps.product(stages)
    for result, name in ((one, "one"), (merged, "merged")):
        assert result.exit_code == 0, result.output
        counted = {"modules": len(edit.modules), "scales": sum(len(m.scale) for m in edit.modules.values())}
        assert json.loads(result.stdout) == {"out": str(tmp_path / name), **counted}
        assert "from_pretrained" in result.stderr
        assert "%|" not in result.stderr
    ids = torch.tensor([word_tokenizer()(PROMPT)["input_ids"]])
    with torch.no_grad():
        base = AutoModelForCausalLM.from_pretrained(model_folder)
        plain = base(ids).logits
        stacked = PeftModel.from_pretrained(base, tmp_path / "one")(ids).logits
        folded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(ids).logits
    assert not torch.equal(plain, stacked)
    torch.testing.assert_close(folded, stacked)
    options = ["--model", model_folder, "--max-tokens", 3, "--json", PROMPT]
    asked = json.loads(run("ask", "--adapter", stages[0], "--adapter", stages[1], *options).stdout)
    assert asked["prompts"] == [PROMPT]
    assert list(asked["answers"]) == ["base", "edited"]
    assert asked["answers"]["base"][0].startswith("paris")


@pytest.mark.parametrize("command", [["stack"], ["merge", "--model", "none"]])
def test_an_adapter_that_is_given_twice_is_not_applied_twice(command, edited, tmp_path):
    out, _ = edited
    given = [out / "learn", out / "edit" / ".." / "learn", "--out", tmp_path / "both"]
    assert said(run(*command, *given), 2).endswith("is given twice; it would act twice.")
    assert not written(tmp_path)


def test_ask_with_a_dial(tmp_path, model_folder):
    # An edit that takes the old answer away: the planted head is switched off.
    strong = ps.SurgicalIA3Config(components=["L1.head.2"])
    model = get_peft_model(planted(), strong)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "surgical_ia3_delta" in name:
                parameter.fill_(-0.999)
    model.save_pretrained(tmp_path / "strong")
    options = ["--model", model_folder, "--adapter", tmp_path / "strong", "--max-tokens", 3, PROMPT, "--json"]
    said_by = json.loads(run("ask", *options, "--dial", 0, "--dial", 1, "--dial", 1).stdout)["answers"]
    assert list(said_by) == ["base", "dial 0", "dial 1"]
    assert said_by["dial 0"] == said_by["base"] != said_by["dial 1"]
    both = ["--model", model_folder, "--adapter", tmp_path / "strong", "--max-tokens", 3, PROMPT, "where is rome ?"]
    result, told = run("ask", *both), json.loads(run("ask", *both, "--json").stdout)
    assert result.exit_code == 0
    assert result.stdout.split()[:3] == ["prompt", "base", "edited"]
    row = next(line for line in result.stdout.splitlines() if line.startswith(PROMPT))
    assert row.split() == [*PROMPT.split(), *told["answers"]["base"][0].split(), *told["answers"]["edited"][0].split()]
    loha = tmp_path / "loha"
    get_peft_model(planted(), LoHaConfig(target_modules=["q_proj"], r=2)).save_pretrained(loha)
    # Told before a model is looked for.
    whole = run("ask", "--model", model_folder, "--adapter", loha, "--max-tokens", 1, PROMPT, "--json")
    assert json.loads(whole.stdout)["answers"]["base"] == ["paris"]
    refused = said(run("ask", "--model", "./none", "--adapter", loha, "--dial", 0.5, PROMPT), 2)
    assert refused.endswith("holds a LOHA adapter; --dial turns SURGICAL_IA3, IA3 and LORA adapters.")


@pytest.fixture
def against(tmp_path):
    """A LoRA adapter that takes away what the model's planted head writes."""
    model = get_peft_model(planted(), LoraConfig(target_modules=["layers.1.self_attn.o_proj"], r=32, lora_alpha=32))
    module = model.get_submodule("base_model.model.model.layers.1.self_attn.o_proj")
    module.lora_A["default"].weight.data = torch.eye(*module.lora_A["default"].weight.shape)
    module.lora_B["default"].weight.data = -module.base_layer.weight.data.clone()
    model.save_pretrained(tmp_path / "lora")
    return tmp_path / "lora"


def test_a_dial_turns_a_lora_adapter(model_folder, against, tmp_path):
    options = ["--model", model_folder, "--max-tokens", 3, PROMPT, "--json"]
    said_by = json.loads(run("ask", "--adapter", against, *options, "--dial", 0, "--dial", 1).stdout)["answers"]
    whole = json.loads(run("ask", "--adapter", against, *options).stdout)["answers"]
    assert said_by == {"base": whole["base"], "dial 0": whole["base"], "dial 1": whole["edited"]}
    assert whole["base"] != whole["edited"]
    result = run("stack", against, "--dial", 0.5, "--out", tmp_path / "half")
    told = " ".join(result.stdout.split())
    assert told.startswith(f"One LoRA adapter in {tmp_path / 'half'}: rank 32, in 1 module.")
    halves = [load_file(folder / "adapter_model.safetensors") for folder in (tmp_path / "half", against)]
    for name, tensor in halves[1].items():
        assert torch.equal(halves[0][name].float(), tensor * (0.5 if "lora_B" in name else 1))
    turned = run("stack", against, "--dial", 0, "--out", tmp_path / "none", "--json")
    assert json.loads(turned.stdout) == {"out": str(tmp_path / "none"), "modules": 1, "rank": 32}
    assert said(run("stack", against, "--dial", 0.5, "--out", against, "--overwrite"), 2).endswith(
        "name another folder."
    )
    assert "lora_B" in " ".join(load_file(against / "adapter_model.safetensors"))


def test_stack_writes_an_edit_that_is_turned_down(edited, tmp_path):
    out, _ = edited
    assert run("stack", out / "edit", "--dial", 1, "--out", tmp_path / "whole").exit_code == 0
    assert ps.Edit.load(tmp_path / "whole") == ps.Edit.load(out / "edit")
    result = run("stack", out / "edit", "--dial", 0, "--out", tmp_path / "none", "--json")
    none = ps.Edit.load(tmp_path / "none")
    assert json.loads(result.stdout)["scales"] == none.n_scales
    assert all(bool((module.scale == 1).all()) for module in none.modules.values())


def test_asked_quietly_there_are_answers_and_nothing_else(model_folder):
    result = run("ask", PROMPT, "--model", model_folder, "--max-tokens", 1, "--quiet")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.split()[0] == "base"
    assert "Print nothing but answers, errors and warnings." in " ".join(run("ask", "--help").stdout.split())


def test_a_model_that_answers_nothing_finite_is_refused(model_folder, tmp_path, fact_file):
    broken = tmp_path / "broken"
    shutil.copytree(model_folder, broken)
    tensors, norm = load_file(broken / "model.safetensors"), "model.norm.weight"
    save_file({**tensors, norm: tensors[norm] * float("nan")}, broken / "model.safetensors", {"format": "pt"})
    for command, words in (
        (["ask", PROMPT], "with logits that are not finite; its weights are damaged"),
        (["edit-keyed", fact_file, "--out", tmp_path / "out"], "the model answers with logits that are not finite"),
        (["evaluate", fact_file, "--fluency", "--out", tmp_path / "out"], "answers with logits that are not finite"),
    ):
        assert words in said(run(*command, "--model", broken), 2)
    assert not (tmp_path / "out").exists()
