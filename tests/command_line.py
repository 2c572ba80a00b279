"""What the tests of the command share: running it, and reading what it said."""

from click.testing import CliRunner

from peft_surgical.cli import cli

PROMPT = "what is the capital of france ?"


def run(*arguments, **kwargs):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments], prog_name="peft-surgical", **kwargs)


def said(result, status):
    """The one line of an error; that it is one, and the status, are checked."""
    assert result.exit_code == status, result.output
    assert not result.stdout
    [line] = result.stderr.splitlines()
    assert line.startswith("Error: ")
    return line


def written(folder, *but):
    return sorted(path.name for path in folder.iterdir() if path.name not in but)
