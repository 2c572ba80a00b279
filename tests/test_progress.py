import io

import pytest

from peft_surgical.progress import progress_bar


class Stream(io.StringIO):
    """A notebook's stream, which is no terminal."""


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("module", ["ipykernel.iostream", "io"])
def test_a_bar_is_shown_in_a_notebook_and_in_no_file(monkeypatch, enabled, module):
    monkeypatch.setattr(Stream, "__module__", module)
    monkeypatch.setattr("sys.stderr", stream := Stream())
    with progress_bar(2, "what", enabled=enabled) as bar:
        bar.update(1)
    assert ("what:" in stream.getvalue()) == (enabled and module == "ipykernel.iostream")


def test_a_bar_is_not_shown_where_there_is_no_such_stream(monkeypatch):
    monkeypatch.setattr("sys.stderr", None)
    with progress_bar(2, "what", enabled=True) as bar:
        bar.update(1)
    assert bar.disable
