import errno
import json
import subprocess
import sys
from dataclasses import replace
from importlib import import_module

import pytest

import peft_surgical as ps
from peft_surgical import editing, localization
from peft_surgical.cli import cli
from peft_surgical.cli.terminal import note, print_json, print_result
from peft_surgical.cli.translate import Commands
from tests.command_line import run, said, written
from tests.localizing import planted

# A command of this name is in the way of its module.
EDIT_COMMAND = import_module("peft_surgical.cli.edit")
COMMANDS = (
    "new",
    "scorers",
    "localize",
    "trace",
    "edit",
    "edit-keyed",
    "edit-all",
    "learn",
    "stack",
    "merge",
    "evaluate",
    "ask",
)


def test_the_entry_point_is_the_group_and_lists_every_command():
    assert isinstance(cli, Commands)
    result = run()
    assert result.exit_code == 0
    assert sorted(cli.commands) == sorted(COMMANDS)
    for command in COMMANDS:
        assert f"\n  {command} " in result.stdout
    assert run("--version").stdout == f"peft-surgical {ps.__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples(command):
    result = run(command, "--help")
    assert result.exit_code == 0
    assert "Example" in result.stdout
    assert f"peft-surgical {command}" in result.stdout.split("Example")[1]
    assert "--json" in result.stdout
    # Every option says what it is for.
    for parameter in cli.commands[command].params:
        assert parameter.param_type_name == "argument" or parameter.help


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_tab_completion(shell):
    variable = "_PEFT_SURGICAL_COMPLETE"
    script = run(env={variable: f"{shell}_source"}).stdout
    assert f"{variable}={shell}_complete" in script
    assert f'eval "$({variable}=bash_source peft-surgical)"' in run("--help").stdout
    typed = {"COMP_WORDS": "peft-surgical ev", "COMP_CWORD": "ev" if shell == "fish" else "1"}
    completed = run(env={variable: f"{shell}_complete", **typed}).stdout
    assert [command for command in COMMANDS if command in completed] == ["evaluate"]


