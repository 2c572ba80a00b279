"""What a causal trace holds: figures, its table and its file."""

import json
import math
import sys

import numpy as np
import pytest

from peft_surgical.errors import MissingPackageError, OutputError, SelectionError
from peft_surgical.localizing.localization_files import pack
from peft_surgical.localizing.plots import _trace_figure
from peft_surgical.localizing.token_classes import CLASSES
from peft_surgical.localizing.traces import CausalTrace
from peft_surgical.measuring.metrics import Figure, mean

from .test_results import SHAPE

LAST, SUBJECT, FURTHER = (list(CLASSES).index(name) for name in ("last", "subject_last", "further"))


def values(prompts=3):
    """Every prompt has the subject's and the last token, and the first alone further ones."""
    found = np.full((prompts, 3, 2, len(CLASSES)), np.nan, np.float32)
    found[..., 0] = 0
    numbers = np.random.default_rng(0).normal(size=(prompts, 3, 2, 2)).astype(np.float32)
    found[..., [SUBJECT, LAST]] = numbers
    found[:1, ..., FURTHER] = 0.25
    return found


def trace(**changes):
    fields = {
        "model": "m",
        "dtype": "float32",
        "shape": SHAPE,
        "subject": "s",
        "direction": "noising",
        "window": 1,
        "together": True,
        "prompts": ("p", "q", "r"),
        "values": values(),
        "unnamed": ("u",),
        "left_out": (),
        "least": 0.1,
        "seed": 0,
    }
    return CausalTrace(**{**fields, **changes})


def test_means_and_intervals_are_students_over_the_prompts_that_have_the_class():
    found = trace()
    assert found.n.tolist() == [3, 0, 0, 3, 0, 1, 0, 3]
    for s, stream in enumerate(found.streams):
        for layer in range(2):
            for c, name in enumerate(found.classes):
                column = found.values[:, s, layer, c]
                own = mean([float(value) for value in column if not np.isnan(value)]) if found.n[c] else None
                assert found.figure(stream, layer, name) == own
                ends = [float(array[s, layer, c]) for array in (found.mean, found.low, found.high)]
                if own is None:
                    assert all(map(math.isnan, ends))
                else:
                    assert ends == [pytest.approx(each, rel=1e-12) for each in (own.value, own.low, own.high)]
    two = trace(values=values(2) * 0 + np.array([0.0, 1.0], np.float32)[:, None, None, None], prompts=("p", "q"))
    # Student's: 12.7062 times the standard error, 0.5.
    assert two.figure("mlp_out", 1, "last") == Figure(0.5, 2, pytest.approx(0.5 - 6.3531), pytest.approx(0.5 + 6.3531))
    assert two.figure("mlp_out", 1, "further") == Figure(0.0, 1, 0.0, 0.0)


@pytest.mark.parametrize(
    ("place", "told"),
    [
        (("z", 0, "last"), "a trace has resid_pre, attn_out, mlp_out, not 'z'"),
        (("mlp_out", 0, "end"), "a trace has before, .*, last, not 'end'"),
        (("mlp_out", 2, "last"), "the model has layers 0 to 1, not 2"),
        (("mlp_out", True, "last"), "the model has layers 0 to 1, not True"),
        (("mlp_out", -1, "last"), "the model has layers 0 to 1, not -1"),
    ],
)
def test_what_there_is_not_is_refused(place, told):
    with pytest.raises(SelectionError, match=told):
        trace().figure(*place)


def test_it_is_told_in_words_and_rows():
    assert trace().told() == (
        "The most that any layer carries, as the share of the logit difference lost where it is taken from the"
        " corrupted run (3 prompts; 1 left out, not naming s):"
    )
    other = trace(direction="denoising", window=10, unnamed=(), left_out=("a", "b"), prompts=("p",), values=values(1))
    assert other.told() == (
        "The most that any layer carries, as the share of the logit difference recovered in the corrupted run where it"
        " is taken from the clean run, attn_out and mlp_out of 10 layers together (1 prompt; 2 left out, as the"
        " corruption lowers the logit difference by less than 0.1):"
    )
    own = values()
    own[..., LAST] = np.array([0.25, 0.75], np.float32)
    header, rows = trace(values=own).rows()
    assert header == ["token", "N", "resid_pre", "attn_out", "mlp_out"]
    assert [row[:2] for row in rows] == [
        ["before the subject", "3"],
        ["last subject token", "3"],
        ["further tokens", "1"],
        ["last token", "3"],
    ]
    # Where nothing moves no layer is the one.
    assert rows[0][2:] == ["0.00 [0.00, 0.00]"] * 3
    assert rows[2][2:] == ["0.25 [0.25, 0.25] at L0"] * 3
    assert rows[3][2:] == ["0.75 [0.75, 0.75] at L1"] * 3
    # The largest, not that which is the farthest from 0.
    own[:, 0, 1, LAST] = -2
    [*_, row] = trace(values=own).rows()[1]
    assert row[2] == "0.25 [0.25, 0.25] at L0"
    assert repr(trace()) == "CausalTrace('s' in 'm', noising, 3 prompts)"


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_file_gives_it_back(count, tmp_path):
    found = trace(prompts=("p", "q", "r")[:count], values=values(count), direction="denoising", together=False)
    found.save(tmp_path / "a.json")
    assert CausalTrace.load(tmp_path / "a.json") == found
    data = json.loads((tmp_path / "a.json").read_text())
    # For other readers.
    assert np.shape(data["mean"]) == (3, 2, len(CLASSES))
    assert data["n"] == found.n.tolist()
    assert (data["mean"][1][1][LAST] is None) == (count == 0)
    if count:
        assert data["low"][2][1][LAST] == pytest.approx(float(found.low[2, 1, LAST]))
    assert found.rows()[1] == [] or count


