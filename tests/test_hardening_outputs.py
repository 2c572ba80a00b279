"""Outputs that cannot be written, or are written by two runs at once.

| Situation | What comes of it |
|---|---|
| the disk is full, or files may not grow that large | refused; what is there, to be replaced or not, is whole |
| the output, its parent, or the file system cannot be written | refused before a model is loaded |
| two runs into one folder at once | one finishes, the other is refused: at once where it would take long to notice |
| a run into a folder that another run has filled meanwhile | refused |
| an output file that is there and is no file: a pipe, a link to nothing | refused, with `--overwrite` too |
| an output folder that is, or holds, an adapter or the model that is read | refused, with `--overwrite` too |
| an output folder of `stack` or `merge` that holds something else than they write | refused, with `--overwrite` too |
| an output folder that holds somebody else's file by the name of a report or localization | as above |
| Ctrl-C | exit status 130; what is there is whole; says what that is and how to go on; running again works |

Refused is one line on standard error and exit status 2.
"""

import errno
import os
import shutil
import subprocess
import threading
from importlib import import_module
from pathlib import Path

import pytest
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM

import peft_surgical as ps
from peft_surgical import editing
from peft_surgical.drafting.drafts import FactDraft
from peft_surgical.errors import OutputError
from peft_surgical.staging import retain
from peft_surgical.writing.claims import claimed
from peft_surgical.writing.files import atomic_directory

from .command_line import PROMPT, run, said, written
from .localizing import capital, planted, word_tokenizer
from .outputs import WRITTEN, complete, contents, largest_file, leftovers

QUICKLY = ["--steps", 1, "--scorer", "logit_drop", "--top", 2, "--retention-tokens", 64, "--quiet"]


def edit(fact_file, model_folder, out, *options):
    return run("edit", fact_file, "--model", model_folder, "--out", out, *QUICKLY, *options)


@pytest.fixture(scope="module")
def edited(tmp_path_factory, model_folder, fact_text):
    """The folder of a whole edit."""
    root = tmp_path_factory.mktemp("edited")
    (root / "fact.yaml").write_text(fact_text)
    assert edit(root / "fact.yaml", model_folder, root / "out").exit_code == 0
    assert set(complete(root / "out")) == set(WRITTEN)
    return root / "out"


def commands(edited, fact_file, model_folder, out):
    where = ["--model", model_folder, "--out", out, "--quiet"]
    return {
        "localize": ["localize", fact_file, *where, "--scorer", "logit_drop", "--top", 2],
        "trace": ["trace", fact_file, *where],
        "edit": ["edit", fact_file, "--model", model_folder, "--out", out, *QUICKLY],
        "stack": ["stack", edited / "unlearn", edited / "learn", "--out", out],
        "merge": ["merge", edited / "unlearn", edited / "learn", *where],
        "evaluate": ["evaluate", fact_file, *where, "--retention-tokens", 0],
        "new": ["new", PROMPT, "--new", "lyon", *where, "--count", 4],
    }


COMMANDS = ("localize", "trace", "edit", "stack", "merge", "evaluate", "new")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_that_may_not_grow(command, edited, fact_file, model_folder, tmp_path):
    arguments = commands(edited, fact_file, model_folder, tmp_path / "out")[command]
    with largest_file(200):
        line = said(run(*arguments), 2)
    assert line == f"Error: cannot write {line.split('cannot write ')[1].split(':')[0]}: File too large."
    assert written(tmp_path) == ["fact.yaml"]


