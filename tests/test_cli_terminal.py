import io
import sys

import click
import pytest

import peft_surgical as ps
from peft_surgical.cli import loading
from peft_surgical.cli.options import Source
from peft_surgical.cli.processes import SILENT
from peft_surgical.cli.terminal import passing_note


class Terminal(io.StringIO):
    def isatty(self):
        return True

    def shown(self):
        """What is left on its one line."""
        line = ""
        for part in self.getvalue().split("\r"):
            line = part + line[len(part) :]
        return line.rstrip()


def as_terminal(monkeypatch):
    # Not in a fixture: pytest sets the stream anew when a test begins.
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setattr(sys, "stderr", stream := Terminal())
    return stream


@pytest.mark.parametrize("name", ["nosuch", "./a/folder/with/a/name/longer/than/the/terminal", "./\x1b[31m\n"])
def test_that_a_model_is_loaded_is_shown_until_it_is_or_is_not(name, monkeypatch):
    terminal = as_terminal(monkeypatch)

    def load_model(*_, **__):
        assert terminal.shown().startswith(f"Loading {name[:2]}")
        assert len(terminal.shown()) < 30
        assert terminal.shown().endswith("…")
        raise ps.ModelError("there is no such model.")

    monkeypatch.setattr(ps, "load_model", load_model)
    with pytest.raises(ps.ModelError):
        loading.load(Source(name, "auto", None, False), quiet=False)
    assert terminal.shown() == ""
    assert "\n" not in terminal.getvalue()
    assert "\x1b" not in terminal.getvalue()


def test_nothing_is_shown_to_who_wants_nothing(monkeypatch):
    terminal = as_terminal(monkeypatch)
    with passing_note("Loading", quiet=True):
        pass
    with click.Context(click.Command("edit")) as context:
        # As in a process that is not the first of several.
        context.meta[SILENT] = True
        with passing_note("Loading", quiet=False):
            pass
    for stream in (plain := io.StringIO(), None):
        monkeypatch.setattr(sys, "stderr", stream)
        with passing_note("Loading", quiet=False):
            pass
    assert terminal.getvalue() == plain.getvalue() == ""
