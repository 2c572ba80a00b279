import builtins

import pytest

from peft_surgical.errors import OutputError, SurgicalError
from peft_surgical.plots import _grids, _outline, plot_localization
from peft_surgical.selection import Selection

from .test_localization import result


def test_the_picture_is_written_and_nothing_beside_it(tmp_path):
    loc = result()
    plot_localization(loc, loc.top(2), tmp_path / "localization.png")
    assert [path.name for path in tmp_path.iterdir()] == ["localization.png"]
    assert (tmp_path / "localization.png").read_bytes().startswith(b"\x89PNG")
    other = tmp_path / "other.png"
    plot_localization(loc, Selection.from_components("L0.mlp"), other)
    assert other.read_bytes() != (tmp_path / "localization.png").read_bytes()
    plot_localization(loc, None, tmp_path / "localization.svg")
    assert "first" in (tmp_path / "localization.svg").read_text() or (tmp_path / "localization.svg").stat().st_size


def test_grids_put_each_score_at_its_layer():
    heads, mlps = _grids(result(), "second")
    assert heads.tolist() == [[0.0, 4.0]]
    assert mlps.tolist() == [[3.0, 5.0]]


def test_an_unknown_format_or_folder_is_refused(tmp_path):
    with pytest.raises(OutputError, match="cannot be drawn"):
        plot_localization(result(), None, tmp_path / "x.abc")
    with pytest.raises(OutputError, match="cannot write"):
        plot_localization(result(), None, tmp_path / "none" / "x.png")


def test_without_matplotlib_the_extra_is_named(tmp_path, monkeypatch):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(SurgicalError, match=r"peft-surgical\[plot\]"):
        plot_localization(result(), None, tmp_path / "x.png")


def test_the_selection_is_outlined_at_its_layer_and_head():
    figure = pytest.importorskip("matplotlib.figure").Figure()
    heads, mlps = figure.subplots(2, 1)
    _outline(heads, mlps, ("L3.head.2", "L5.mlp", "L0.head.0"))
    assert [patch.get_xy() for patch in heads.patches] == [(2.5, 1.5), (-0.5, -0.5)]
    assert [patch.get_xy() for patch in mlps.patches] == [(4.5, -0.5)]
    assert all((patch.get_width(), patch.get_height(), patch.get_fill()) == (1, 1, False) for patch in heads.patches)
