import builtins
from dataclasses import replace

import numpy as np
import pytest

from peft_surgical.errors import MissingPackageError, OutputError, SelectionError
from peft_surgical.localizing.plots import _figure, _outline, plot_localization
from peft_surgical.localizing.scores import Scores
from peft_surgical.selection import Selection

from .test_results import result


def test_the_picture_is_written_and_nothing_beside_it(tmp_path):
    loc = result()
    plot_localization(loc, loc.top(2), tmp_path / "localization.png")
    assert [path.name for path in tmp_path.iterdir()] == ["localization.png"]
    assert (tmp_path / "localization.png").read_bytes().startswith(b"\x89PNG")
    other = tmp_path / "other.png"
    plot_localization(loc, Selection.from_components("L0.mlp"), other)
    assert other.read_bytes() != (tmp_path / "localization.png").read_bytes()
    plot_localization(loc, None, tmp_path / "localization.svg")
    assert (tmp_path / "localization.svg").read_text().rstrip().endswith("</svg>")


def test_two_heatmaps_a_scorer_with_titles_axes_and_scales():
    loc = result()
    figure = _figure(loc, loc.top(2))
    drawn, bars = figure.axes[:4], figure.axes[4:]
    for number, name in enumerate(("first", "second")):
        upper, lower = drawn[2 * number : 2 * number + 2]
        assert upper.get_title(loc="left") == name
        assert upper.get_ylabel() == "head"
        assert [text.get_text() for text in lower.get_yticklabels()] == ["MLP"]
        grids = loc.head_scores(name).T, loc.mlp_scores(name)[None]
        for axis, grid in zip((upper, lower), grids, strict=True):
            [image] = axis.images
            assert np.array_equal(image.get_array(), grid)
            # No score is below 0, so that white is 0.
            assert image.get_clim() == (0.0, grid.max())
    assert [axis.get_xlabel() for axis in drawn] == ["", "", "", "layer"]
    assert [bar.get_ylabel() for bar in bars] == ["score", "", "score", ""]
    # L0.head.0 and L1.mlp, for each scorer.
    assert [len(axis.patches) for axis in drawn] == [1, 1, 1, 1]
    assert figure.dpi == 200


def test_a_scale_with_negative_scores_has_0_in_the_middle():
    loc = result(tables={"first": Scores({"L0.head.0": -2.0, "L1.head.0": 1.0, "L0.mlp": 3.0})})
    heads, mlps = _figure(loc, None).axes[:2]
    assert heads.images[0].get_clim() == (-2.0, 2.0)
    assert heads.images[0].get_cmap().name != mlps.images[0].get_cmap().name
    assert mlps.images[0].get_clim() == (0.0, 3.0)
    # What has no score is left out, so that the grey behind it shows.
    assert np.ma.getmaskarray(mlps.images[0].get_array()).tolist() == [[False, True]]


def test_the_scale_of_scores_that_are_not_there_or_all_0_is_up_to_1():
    loc = result(tables={"first": Scores({"L0.head.0": 0.0})})
    for axis in _figure(loc, None).axes[:2]:
        assert axis.images[0].get_clim() == (0.0, 1.0)


def test_at_most_about_eight_heads_are_numbered_and_a_scorer_s_name_is_no_formula():
    shape = replace(result().shape, n_heads=24)
    heads, _ = _figure(result(shape=shape, tables={"a:b=$x$": Scores({"L0.head.20": 1.0})}), None).axes[:2]
    assert heads.get_yticks().tolist() == list(range(0, 24, 3))
    [title] = [text for text in heads.get_children() if getattr(text, "get_text", str)() == "a:b=$x$"]
    assert not title.get_parse_math()


def test_a_path_without_an_ending_is_a_png(tmp_path):
    plot_localization(result(), None, tmp_path / "localization")
    assert (tmp_path / "localization").read_bytes().startswith(b"\x89PNG")


def test_a_score_as_large_as_a_number_can_be_is_drawn(tmp_path):
    largest = np.finfo(np.float64).max
    loc = result(tables={"first": Scores({"L0.head.0": -largest, "L1.head.0": 1.0, "L0.mlp": largest})})
    plot_localization(loc, None, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_without_scores_there_is_nothing_to_draw(tmp_path):
    with pytest.raises(OutputError, match=r"a\.png cannot be drawn: no scorer gave scores\."):
        plot_localization(result(tables={}), None, tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["L9.mlp", "L0.head.7"])
def test_a_selection_beyond_the_model_is_refused(name, tmp_path):
    with pytest.raises(SelectionError, match=name.partition(".")[0]):
        plot_localization(result(), Selection.from_components(name), tmp_path / "localization.png")
    assert not list(tmp_path.iterdir())


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
    with pytest.raises(MissingPackageError, match=r"peft-surgical\[plot\]"):
        plot_localization(result(), None, tmp_path / "x.png")


def test_the_selection_is_outlined_at_its_layer_and_head():
    figure = pytest.importorskip("matplotlib.figure").Figure()
    heads, mlps = figure.subplots(2, 1)
    _outline(heads, mlps, ("L3.head.2", "L5.mlp", "L0.head.0"))
    assert [patch.get_xy() for patch in heads.patches] == [(2.5, 1.5), (-0.5, -0.5)]
    assert [patch.get_xy() for patch in mlps.patches] == [(4.5, -0.5)]
    assert all((patch.get_width(), patch.get_height(), patch.get_fill()) == (1, 1, False) for patch in heads.patches)
