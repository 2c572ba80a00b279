"""What several processes of one command say: once what all of them would, and what one alone has to say."""

import os
from contextlib import contextmanager
from unittest import mock

import click
import pytest
import yaml
from accelerate import PartialState
from torch import distributed

import peft_surgical as ps
from peft_surgical.cli import loading
from peft_surgical.cli.launch import launched, sharded
from peft_surgical.cli.options import Source
from peft_surgical.cli.processes import SILENT, is_other
from peft_surgical.errors import ModelError
from peft_surgical.running.sharing import processes

from .command_line import run, said
from .launching import launch_forked

SHARED = """
from accelerate import PartialState
from peft_surgical.errors import OutputError, told_by_first
from peft_surgical.running.alike import check_alike
from peft_surgical.running.sharing import by_all, by_main, shared_work

rank = PartialState(cpu=True).process_index

def told(share, *given):
    try:
        share(*given)
    except ValueError as error:
        return told_by_first(error)

def fail(message="all alike"):
    raise ValueError(message)

def fail_alone():
    if rank == 1:
        fail()
    return rank

with shared_work():
    assert told(by_main, fail) is (rank == 1)
    assert told(by_all, fail) is (rank == 1)
    assert told(by_all, lambda: fail(f"of {rank}")) is False
    assert told(by_all, fail_alone) is (None, False)[rank]
    assert by_all(lambda: rank) == rank
    assert told(lambda: check_alike(seed=rank)) is (rank == 1)
assert told(by_all, fail) is None
print("done")
"""

ALONE = """
import sys
from accelerate import PartialState
import peft_surgical.staging.training as training
from peft_surgical.cli import main

def fail(*_):
    raise ValueError("of one alone")

plain = training._backward
training._backward = lambda *given: fail() if PartialState().process_index == 1 else plain(*given)
main()
"""


def errors(result):
    return [line for line in result.stderr.splitlines() if line.startswith("Error: ")]


def test_an_error_of_all_is_left_to_the_first(tmp_path):
    script = tmp_path / "shared.py"
    script.write_text(SHARED)
    result = launch_forked(script)
    assert result.stdout.count("done") == 2, result.stderr[-3000:]


def test_what_keeps_all_processes_from_loading_is_said_once(tmp_path, fact_file):
    command = ["-m", "peft_surgical.cli", "edit", fact_file, "--model", tmp_path / "none", "--out", tmp_path / "out"]
    result = launch_forked(*command)
    [line] = errors(result)
    assert "none" in line
    # They end alike, if the one that takes longer gets to it.
    assert sorted(result.returncodes) in ([2, 2], [-15, 2])


def test_what_one_process_alone_has_to_say_is_said(tmp_path, fact_file, model_folder):
    script = tmp_path / "alone.py"
    script.write_text(ALONE)
    result = launch_forked(
        script, "edit", fact_file, "--model", model_folder, "--scorer", "random", "--out", tmp_path / "out"
    )
    assert [line for line in errors(result) if "of one alone" in line]
    assert len(errors(result)) <= 2


@pytest.mark.parametrize(
    ("rank", "on_this_machine", "says"), [(0, 0, True), (1, 1, False), (2, 0, True), (1, None, False)]
)
def test_before_they_are_joined_the_first_of_a_machine_says_what_is_wrong(rank, on_this_machine, says, monkeypatch):
    for name, value in {"WORLD_SIZE": 4, "RANK": rank, "LOCAL_RANK": on_this_machine}.items():
        if value is not None:
            monkeypatch.setenv(name, str(value))
    for command in (["edit"], ["edit", "nowhere.yaml", "--out", "out"], ["merge", "x"]):
        result = run(*command)
        assert (result.exit_code, bool(errors(result))) == (2, says)
        assert says or not result.output


def test_warnings_are_the_first_process_s(monkeypatch, tmp_path, fact_file):
    fact = yaml.safe_load(fact_file.read_text()) | {"subject": "Atlantis"}
    (tmp_path / "fact.yaml").write_text(yaml.safe_dump(fact))
    monkeypatch.setenv("WORLD_SIZE", "2")
    told = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        told.append(run("edit", tmp_path / "fact.yaml", "--dry-run", "--out", tmp_path / "out").stderr)
    assert told[0].startswith("Warning: ")
    assert told[1] == ""


@pytest.mark.parametrize("silent", [False, True])
def test_that_code_is_trusted_is_said_by_the_first(silent, monkeypatch, capsys):
    monkeypatch.setattr(ps, "load_model", lambda *_, **__: (None, None))
    with click.Context(click.Command("edit")) as context:
        context.meta[SILENT] = silent
        loading.load(Source("./own", "auto", None, trust_remote_code=True), quiet=True)
    # Whether there is any is not known yet.
    says = "Code that comes with ./own may run, as --trust-remote-code says."
    assert (says in capsys.readouterr().err) is not silent


