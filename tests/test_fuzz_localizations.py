"""Any localization, selection or report file can be used, or is a `SurgicalError` and no other exception."""

import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from peft_surgical.errors import SelectionError, SurgicalError
from peft_surgical.localizing.results import Localization
from peft_surgical.localizing.scores import Scores
from peft_surgical.report import Report
from peft_surgical.reporting.page import render_page
from peft_surgical.reporting.summary import summarize
from peft_surgical.selection import Selection
from peft_surgical.sites import ModelShape
from peft_surgical.tuner.config import SurgicalIA3Config

from .fuzzing import VALUES, flipped, mutated
from .reports import report

QUICK = settings(max_examples=100, deadline=None)

SHAPE = ModelShape("llama", n_layers=2, n_heads=2, n_kv_heads=1, d_head=4, d_mlp=5, d_model=8)
LOCALIZATION = Localization(
    model="tiny",
    dtype="float32",
    shape=SHAPE,
    subject="Ελλάδα 🏛️",
    scorers=("first", "second"),
    tables={
        "first": Scores({"L0.head.0": 2.0, "L0.mlp": 1.0, "L1.mlp": 1.0}, {"L1.mlp": np.arange(5, dtype=np.float32)}),
        "other": Scores({"L1.head.1": 0.5}, {}, {"seconds": 1.5}),
    },
    corruption=({"prompt": "?", "method": "swap", "other": None, "rival": "x", "clean": 1.0, "corrupted": 0.5},),
    seed=0,
    errors={"second": "it broke."},
).to_dict()
SELECTION = Selection(("L1.mlp", "L0.head.1"), SHAPE, {"L1.mlp": ((0, 2), (3, 5))}).to_dict()
REPORT = report().to_dict()


def use_localization(path):
    found = Localization.load(path)
    assert Localization.from_dict(json.loads(json.dumps(found.to_dict()))).to_dict() == found.to_dict()
    for by in (None, *found.tables):
        try:
            chosen = found.top(2, by)
            found.ranks(by), found.rows(3, by)
            found.best_neurons(chosen, 2, by)
            SurgicalIA3Config.from_localization(chosen)
        except SurgicalError:
            continue


def use_selection(path):
    found = Selection.load(path)
    assert Selection.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def use_report(path):
    found = Report.load(path)
    assert Report.from_dict(found.to_dict()) == found
    found.rows(), found.verdict()
    assert render_page(found).endswith("</html>")
    assert found._repr_html_()
    Console(file=io.StringIO()).print(summarize(found))


KINDS = {
    "localization": (LOCALIZATION, use_localization, SelectionError),
    "selection": (SELECTION, use_selection, SelectionError),
    "selection in a localization": ({"selection": SELECTION, **LOCALIZATION}, use_selection, SelectionError),
    "report": (REPORT, use_report, SurgicalError),
}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("files") / "file.json"


def read(kind, path, content):
    """Reads and uses a file; whether it could be."""
    _, use, error = KINDS[kind]
    path.write_bytes(content)
    try:
        use(path)
    except error as refusal:
        return str(refusal)
    return None


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_written_is_read(kind, path):
    assert read(kind, path, json.dumps(KINDS[kind][0]).encode()) is None


@pytest.mark.parametrize("kind", KINDS)
@QUICK
@given(draw=st.data())
def test_any_value_in_any_place(kind, path, draw):
    read(kind, path, json.dumps(draw.draw(mutated(KINDS[kind][0]))).encode())


@pytest.mark.parametrize("kind", KINDS)
@QUICK
@given(draw=st.data())
def test_any_bytes(kind, path, draw):
    content = json.dumps(KINDS[kind][0]).encode()
    bit = draw.draw(st.integers(0, 8 * len(content) - 1))
    anything = st.binary(max_size=60) | VALUES.map(lambda value: json.dumps(value).encode())
    for damaged in (flipped(content, bit), content[: bit // 8], draw.draw(anything)):
        read(kind, path, damaged)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b'{"a":' * 100_000, b"[" * 100_000, b"9" * 10_000, b"NaN"])
def test_what_no_parser_likes(kind, content, path):
    assert len(read(kind, path, content)) < 300