def test_traces_are_equal_that_hold_the_same():
    assert trace() == trace()
    assert trace() != trace(values=values() + 1)
    assert trace() != trace(seed=1)
    assert trace() != trace(prompts=("p", "q", "s"))
    assert trace() != 3


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"format": 2}, r"this is not a causal trace of format 1\."),
        ({"direction": "rome"}, "its direction is 'rome'"),
        ({"direction": ["noising"]}, "its direction is"),
        ({"window": 0}, "its window is 0"),
        ({"window": True}, "its window is True"),
        ({"together": 1}, "its together is 1"),
        ({"seed": 1.5}, "its seed is 1.5"),
        ({"least": "a"}, "'a' stands where a number should"),
        ({"model": 3}, "its model is 3"),
        ({"prompts": "p"}, "its prompts are 'p'"),
        ({"unnamed": [3]}, r"its unnamed are \[3\]"),
        (
            {"prompts": ["p", "q"]},
            r"it has 144 values, and its prompts, streams, layers and classes are \(2, 3, 2, 8\)",
        ),
        ({"streams": ["z"]}, r"its streams are \['z'\]"),
        ({"classes": None}, "its classes are None"),
        ({"shape": 3}, "its shape is 3"),
        ({"values": "?"}, r"its values are '\?'"),
        ({"values": 3}, "its values are 3"),
    ],
)
def test_a_damaged_file_is_refused(change, told, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({**trace().to_dict(), **change}))
    with pytest.raises(SelectionError, match=rf"a\.json: .*{told}"):
        CausalTrace.load(tmp_path / "a.json")


@pytest.mark.parametrize(("place", "value"), [((0, 0, 0, LAST), np.inf), ((0, 2, 1, LAST), np.nan)])
def test_a_value_that_is_no_number_is_refused(place, value):
    own = values()
    own[place] = value
    data = {**trace().to_dict(), "values": pack(own)}
    with pytest.raises(SelectionError, match="a value is not a finite number"):
        CausalTrace.from_dict(data)


def test_what_is_no_file_of_ours_is_refused(tmp_path):
    with pytest.raises(SelectionError, match=r"none\.json cannot be read as a causal trace: No such file"):
        CausalTrace.load(tmp_path / "none.json")
    for data in ([], {}, {"format": 1}, {"format": 1, "scorers": []}):
        with pytest.raises(SelectionError, match="this is not a causal trace"):
            CausalTrace.from_dict(data)
    data = trace().to_dict()
    for name in ("values", "shape", "subject"):
        with pytest.raises(SelectionError, match=f"it has no '{name}'"):
            CausalTrace.from_dict({key: value for key, value in data.items() if key != name})


def test_the_picture_is_written_and_nothing_beside_it(tmp_path):
    pytest.importorskip("matplotlib")
    trace().plot(tmp_path / "trace.png")
    assert [path.name for path in tmp_path.iterdir()] == ["trace.png"]
    assert (tmp_path / "trace.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(OutputError, match="cannot be drawn"):
        trace().plot(tmp_path / "x.abc")
    with pytest.raises(OutputError, match=r"none\.png cannot be drawn: no prompt was measured\."):
        trace(prompts=(), values=values(0)).plot(tmp_path / "none.png")


def test_a_heatmap_a_stream_with_the_classes_that_there_are():
    pytest.importorskip("matplotlib")
    found = trace(window=3, direction="denoising")
    figure = _trace_figure(found)
    drawn, bars = figure.axes[:3], figure.axes[3:]
    titles = ["resid_pre", "attn_out of 3 layers together", "mlp_out of 3 layers together"]
    assert [axis.get_title(loc="left") for axis in drawn] == titles
    for axis, grid in zip(drawn, found.mean, strict=True):
        assert [text.get_text() for text in axis.get_yticklabels()] == [
            "before the subject",
            "last subject token",
            "further tokens",
            "last token",
        ]
        [image] = axis.images
        assert np.array_equal(image.get_array(), grid[:, [0, SUBJECT, FURTHER, LAST]].T)
    assert [axis.get_xlabel() for axis in drawn] == ["", "", "layer"]
    assert [bar.get_ylabel() for bar in bars] == ["share recovered"] * 3
    assert figure.dpi == 200
    alone = _trace_figure(trace())
    assert [axis.get_title(loc="left") for axis in alone.axes[:3]] == list(found.streams)
    assert [bar.get_ylabel() for bar in alone.axes[3:]] == ["share lost"] * 3


def test_without_matplotlib_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingPackageError, match=r"peft-surgical\[plot\]"):
        trace().plot(tmp_path / "x.png")