def test_neither_the_package_nor_its_commands_import_what_only_localizing_needs():
    """TransformerLens takes seconds more, and matplotlib need not be there."""
    code = (
        "import sys; from peft_surgical.cli import cli; cli(['edit', '--help'], standalone_mode=False); "
        "print(sorted({'transformer_lens', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert done.stdout.endswith("[]\n"), done.stdout[-300:] + done.stderr


@pytest.mark.parametrize(
    ("command", "defaults"), [("edit", editing.EDIT_SCORERS), ("localize", localization.DEFAULT_SCORERS)]
)
def test_the_help_names_the_default_scorers(command, defaults):
    (option,) = (option for option in cli.commands[command].params if option.name == "scorers")
    assert option.help.endswith(f"[default: {' and '.join(defaults)}]")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["edt"], "No such command 'edt'"),
        (["edit", "FACT"], "Missing option '--out'"),
        (["edit", "--out", "OUT"], "Missing argument 'FACT'"),
        (["edit", "FACT", "--out", "OUT", "--top", "0"], "'--top'"),
        (["edit", "FACT", "--out", "OUT", "--top", "x"], "'--top'"),
        (["edit", "FACT", "--out", "OUT", "--seed", "-1"], "'--seed'"),
        (["edit", "FACT", "--out", "OUT", "--seed", str(2**64)], "'--seed': 18446744073709551616 is not in the range"),
        (["edit", "FACT", "--out", "OUT", "--model", ""], "'--model' / '-m': it is empty."),
        (["edit", "FACT", "--out", ""], "'--out' / '-o': it is empty."),
        (["edit", "", "--out", "OUT"], "'FACT': it is empty."),
        (["stack", "ADAPTER", "", "--out", "OUT"], "'ADAPTER...': it is empty."),
        (["ask", "hello", "--adapter", ""], "'--adapter': it is empty."),
        (["ask", "caf\udce9"], "the argument 'caf\\udce9' is not valid UTF-8."),
        (["edit", "FACT", "--out", "o\udce9"], "the argument 'o\\udce9' is not valid UTF-8."),
        (["edit", "FACT", "--out", "OUT", "--dtype", "int8"], "'int8' is not one of 'auto', 'float32'"),
        (["edit", "FACT", "--out", "OUT", "--top", "3", "--component", "L1.mlp"], "exclude each other"),
        (
            ["edit", "FACT", "--out", "OUT", "--budget", "9", "--component", "L1.mlp"],
            "--component and --budget exclude",
        ),
        (["edit", "FACT", "--out", "OUT", "--heads", "2", "--selection", "FACT"], "--selection and --heads exclude"),
        (["edit", "FACT", "--out", "OUT", "--mlps", "2", "--selection", "FACT"], "--selection and --mlps exclude"),
        (
            ["edit", "FACT", "--out", "OUT", "--component", "L1.mlp", "--selection", "FACT"],
            "--component and --selection exclude each other",
        ),
        (["edit", "FACT", "--out", "OUT", "--selection", "MISSING"], "missing.yaml cannot be read as a selection"),
        (["edit", "FACT", "--out", "OUT", "--selection", "FACT"], "fact.yaml cannot be read as a selection"),
        (["edit", "FACT", "--out", "OUT", "--selection", "MISSPELT"], "misspelt.json: 'L1.mpl' is not a component"),
        (["edit", "FACT", "--out", "OUT", "--budget", "9", "--granularity", "module"], "components share modules"),
        (["edit", "FACT", "--out", "OUT", "--budget", "0"], "'--budget'"),
        (["localize", "FACT", "--out", "OUT", "--heads", "0"], "'--heads'"),
        (["edit", "FACT", "--out", "OUT", "--component", "L1.mpl"], "L1.mpl"),
        (["edit", "FACT", "--out", "OUT", "--granularity", "neuron"], "go together"),
        (["edit", "FACT", "--out", "OUT", "--neurons", "5"], "go together"),
        (["edit", "FACT", "--out", "OUT", "--projection", "post", "--granularity", "module"], "exclude each other"),
        (["edit", "FACT", "--out", "OUT", "--projection", "z"], "L0.mlp needs one of the projections post"),
        (["edit", "FACT", "--out", "OUT", "--projection", "z", "--dry-run"], "L0.mlp needs one of the projections"),
        (
            ["edit", "FACT", "--out", "OUT", "--projection", "in", "--component", "L1.head.2"],
            "L1.head.2 needs one of the projections z, v, q, k; got in.",
        ),
        (["edit", "FACT", "--out", "OUT", "--projection", "pst"], "'pst' is not one of 'z', 'v'"),
        (["edit", "FACT", "--out", "OUT", "--scorer", "nope"], "there is no scorer 'nope'; installed are"),
        (["edit", "FACT", "--out", "OUT", "--scorer", "random:x=1"], "no option 'x'"),
        (["edit", "FACT", "--out", "OUT", "--scorer", "random", "--scorer", "nope"], "there is no scorer 'nope'"),
        (["edit", "FACT", "--out", "OUT", "--device", "nonsense"], "the device 'nonsense' cannot be used"),
        (["ask", "hello", "--device", "hpu"], "the device 'hpu' cannot be used: No module named 'torch.hpu'."),
        (["ask", "hello", "--device", "meta"], "the device 'meta' cannot be used: it holds shapes, and no weights."),
        (["localize", "FACT", "--out", "OUT", "--scorer", "nope"], "there is no scorer 'nope'"),
        (["edit", "MISSING", "--out", "OUT"], "missing.yaml: cannot be read"),
        (["edit", "BROKEN", "--out", "OUT"], "is not valid YAML"),
        (["edit", "KEY", "--out", "OUT"], "unknown key 'helt_out'"),
        (["localize", "KEY", "--out", "OUT"], "unknown key 'helt_out'"),
        (["evaluate", "KEY", "--out", "OUT"], "unknown key 'helt_out'"),
        (["edit", "FACT", "--out", "FULL"], "is not empty; name another one or give --overwrite."),
        (["localize", "FACT", "--out", "FULL"], "is not empty"),
        (["evaluate", "FACT", "--out", "FULL"], "is not empty"),
        (["stack", "ADAPTER", "--out", "FULL"], "is not empty"),
        (["merge", "ADAPTER", "--out", "FULL"], "is not empty"),
        (["edit", "FACT", "--out", "FACT"], "is a file; name a folder"),
        (["evaluate", "FACT", "--out", "OUT", "--adapter", "NOWHERE"], "there is no adapter folder"),
        (["evaluate", "FACT", "--out", "OUT", "--adapter", "PLAIN", "--adapter", "PLAIN"], "is given twice; it would"),
        (["evaluate", "FACT", "--out", "OUT", "--adapter", "FULL"], "it has no adapter_config.json"),
        (["evaluate", "FACT", "--out", "OUT", "--relearn", "0"], "0 is not in the range x>=1"),
        (["stack", "NOWHERE", "--out", "OUT"], "there is no adapter folder"),
        (["merge", "NOWHERE", "--out", "OUT"], "there is no adapter folder"),
        (["stack", "--out", "OUT"], "Missing argument 'ADAPTER...'"),
        (["ask"], "Missing argument 'PROMPT...'"),
        (["ask", "hello", " "], "a prompt is empty"),
        (["ask", "hello", "--dial", "0.5"], "name one with --adapter"),
        (["ask", "hello", "--adapter", "FULL", "--dial", "nan"], "not a finite number"),
        (["ask", "hello", "--adapter", "FULL", "--dial", "1.6"], "1.6 is not in the range 0<=x<=1.5"),
        (["ask", "hello", "--adapter", "FULL", "--dial", "-1"], "not in the range 0<=x<=1.5"),
        (["stack", "ADAPTER", "--out", "OUT", "--dial", "inf"], "not in the range 0<=x<=1.5"),
        (["stack", "ADAPTER", "--out", "OUT", "--dial", "nan"], "nan is not a finite number"),
        (
            ["stack", "ADAPTER", "PLAIN", "--out", "OUT", "--dial", "1"],
            "--dial turns one adapter; stack several first",
        ),
        (["new", "who wrote hamlet ?", "--new", " ", "--out", "OUT"], "an answer is empty"),
        (["ask", "hello", "--adapter", "NOWHERE"], "there is no adapter folder"),
    ],
)
@pytest.mark.usefixtures("no_model")
def test_mistakes_are_told_before_a_model_is_loaded(arguments, expected, tmp_path, fact_file):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("do not lose")
    (tmp_path / "broken.yaml").write_text("subject: [a")
    (tmp_path / "misspelt.json").write_text('{"components": ["L1.mpl"]}')
    (tmp_path / "key.yaml").write_text(fact_file.read_text().replace("held_out", "helt_out"))
    (tmp_path / "adapter").mkdir()
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "adapter_config.json").write_text('{"peft_type": "IA3"}')
    (tmp_path / "plain" / "adapter_model.safetensors").touch()
    before = written(tmp_path)
    places = {
        "FACT": fact_file,
        "OUT": tmp_path / "out",
        "FULL": tmp_path / "full",
        "MISSING": tmp_path / "missing.yaml",
        "BROKEN": tmp_path / "broken.yaml",
        "MISSPELT": tmp_path / "misspelt.json",
        "KEY": tmp_path / "key.yaml",
        "NOWHERE": tmp_path / "nowhere",
        "ADAPTER": tmp_path / "adapter",
        "PLAIN": tmp_path / "plain",
    }
    line = said(run(*[places.get(argument, argument) for argument in arguments]), 2)
    assert expected in line
    assert written(tmp_path) == before
    assert written(tmp_path / "full") == ["thesis.txt"]


