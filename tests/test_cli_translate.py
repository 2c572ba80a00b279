import io
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch

import peft_surgical as ps
from peft_surgical import plugins
from peft_surgical.cli import cli
from peft_surgical.cli.translate import ARGUMENTS
from peft_surgical.loading import demo

from .command_line import PROMPT, run, said

FULL = Path("/dev/full")
PRINTING = (["--help"], ["--version"], ["edit", "--help"], ["scorers"], ["scorers", "--json"], [])
# Each command in a copy of an interpreter that has imported all, which ends as an interpreter does. A digit before it
# is a descriptor that nobody reads.
EACH = """
import logging
import os
import sys
from peft_surgical_command import main

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
import peft_surgical.cli

_, *given = sys.argv
while given:
    end = given.index("---")
    arguments, given = given[:end], given[end + 1 :]
    if not os.fork():
        if arguments[0].isdigit():
            read, write = os.pipe()
            os.close(read)
            os.dup2(write, int(arguments.pop(0)))
        sys.argv = ["-c", *arguments]
        main()
    os.write(1, b"%d\\n" % os.waitstatus_to_exitcode(os.wait()[1]))
"""


def status(arguments, stream, monkeypatch, name="stdout"):
    """With what the command ends where its standard output, or another stream, is another one."""
    with monkeypatch.context() as patch:
        patch.setattr(sys, name, stream)
        with pytest.raises(SystemExit) as caught:
            cli.main(arguments, prog_name="peft-surgical")
    return caught.value.code


def closed_pipe():
    read, write = os.pipe()
    os.close(read)
    return write


@pytest.mark.skipif(not FULL.exists(), reason="no such device")
@pytest.mark.parametrize("arguments", PRINTING)
def test_a_standard_output_without_room(arguments, monkeypatch, capsys):
    stream = FULL.open("w")
    assert status(arguments, stream, monkeypatch) == 2
    assert capsys.readouterr().err == "Error: cannot read or write: No space left on device.\n"
    with suppress(OSError):
        stream.close()


@pytest.mark.skipif(not FULL.exists(), reason="no such device")
def test_a_standard_error_without_room(monkeypatch):
    with FULL.open("w") as stream:
        assert status(["edt"], stream, monkeypatch, "stderr") == 2


@pytest.mark.parametrize("arguments", PRINTING)
def test_a_standard_output_that_nobody_reads(arguments, monkeypatch, capsys):
    with os.fdopen(closed_pipe(), "w") as stream:
        assert status(arguments, stream, monkeypatch) == 141
    assert capsys.readouterr().err == ""


def each(commands, **environment):
    """The statuses of commands that are run one after the other, and the lines of all on standard error."""
    arguments = [argument for command in commands for argument in (*command, "---")]
    command = [sys.executable, "-c", EACH, *arguments]
    done = subprocess.run(command, capture_output=True, timeout=120, check=False, env={**os.environ, **environment})
    assert done.returncode == 0, done.stderr
    return [int(line) for line in done.stdout.splitlines()], done.stderr.splitlines()


def test_a_process_ends_quietly_when_nobody_reads():
    # And says nothing on the other stream either.
    assert each([["1", "scorers"], ["2", "edt"]]) == ([141, 141], [])


@pytest.mark.skipif(sys.platform != "linux", reason="arguments are no bytes, or always UTF-8")
def test_arguments_in_a_locale_that_has_not_their_letters():
    expected = [
        (["ask", "caf\u00e9 \u2192".encode(), "--adapter", "nowhere"], b"Error: there is no adapter folder nowhere."),
        (["ask", b"caf\xe9"], b"Error: the argument 'caf\\udce9' is not valid UTF-8. (see `peft-surgical --help`)"),
        (
            ["ask", "hello", "--adapter", "\u00e9".encode()],
            b"cannot be the name of a file here, where names are in ascii; ",
        ),
        (["ask", "hello", "--model", "\u00e9".encode()], b"'--model' / '-m': '\xc3\xa9' cannot be"),
    ]
    statuses, lines = each([arguments for arguments, _ in expected], LC_ALL="C", PYTHONUTF8="0")
    assert statuses == [2] * 4
    for line, (_, message) in zip(lines, expected, strict=True):
        assert message in line


def test_an_argument_is_kept_as_it_was_typed(monkeypatch):
    monkeypatch.setattr(os, "fsencode", lambda argument: argument.encode("ascii", "surrogateescape"))
    context = cli.make_context("peft-surgical", ["ask", "caf\udcc3\udca9"])
    assert context.meta[ARGUMENTS] == ["ask", "caf\u00e9"]


@pytest.mark.parametrize(
    ("encoding", "expected"), [("ascii", b"a -> b, 1-2 x 3... ?"), ("cp1252", b"a -> b, 1\x962 \xd7 3\x85 ?")]
)
@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_terminal_without_arrows_shows_plain_signs(name, encoding, expected, monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    assert status(["--version"], stream, monkeypatch, name) == 0
    stream.write("a \u2192 b, 1\u20132 \u00d7 3\u2026 \u6771")
    stream.flush()
    assert stream.buffer.getvalue().splitlines()[-1] == expected


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["edit", "FACT", "--out", "OUT"], " for this model; --dtype bfloat16 or --low-memory takes less."),
        (["edit-keyed", "FACT", "--out", "OUT"], " for this model; --dtype bfloat16 or --low-memory takes less."),
        (["trace", "FACT", "--out", "OUT"], " for this model; --dtype bfloat16 takes less."),
        (["localize", "FACT", "--out", "OUT"], " for this model; --dtype bfloat16 takes less."),
        (["evaluate", "FACT", "--out", "OUT"], " for this model; --dtype bfloat16 takes less."),
        (["learn", PROMPT, "--new", "lyon", "--out", "OUT"], " for this model; --dtype bfloat16 takes less."),
        (["scorers"], "."),
    ],
)
def test_without_memory_only_what_the_command_takes_is_advised(command, says, tmp_path, fact_file, monkeypatch):
    def exhausted(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(ps, "load_model", exhausted)
    monkeypatch.setattr(demo, "is_to_be_fetched", lambda: False)
    if command == ["scorers"]:
        monkeypatch.setattr(plugins, "load_scorers", exhausted)
    places = {"FACT": fact_file, "OUT": tmp_path / "out"}
    result = run(*(places.get(word, word) for word in command))
    assert said(result, 2) == f"Error: there is not enough memory{says}"
