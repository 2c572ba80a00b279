import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from peft_surgical.cli import cli

FULL = Path("/dev/full")
PRINTING = (["--help"], ["--version"], ["edit", "--help"], ["scorers"], ["scorers", "--json"], [])
RUN = "from peft_surgical_command import main; main()"


def status(arguments, stream, monkeypatch):
    """With what the command ends where its standard output is another one."""
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
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


@pytest.mark.parametrize("arguments", PRINTING)
def test_a_standard_output_that_nobody_reads(arguments, monkeypatch, capsys):
    with os.fdopen(closed_pipe(), "w") as stream:
        assert status(arguments, stream, monkeypatch) == 141
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("arguments", "other"), [(["scorers"], "stderr"), (["edt"], "stdout")])
def test_a_process_ends_quietly_when_nobody_reads(arguments, other):
    pipe = closed_pipe()
    streams = {"stdout": pipe, "stderr": pipe, other: subprocess.PIPE}
    done = subprocess.run([sys.executable, "-c", RUN, *arguments], timeout=120, check=False, **streams)
    os.close(pipe)
    assert (done.returncode, getattr(done, other)) == (141, b"")