@pytest.mark.usefixtures("no_model")
def test_the_home_folder_is_meant_wherever_a_path_is_given(tmp_path, fact_file, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("do not lose")
    plan = json.loads(run("edit", "~/fact.yaml", "--out=~/out", "--dry-run", "--json").stdout)
    assert plan["out"] == str(tmp_path / "out")
    assert f"folder {tmp_path / 'full'} is not empty" in said(run("edit", fact_file, "--out", "~/full"), 2)
    for command in (["stack", "~/none", "--out", "~/out"], ["ask", "hello", "--adapter=~/none"]):
        assert said(run(*command), 2) == f"Error: there is no adapter folder {tmp_path / 'none'}."
    assert written(tmp_path) == ["fact.yaml", "full"]


@pytest.mark.usefixtures("no_model")
def test_what_torch_says_of_a_device_is_cut_at_its_first_sentence(monkeypatch):
    def refuse(*_, device):
        raise NotImplementedError("Could not run 'a.b' with the 'MPS' backend. This could be because\nof much.")

    monkeypatch.setattr("torch.empty", refuse)
    line = said(run("ask", "hello", "--device", "mps"), 2)
    assert line == "Error: the device 'mps' cannot be used: Could not run 'a.b' with the 'MPS' backend."


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_closed_stream_gets_nothing(stream, monkeypatch):
    monkeypatch.setattr(sys, stream, None)
    print_result("text", as_json=stream == "stderr")
    print_json({})
    note("text", quiet=False)


@pytest.fixture
def no_scores(monkeypatch):
    """Localizing is an error: the command must not have come so far."""

    def localize(*_, **__):
        raise AssertionError("a fact was localized")

    monkeypatch.setattr(ps, "localize", localize)
    monkeypatch.setattr(editing, "localize", localize)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--component", "L9.mlp"], "the model has 3 layers (L0 to L2); L9.mlp is not one of them."),
        (["--component", "L1.head.7"], "L1.head.7"),
        (["--top", "16"], "the model has 15 components"),
        (
            ["--granularity", "neuron", "--neurons", "500"],
            "an MLP of the model has 48 neurons, so --neurons can be 48 at most, not 500.",
        ),
        (["--projection", "in", "--projection", "post", "--mlps", "1", "--budget", "79"], "an MLP takes 80 scales"),
        (["--granularity", "neuron", "--neurons", "5", "--mlps", "1", "--budget", "9"], "an MLP takes 10 scales"),
    ],
)
@pytest.mark.usefixtures("no_scores")
def test_a_model_too_small(arguments, expected, tmp_path, fact_file, model_folder):
    command = ["edit", fact_file, "--model", model_folder, "--out", tmp_path / "out", *arguments]
    assert expected in said(run(*command), 2)
    assert written(tmp_path) == ["fact.yaml"]


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        (["--top", "16"], "(4 heads and an MLP in each of 3 layers), so --top can be 15 at most, not 16."),
        (["--heads", "13"], "the model has 12 heads (4 in each of 3 layers), so --heads can be 12 at most, not 13."),
        (["--mlps", "500"], "the model has 3 MLPs (one in each of 3 layers), so --mlps can be 3 at most, not 500."),
        (["--budget", "7"], "no component fits --budget 7: a head takes 8 and an MLP takes 32 scales here."),
        (
            ["--top", "1", "--budget", "7"],
            "no component fits --top 1, --budget 7: a head takes 8 and an MLP takes 32 scales",
        ),
        (["--mlps", "1", "--budget", "31"], "no component fits --mlps 1, --budget 31: an MLP takes 32 scales"),
    ],
)
@pytest.mark.parametrize("command", ["localize", "edit"])
@pytest.mark.usefixtures("no_scores")
def test_limits_that_no_score_could_meet(command, limits, expected, tmp_path, fact_file, model_folder):
    given = [fact_file, "--model", model_folder, "--out", tmp_path / "out", *limits]
    assert expected in said(run(command, *given), 2)
    assert written(tmp_path) == ["fact.yaml"]