@pytest.mark.parametrize("command", ["localize", "trace", "evaluate", "learn", "keyed"])
def test_a_full_disk_leaves_what_was_to_be_replaced(command, edited, fact_file, model_folder, tmp_path, monkeypatch):
    out = tmp_path / "out"
    if command in ("learn", "keyed"):
        some = retain.everyday_prompts()[:5]
        monkeypatch.setattr(retain, "everyday_prompts", lambda: some)
        monkeypatch.setattr(retain, "general_prompts", lambda: some)
        sentence = ["learn", "the capital of france is", "--new", "lyon", "--subject", "france", "--quiet"]
        arguments = [*sentence, "--model", model_folder, "--out", out, *(["--keyed"] if command == "keyed" else [])]
    else:
        arguments = commands(edited, fact_file, model_folder, out)[command]
    assert run(*arguments).exit_code == 0
    before = contents(out)
    # Others of its files may be written.
    with largest_file(max(map(len, before.values())) * 3 // 4):
        result = run(*arguments, "--overwrite")
    assert contents(out) == before
    assert said(result, 2) == f"Error: cannot write {out}: File too large."
    assert leftovers(tmp_path) == []


@pytest.fixture
def small_disk(tmp_path):
    """Mounts a disk of so many bytes; its root must be allowed to."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = []

    def mount(size):
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("this user may not mount a small disk")
        mounted.append(disk)
        return disk

    def unmount():
        while mounted:
            # Lazily: something that looks through all mounts, as a file indexer does, would keep it busy.
            subprocess.run(["umount", "-l", str(mounted.pop())], check=True, capture_output=True)

    mount.again = lambda size: (unmount(), mount(size))[1]
    yield mount
    unmount()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_disk_that_is_mounted_read_only(command, small_disk, edited, fact_file, model_folder, monkeypatch):
    disk = small_disk(4096)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True, capture_output=True)
    monkeypatch.setattr(ps, "load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    for place in (disk / "out", disk / "deep" / "out"):
        line = said(run(*commands(edited, fact_file, model_folder, place)[command]), 2)
        assert line == f"Error: cannot write {place}: {disk} is not writable."


def test_a_disk_that_is_full(small_disk, fact_file, model_folder):
    reached = set()
    for pages in (1, 14, 22, 30):
        disk = small_disk.again(pages * 4096)
        result = edit(fact_file, model_folder, disk / "out")
        names = complete(disk / "out")
        assert leftovers(disk) == []
        reached.add(len(names))
        if len(names) < len(WRITTEN):
            assert "No space left on device." in said(result, 2)
    assert len(reached) >= 3


FULL = [
    OSError(errno.ENOSPC, "No space left on device"),
    SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
]


@pytest.mark.parametrize("error", FULL, ids=["Python", "safetensors"])
def test_a_folder_on_a_full_disk(error, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("1")

    def fill():
        with atomic_directory(tmp_path / "out", overwrite=True) as folder:
            (folder / "half").write_text("x")
            raise error

    with pytest.raises(OutputError, match=r"^cannot write .*out: No space left on device\.$"):
        fill()
    assert written(tmp_path) == ["out"]
    assert written(tmp_path / "out") == ["old"]


@pytest.mark.parametrize("command", COMMANDS)
def test_where_nothing_can_be_written(command, edited, fact_file, model_folder, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    places = {"file": "the file" if command == "new" else "is a file", "file/out": "is a file"}
    if Path("/proc/self").exists():
        places["/proc/nowhere/out"] = "cannot write /proc/nowhere/out"
    for place, words in places.items():
        line = said(run(*commands(edited, fact_file, model_folder, tmp_path / place)[command]), 2)
        assert words in line
    # As on a file system that is mounted read-only, where not even root may write.
    monkeypatch.setattr(os, "access", lambda path, mode, **_: mode != os.W_OK)
    line = said(run(*commands(edited, fact_file, model_folder, tmp_path / "out")[command]), 2)
    assert line.endswith(f"{tmp_path} is not writable.")
    assert written(tmp_path) == ["fact.yaml", "file"]
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("name", ["pipe", "dangling", "loop"])
@pytest.mark.usefixtures("no_model")
def test_what_is_no_file_is_not_replaced_by_one(name, tmp_path):
    path = tmp_path / name
    {"pipe": os.mkfifo, "dangling": lambda p: p.symlink_to("nowhere"), "loop": lambda p: p.symlink_to(p)}[name](path)

    def found():
        # Looking through a link may count as reading it, so when it was read does not count.
        status = path.lstat()
        return status.st_ino, status.st_mode, status.st_mtime_ns

    before = found()
    for overwrite in ([], ["--overwrite"]):
        line = said(run("new", PROMPT, "--new", "lyon", "--out", path, *overwrite), 2)
        assert line == f"Error: the output {path} is there and is no regular file; name another one."
        with pytest.raises(OutputError, match="is no regular file"):
            FactDraft(capital()).save(path, overwrite=bool(overwrite))
    assert found() == before


def test_what_is_read_is_not_replaced(edited, model_folder, tmp_path, monkeypatch):
    out, model = tmp_path / "out", shutil.copytree(model_folder, tmp_path / "models" / "tiny")
    shutil.copytree(edited, out)
    (tmp_path / "link").symlink_to(out)
    stages = [out / "unlearn", out / "learn"]
    before = sorted(tmp_path.rglob("*"))
    for place in (out, tmp_path / "link", out / "learn"):
        for command in (["stack", *stages], ["merge", *stages, "--model", model_folder]):
            line = said(run(*command, "--out", place, "--overwrite"), 2)
            assert f"the output {place} would replace {out}" in line
    for place in (model, model.parent):
        line = said(run("merge", *stages, "--model", model, "--out", place, "--overwrite"), 2)
        assert line == f"Error: the output {place} would replace {model}, which is read for it; name another folder."
        with pytest.raises(OutputError, match="which is read for it"):
            ps.merge(ps.load_model(model)[0], [ps.product(stages)], place, overwrite=True)
    monkeypatch.chdir(tmp_path)
    for name in ("models/tiny", "./models/tiny/"):
        # By a relative path, which transformers takes down as it is.
        model_here = AutoModelForCausalLM.from_pretrained(name)
        with pytest.raises(OutputError, match="which is read for it"):
            ps.merge(model_here, [ps.product(stages)], "models/tiny", overwrite=True)
    # A shell leaves the home folder's sign alone in `--model=~/models/tiny`.
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    model_here.name_or_path = "~/models/tiny"
    with pytest.raises(OutputError, match="would replace ~/models/tiny, which is read for it"):
        ps.merge(model_here, [ps.product(stages)], model, overwrite=True)
    assert sorted(tmp_path.rglob("*")) == before
    # Beside them there is room.
    assert run("stack", *stages, "--out", out / "edit", "--overwrite").exit_code == 0


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(("command", "content"), [("stack", "adapter"), ("merge", "checkpoint")])
def test_what_holds_something_else_is_not_replaced(command, content, edited, fact_file, model_folder, tmp_path):
    # An edit's folder, in which an adapter is one of several things.
    out = shutil.copytree(edited, tmp_path / "out")
    before = sorted(out.rglob("*"))
    line = said(run(*commands(edited, fact_file, model_folder, out)[command], "--overwrite"), 2)
    assert line == f"Error: {out} holds no {content}, so it is not replaced; name another output folder."
    assert sorted(out.rglob("*")) == before


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("command", "name", "beside"),
    [("localize", "localization.json", "localization.png"), ("evaluate", "report.json", "report.html")],
)
def test_a_file_of_somebody_else_s_is_not_replaced(command, name, beside, edited, fact_file, model_folder, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for file in (name, beside):
        (out / file).write_text('{"mine": 1}')
    line = said(run(*commands(edited, fact_file, model_folder, out)[command], "--overwrite"), 2)
    kind = name.removesuffix(".json")
    assert line == f"Error: {out / name} is no {kind} of an edit, so it is not replaced; name another output folder."
    assert {file: (out / file).read_text() for file in written(out)} == dict.fromkeys((name, beside), '{"mine": 1}')


# Two at once


@pytest.mark.parametrize("command", ["localize", "trace", "edit", "evaluate"])
def test_a_folder_that_another_run_is_writing_to(command, edited, fact_file, model_folder, tmp_path):
    out = tmp_path / "out"
    arguments = commands(edited, fact_file, model_folder, out)[command]
    with claimed(out):
        for options in ([], ["--overwrite"]):
            line = said(run(*arguments, *options), 2)
            assert line == f"Error: another run is writing to {out}; wait for it or name another folder."
        assert written(out) == []
    # The folder that was made for nothing is gone; a run after that one finds nothing in its way.
    assert written(tmp_path) == ["fact.yaml"]
    assert run(*arguments).exit_code == 0


def test_two_edits_at_once(tmp_path):
    results = []
    start = threading.Barrier(2)

    def one():
        model = planted()
        start.wait()
        try:
            recipe = ps.Recipe(steps=1, compute_dtype="float32")
            ps.edit(model, word_tokenizer(), capital(), out=tmp_path / "out", recipe=recipe, progress=False)
            results.append("finished")
        except OutputError as error:
            results.append(str(error))

    threads = [threading.Thread(target=one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results.count("finished") == 1
    assert any("another run is writing" in result for result in results)
    assert set(complete(tmp_path / "out")) == set(WRITTEN)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("command", ["stack", "merge"])
def test_a_run_that_another_one_overtakes(command, edited, fact_file, model_folder, tmp_path, monkeypatch):
    arguments = commands(edited, fact_file, model_folder, tmp_path / "out")[command]
    files, others = import_module("peft_surgical.writing.files"), []
    swap = files._swap

    def overtaken(*given):
        monkeypatch.setattr(files, "_swap", swap)
        others.append(run(*arguments))
        theirs.update({path: path.read_bytes() for path in (tmp_path / "out").iterdir()})
        swap(*given)

    theirs = {}
    monkeypatch.setattr(files, "_swap", overtaken)
    line = said(run(*arguments), 2)
    assert line == f"Error: cannot write {tmp_path / 'out'}: another run has filled it meanwhile."
    assert others[0].exit_code == 0
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == theirs != {}
    assert leftovers(tmp_path) == []


# Ctrl-C


AGAIN = "Interrupted. Nothing is half written; run the command again."
GO_ON = (
    "Interrupted. {} holds what is complete, or what it held before; run the command again with --overwrite to start"
    " over."
)


@pytest.mark.parametrize("stage", ["localize", "unlearn", "learn", "stack_above", "evaluate", "save_report"])
def test_ctrl_c_at_any_stage(stage, fact_file, model_folder, tmp_path, monkeypatch):
    out = tmp_path / "out"

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(editing, stage, interrupt)
        result = edit(fact_file, model_folder, out)
    assert result.exit_code == 130
    names = complete(out)
    assert len(names) < len(WRITTEN)
    assert bool(names) == (stage != "localize")
    assert result.stderr.splitlines() == [GO_ON.format(out) if names else AGAIN]
    assert leftovers(tmp_path) == []
    if names:
        assert "give --overwrite" in said(edit(fact_file, model_folder, out), 2)
        assert complete(out) == names


@pytest.mark.parametrize("command", ["localize", "stack", "merge", "evaluate", "new_fact"])
def test_ctrl_c_of_what_writes_at_its_end(command, edited, fact_file, model_folder, tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(ps, command, interrupt)
    name = command.removesuffix("_fact")
    result = run(*commands(edited, fact_file, model_folder, tmp_path / "out")[name])
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1] == AGAIN
    assert written(tmp_path) == ["fact.yaml"]


@pytest.mark.parametrize(
    ("command", "last"),
    [
        ("localize", "peft_surgical.cli.localize.plot_localization"),
        ("evaluate", "peft_surgical.edit_folder.write_text"),
    ],
)
def test_ctrl_c_between_two_files(command, last, edited, fact_file, model_folder, tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    out = tmp_path / "out"
    arguments = commands(edited, fact_file, model_folder, out)[command]
    with monkeypatch.context() as patch:
        patch.setattr(last, interrupt)
        result = run(*arguments)
    assert result.exit_code == 130
    assert result.stderr.splitlines() == [GO_ON.format(out)]
    assert len(complete(out)) == 1
    assert "give --overwrite" in said(run(*arguments), 2)
    assert run(*arguments, "--overwrite").exit_code == 0
    assert len(complete(out)) == 2
