"""Commands that are killed at every stage, and run again.

The command runs in a process of its own, which kills itself with SIGKILL just before a file takes its place: a half
written one lies beside it, and nothing can be tidied up. What is in the folder is whole, a second run says in one line
that it is not empty, and one with `--overwrite` makes all of it and leaves nothing of the first. What writes a single
file or folder, at its end, has written nothing yet and is simply run again.
"""

import os
import signal
from pathlib import Path

import pytest
from peft import get_peft_model

import peft_surgical as ps
from peft_surgical.adapters.saving import save_adapter
from peft_surgical.edit_folder import EVALUATION

from .adapters import perturb
from .command_line import PROMPT, run, said, written
from .launching import PROCESSES
from .localizing import planted
from .outputs import WRITTEN, complete, leftovers


def edit_and_die(arguments, path, number):
    """In a process of its own: runs the command, and gets a signal when `path` is about to be there."""
    # A test run in the background ignores Ctrl-C, and its processes with it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in ("replace", "rename"):
        original = getattr(os, name)

        def moving(source, target, original=original):
            if Path(target) == path:
                os.kill(os.getpid(), number)
            original(source, target)

        setattr(os, name, moving)
    raise SystemExit(run(*arguments).exit_code)


@pytest.fixture
def arguments(fact_file, model_folder, tmp_path):
    options = ["--steps", 1, "--scorer", "logit_drop", "--top", 2, "--retention-tokens", 64, "--quiet"]
    return ["edit", fact_file, "--model", model_folder, "--out", tmp_path / "out", *options]


def ended(arguments, path, number):
    process = PROCESSES.Process(target=edit_and_die, args=(arguments, path, number))
    process.start()
    process.join()
    return process.exitcode


def test_killed_at_every_stage_and_run_again(arguments, tmp_path):
    out = tmp_path / "out"
    again = []
    for number, name in enumerate(WRITTEN):
        assert ended([*arguments, *again], out / name, signal.SIGKILL) == -signal.SIGKILL
        assert set(complete(out)) == set(WRITTEN[:number])
        # Of this run alone: what the one before it left is gone, but for what it was to replace and did not.
        kept = number if name not in EVALUATION else 0
        left = [".out." if kept else f".{name}.", *[".replaced."] * kept]
        assert [own.startswith(begin) for own, begin in zip(leftovers(out), left, strict=True)] == [True] * len(left)
        earlier = sorted(map(complete, out.glob(".replaced.*")), key=len)
        assert [set(one) for one in earlier] == [set(WRITTEN[:size]) for size in range(kept)]
        before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
        assert "give --overwrite" in said(run(*arguments), 2)
        assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
        again = ["--overwrite"]
    assert run(*arguments, *again).exit_code == 0
    assert set(complete(out)) == set(WRITTEN)
    assert leftovers(tmp_path) == []


PICTURED = ["localization.json", "localization.png"]


@pytest.mark.parametrize("command", ["localize", "evaluate"])
def test_killed_between_two_files(command, fact_file, model_folder, tmp_path):
    out, where = tmp_path / "out", ["--model", model_folder, "--out", tmp_path / "out", "--quiet"]
    arguments, files = {
        "localize": (["localize", fact_file, *where, "--scorer", "logit_drop", "--top", 2], PICTURED),
        "evaluate": (["evaluate", fact_file, *where, "--retention-tokens", 0], ["report.json", "report.html"]),
    }[command]
    assert ended(arguments, out / files[1], signal.SIGKILL) == -signal.SIGKILL
    assert complete(out) == [files[0]]
    assert "give --overwrite" in said(run(*arguments), 2)
    assert run(*arguments, "--overwrite").exit_code == 0
    assert complete(out) == sorted(files)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("command", ["stack", "merge", "new"])
def test_killed_before_the_only_output_is_there(command, model_folder, tmp_path):
    out, adapter = tmp_path / "out", tmp_path / "adapter"
    model = get_peft_model(planted(), ps.SurgicalIA3Config(components=["L1.head.2", "L2.mlp"]))
    perturb(model)
    save_adapter(model, "default", adapter)
    arguments = {
        "stack": ["stack", adapter, "--out", out],
        "merge": ["merge", adapter, "--model", model_folder, "--out", out],
        "new": ["new", PROMPT, "--new", "lyon", "--model", model_folder, "--out", out, "--count", 4],
    }[command]
    assert ended(arguments, out, signal.SIGKILL) == -signal.SIGKILL
    assert len(leftovers(tmp_path)) == 1
    assert written(tmp_path) == [*leftovers(tmp_path), "adapter"]
    [left] = (tmp_path / name for name in leftovers(tmp_path))
    os.utime(left, (0, 0))
    assert run(*arguments).exit_code == 0
    # A folder may be as large as a model; half a fact file is small, and its owner may want what is in it.
    assert leftovers(tmp_path) == ([left.name] if command == "new" else [])
    assert written(tmp_path) == [*leftovers(tmp_path), "adapter", "out"]


def test_interrupted_while_a_file_is_written(arguments, tmp_path):
    out = tmp_path / "out"
    assert ended(arguments, out / "learn", signal.SIGINT) == 130
    assert set(complete(out)) == set(WRITTEN[: WRITTEN.index("learn")])
    assert leftovers(tmp_path) == []