def test_a_selection_of_another_model(tmp_path, fact_file, model_folder):
    shape = replace(ps.ModelShape.from_config(planted().config), n_layers=2)
    ps.Selection(("L1.mlp",), shape).save(tmp_path / "selection.json")
    command = ["edit", fact_file, "--model", model_folder, "--selection", tmp_path / "selection.json"]
    line = said(run(*command, "--out", tmp_path / "out"), 2)
    assert "the selection was made on another model (n_layers 2, not 3)" in line
    assert not (tmp_path / "out").exists()


def test_an_unknown_model(tmp_path, fact_file):
    for name in ("nobody/nothing", tmp_path / "nothing.gguf", tmp_path):
        line = said(run("edit", fact_file, "--model", name, "--out", tmp_path / "out"), 2)
        assert str(name) in line
    assert written(tmp_path) == ["fact.yaml"]


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (ps.FactError("no token tells\nthem apart."), 2, "Error: no token tells them apart."),
        (ps.FactError("a stranger's \x1b[31mfile."), 2, "Error: a stranger's \ufffd[31mfile."),
        (PermissionError(errno.EACCES, "Permission denied", "x"), 2, "Error: cannot read or write x: Permission"),
        (OSError(errno.ENOSPC, "No space left on device", "x"), 2, "Error: cannot read or write x: No space left on"),
        (MemoryError(), 2, "Error: there is not enough"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 2, "Error: there is not enough"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB."), 2, "Error: there is not enough"),
        (RuntimeError(5), 1, "Error: internal: RuntimeError: 5"),
        (ZeroDivisionError("division by zero"), 1, "Error: internal: ZeroDivisionError: division by zero"),
        (OSError(errno.EIO, "Input/output error"), 1, "Error: internal: OSError"),
    ],
)
@pytest.mark.usefixtures("fake_model")
def test_failures_of_the_library(error, status, line, monkeypatch, tmp_path, fact_file):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(ps, "edit", fail)
    command = ["edit", fact_file, "--out", tmp_path / "out"]
    assert said(run(*command), status).startswith(line)
    for result in (
        run(*command, "--debug"),
        run("--debug", *command),
        run(*command, env={"PEFT_SURGICAL_DEBUG": "1"}),
    ):
        assert result.exit_code == status
        assert "Traceback" in result.stderr
        assert result.stderr.splitlines()[-1].startswith(line)


@pytest.mark.usefixtures("fake_model")
def test_ctrl_c_says_how_to_go_on(monkeypatch, tmp_path, fact_file):
    out, told = tmp_path / "out", []
    for begun in (False, True):

        def interrupt(*args, begun=begun, **kwargs):
            if begun:
                out.mkdir()
                (out / "localization.json").write_text("{}")
            raise KeyboardInterrupt

        monkeypatch.setattr(ps, "edit", interrupt)
        result = run("edit", fact_file, "--out", out, "--quiet")
        assert result.exit_code == 130
        told += result.stderr.splitlines()
    assert told == [
        "Interrupted. Nothing is half written; run the command again.",
        f"Interrupted. {out} holds what is complete, or what it held before; run the command again with --overwrite"
        " to start over.",
    ]


def test_scorers():
    listed = {item["name"]: item for item in json.loads(run("scorers", "--json").stdout)}
    assert listed["logit_drop"]["distribution"] == "peft-surgical"
    assert listed["logit_drop"]["options"]["measure"] == "difference"
    text = run("scorers").stdout
    assert all(name in text for name in listed)