@pytest.mark.parametrize(("size", "other"), [("", False), ("1", False), ("x", False), ("2", True)])
def test_one_process_is_no_other(size, other, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", size)
    monkeypatch.setenv("RANK", "1")
    assert is_other() is other


def test_an_interrupt_is_told_of_by_the_first(monkeypatch, fact_file, tmp_path):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("peft_surgical.cli.checks.edit_folder", interrupted)
    told = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        result = run("edit", fact_file, "--out", tmp_path / "out")
        assert result.exit_code == 130
        told.append(result.stderr)
    assert told[0].startswith("Interrupted.")
    assert told[1] == ""


GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:9401."
ENDED = r"another of the processes has ended \(interrupted, killed or failed\)"


@pytest.mark.parametrize(
    ("error", "told", "message"),
    [
        (RuntimeError(GLOO), ModelError, ENDED),
        (distributed.DistBackendError("NCCL error"), ModelError, ENDED),
        (RuntimeError("shapes differ"), RuntimeError, "^shapes differ$"),
    ],
)
def test_one_of_several_that_fails_is_not_taken_for_a_fault_of_the_others(error, told, message, monkeypatch):
    monkeypatch.setattr(PartialState, "_shared_state", {})
    monkeypatch.setattr("peft_surgical.cli.launch._several", lambda: True)
    left = []
    monkeypatch.setattr(PartialState, "destroy_process_group", lambda self: left.append(self))
    with pytest.raises(told, match=message), launched(source("cpu")):
        raise error
    assert len(left) == 1


def test_what_a_command_holds_is_told_of_its_failure():
    """Else the one that failed waits for the others before it ends."""
    seen = []

    @contextmanager
    def held():
        try:
            yield
        except ValueError as error:
            seen.append(error)
            raise

    def fail():
        click.get_current_context().with_resource(held())
        raise ValueError("of the command")

    command = click.Command("edit", callback=fail)
    with pytest.raises(ValueError, match="of the command"):
        command.main([], standalone_mode=False)
    assert len(seen) == 1


@pytest.mark.parametrize(
    "command", ["new", "scorers", "localize", "trace", "edit-all", "learn", "stack", "merge", "evaluate", "ask"]
)
def test_commands_that_share_nothing_refuse_several_processes(command, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert f"`{command}` runs in one process, and WORLD_SIZE names 2" in said(run(command, "x"), 2)


@pytest.mark.parametrize("command", ["edit", "edit-keyed"])
def test_one_process_tells_what_would_be_done(command, monkeypatch, tmp_path, fact_file):
    monkeypatch.setenv("WORLD_SIZE", "2")
    told = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        told.append(run(command, fact_file, "--dry-run", "--out", tmp_path / "out").stdout)
    assert "Would edit" in told[0]
    assert not told[1]


def source(device):
    return Source("demo", "auto", device, trust_remote_code=False)


@pytest.mark.parametrize("device", [None, "cuda:1", "auto"])
def test_one_process_has_nothing_to_join(device):
    with launched(source(device)) as found:
        assert found == source(device)
        assert processes() == 1


@pytest.mark.parametrize(
    ("given", "told"), [("2", "names 2 processes, and they cannot be joined"), ("abc", "no number")]
)
def test_processes_that_no_launcher_started_are_told_of(monkeypatch, given, told):
    # A test before this one may have joined a single process, and accelerate writes into the environment.
    monkeypatch.setattr(PartialState, "_shared_state", {})
    with mock.patch.dict(os.environ, {"WORLD_SIZE": given}):
        for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
            os.environ.pop(name, None)
        with pytest.raises(ModelError, match=told), launched(source("cpu")):
            pass
    assert PartialState._shared_state == {}


@pytest.mark.parametrize("command", [["edit"], ["edit-keyed"]])
def test_a_dry_run_refuses_what_is_no_number_of_processes(command, monkeypatch, tmp_path, fact_file, no_model):
    monkeypatch.setenv("WORLD_SIZE", "two")
    assert "is 'two', no number of" in said(run(*command, fact_file, "--dry-run", "--out", tmp_path / "out"), 2)


@pytest.mark.parametrize(
    ("flag", "spread"), [("true", True), ("1", True), ("YES", True), ("false", False), ("0", False), ("", False)]
)
def test_a_launcher_says_whether_the_model_is_spread(flag, spread, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", flag)
    assert not sharded()
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert sharded() is spread


def test_no_number_of_processes_is_one(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "")
    with launched(source("cpu")) as found:
        assert found == source("cpu")


def test_a_model_is_not_spread_by_every_process(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with (
        pytest.raises(ModelError, match="spreads one model over all devices, so start one process"),
        launched(source("auto")),
    ):
        pass
