import json
from dataclasses import replace

import pytest

from peft_surgical.errors import SelectionError
from peft_surgical.selection import PAPER_SELECTION, Selection, ranked, select, sure_components
from peft_surgical.sites import Component, ModelShape, module_slices

SHAPE = ModelShape("llama", n_layers=3, n_heads=2, n_kv_heads=2, d_head=4, d_mlp=10, d_model=8)
SCORES = {"L0.head.0": 1.0, "L0.head.1": -3.0, "L0.mlp": 9.0, "L1.head.0": 5.0, "L1.mlp": 5.0, "L2.mlp": 0.5}


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"k": 3}, ("L0.mlp", "L1.head.0", "L1.mlp")),
        ({}, ("L0.mlp", "L1.head.0", "L1.mlp", "L0.head.0", "L2.mlp", "L0.head.1")),
        ({"k": 3, "mlps": 1}, ("L0.mlp", "L1.head.0", "L0.head.0")),
        ({"heads": 1, "mlps": 2}, ("L0.mlp", "L1.head.0", "L1.mlp")),
        ({"heads": 2}, ("L1.head.0", "L0.head.0")),
        ({"budget": 14}, ("L0.mlp", "L1.head.0")),
        ({"budget": 9}, ("L1.head.0", "L0.head.0")),
        ({"budget": 9, "projections": ("z", "z", "post")}, ("L1.head.0", "L0.head.0")),
        ({"budget": 23, "projections": ("z", "v", "in")}, ("L0.mlp", "L1.head.0")),
        ({"budget": 40, "projections": ("post", "pre")}, ("L0.mlp", "L1.mlp")),
        ({"budget": 16, "projections": ("z", "in")}, ("L0.mlp", "L1.head.0", "L0.head.0")),
        ({"budget": 17, "projections": ("z", "post", "pre"), "neurons": 3}, ("L0.mlp", "L1.head.0", "L1.mlp")),
        ({"threshold": 1.0}, ("L0.mlp", "L1.head.0", "L1.mlp", "L0.head.0")),
        ({"threshold": 1.0, "k": 2}, ("L0.mlp", "L1.head.0")),
    ],
)
def test_limits_worked_by_hand(limits, expected):
    chosen = select(SCORES, SHAPE, **limits)
    assert chosen.components == expected
    assert chosen.shape == SHAPE


def test_ties_are_broken_by_the_key():
    order = ranked({"L1.head.0": 5.0, "L1.mlp": 5.0}, lambda name: 0 if name == "L1.mlp" else 1)
    assert order == ["L1.mlp", "L1.head.0"]


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"budget": 1.5}, "budget must be"),
        ({"projections": ("post", "inn")}, "the projection 'inn' is not one of z, v, q, k, post, pre, pre_linear, in"),
        ({"k": -1}, "k must be a whole number of at least 0, not -1"),
        ({"k": -(10**5000)}, "k must be a whole number of at least 0"),
        ({"neurons": 2.5}, "neurons must be a whole number of at least 0, not 2.5"),
        ({"neurons": True}, "neurons must be"),
        ({"threshold": float("nan")}, "threshold must be"),
        ({"threshold": "x"}, "threshold must be a finite number, not 'x'"),
        ({"threshold": 10**400}, "threshold must be"),
        ({"budget": 3}, "no component fits budget=3: a head takes 4 and an MLP takes 10 scales here"),
        ({"mlps": 2, "budget": 9}, "no component fits mlps=2, budget=9: an MLP takes 10 scales here"),
        ({"threshold": 10.0}, "no component fits threshold=10"),
        ({"threshold": 10.0, "budget": 9}, r"^no component fits budget=9, threshold=10\.0; the best score is 9\.$"),
        ({"projections": 5}, "projections must be a list of names, got 5"),
        ({"projections": [["z"]]}, r"projections must be a list of names, got \[\['z'\]\]"),
        ({"projections": ()}, "there are no projections to scale at; give some of z, v, q, k, post"),
    ],
)
def test_limits_that_select_nothing_are_refused(limits, message):
    with pytest.raises(SelectionError, match=message):
        select(SCORES, SHAPE, **limits)


@pytest.mark.parametrize(
    ("kind", "limits", "message"),
    [
        (".mlp", {"heads": 2}, "no component fits heads=2: the scorer scored no heads"),
        (".head.", {"mlps": 3}, "no component fits mlps=3: the scorer scored no MLPs"),
        (".mlp", {"projections": ("z", "v")}, r"^nothing that was scored has scales at v\+z; choose"),
    ],
)
def test_what_the_scorer_did_not_score_is_said(kind, limits, message):
    with pytest.raises(SelectionError, match=message):
        select({name: score for name, score in SCORES.items() if kind in name}, SHAPE, **limits)


def test_no_scores_are_refused():
    with pytest.raises(SelectionError, match="there are no scores to choose by"):
        select({}, SHAPE)


def test_one_projection_may_be_text():
    assert select(SCORES, SHAPE, budget=20, projections="post").components == ("L0.mlp", "L1.mlp")


def test_a_selection_by_hand():
    chosen = Selection.from_components("L16.mlp", "L20.head.3")
    assert (chosen.heads, chosen.mlps, chosen.shape) == (("L20.head.3",), ("L16.mlp",), None)


def test_components_may_come_from_a_generator():
    selection = Selection(name for name in ("L2.mlp", "L0.head.1"))
    assert selection == Selection(("L2.mlp", "L0.head.1")) == Selection(["L2.mlp", "L0.head.1"])
    assert hash(selection.components)


def test_the_papers_selection_is_ten_modules_of_phi3():
    shape = ModelShape("phi3", n_layers=32, n_heads=32, n_kv_heads=32, d_head=96, d_mlp=8192, d_model=3072)
    slices = [s for name in PAPER_SELECTION.components for s in module_slices(shape, Component.parse(name))]
    attention = {f"model.layers.{n}.self_attn.{m}" for n in (20, 22) for m in ("qkv_proj", "o_proj")}
    mlps = {f"model.layers.{n}.mlp.{m}" for n in (16, 18, 23) for m in ("gate_up_proj", "down_proj")}
    assert {s.module for s in slices} == attention | mlps
    assert sum(s.stop - s.start for s in slices) == 98_304


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), "at least one"),
        (("L1.mlp", "L1.mlp"), "L1.mlp is selected twice"),
        (("L1.mpl",), "'L1.mpl' is not a component"),
        (("L3.mlp",), r"3 layers \(L0 to L2\)"),
    ],
)
def test_a_malformed_selection_is_refused(names, message):
    with pytest.raises(SelectionError, match=message):
        Selection.from_components(*names, shape=SHAPE)


@pytest.mark.parametrize(
    ("neurons", "message"),
    [
        ({"L1.mlp": ((0, 2),)}, "not a selected MLP"),
        ({"L0.head.0": ((0, 2),)}, "not a selected MLP"),
        ({"L0.mlp": ()}, "the neurons of L0.mlp must be a non-empty list"),
        ({"L0.mlp": ((2, 2),)}, r"got \[2, 2\]"),
        ({"L0.mlp": ((2, 5), (4, 6))}, r"\[4, 6\] begins before 5"),
        ({"L0.mlp": ((0, 11),)}, r"\[0, 11\] goes beyond the neurons of L0.mlp, of which there are 10"),
        ({"L0.mlp": (3, 4)}, r"must be two integers \[start, stop\], got 3"),
        ({"L0.mlp": "ab"}, "must be a non-empty list of"),
        ([3], "must map MLPs to ranges"),
    ],
)
def test_malformed_neurons_are_refused(neurons, message):
    with pytest.raises(SelectionError, match=message):
        Selection(("L0.mlp", "L0.head.0"), SHAPE, neurons)


def test_one_name_is_no_list_of_names():
    with pytest.raises(SelectionError, match=r"must be a list of names, not 'L0\.mlp'"):
        Selection("L0.mlp")


def test_lists_of_ranges_are_the_same_selection_as_tuples():
    listed = Selection(("L0.mlp",), SHAPE, {"L0.mlp": [[0, 2], [4, 5]]})
    assert listed == Selection(("L0.mlp",), SHAPE, {"L0.mlp": ((0, 2), (4, 5))})


def test_a_selection_survives_json(tmp_path):
    chosen = Selection(("L0.mlp", "L0.head.0"), SHAPE, {"L0.mlp": ((0, 2), (4, 5))})
    chosen.save(tmp_path / "selection.json")
    assert Selection.load(tmp_path / "selection.json") == chosen
    assert Selection.from_dict({"components": ["L0.mlp"]}) == Selection.from_components("L0.mlp")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], r"has the keys components, shape and neurons, not \[\]"),
        ({"components": "L0.mlp"}, "components must be a list of names, not 'L0.mlp'"),
        ({"components": ["L0.mlp"], "top": 3}, "has the keys components, shape and neurons, not .*top"),
        ({"components": ["L0.mlp"], "neurons": [1]}, r"neurons must map MLPs to ranges, not \[1\]"),
        ({"components": ["L0.mlp"], "neurons": {"L0.mlp": [[1]]}}, "the neurons of L0.mlp"),
        ({"components": ["L0.mlp"], "shape": {"n_layers": 3}}, "a model shape needs exactly the keys model_type, "),
        (
            {"components": ["L0.mlp"], "shape": {**SHAPE.to_dict(), "n_heads": 0}},
            "a model shape's n_heads must be a positive whole number, not 0",
        ),
    ],
)
def test_malformed_json_is_refused(data, message):
    with pytest.raises(SelectionError, match=message):
        Selection.from_dict(data)


def test_what_a_report_or_a_localization_holds_is_a_selection_too(tmp_path):
    chosen = Selection(("L0.mlp", "L0.head.0"), SHAPE, {"L0.mlp": ((0, 2),)})
    recorded = {**chosen.to_dict(), "granularity": "neuron", "scales": 6}
    assert Selection.from_dict(recorded) == chosen
    path = tmp_path / "file.json"
    for data in (recorded, {"stages": {}, "selection": recorded}, {"selection": chosen.to_dict(), "scores": {}}):
        path.write_text(json.dumps(data))
        assert Selection.load(path) == chosen


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"scores": {}, "format": 1}, "is a localization that holds no selection"),
        ({"stages": {}, "selection": {}}, "is a report that holds no selection"),
        ({"selection": {"components": ["L0.mpl"]}}, "file.json: 'L0.mpl' is not a component"),
        ({"selection": 3}, "a selection has the keys"),
    ],
)
def test_a_file_without_a_selection_is_refused(data, message, tmp_path):
    path = tmp_path / "file.json"
    path.write_text(json.dumps(data))
    with pytest.raises(SelectionError, match=message):
        Selection.load(path)


def test_a_selection_knows_the_models_that_it_is_not_of():
    chosen = Selection(("L1.mlp",), SHAPE)
    chosen.check(SHAPE)
    other = replace(SHAPE, n_layers=2, d_mlp=8)
    with pytest.raises(SelectionError, match=r"another model \(n_layers 3, not 2; d_mlp 10, not 8\)"):
        chosen.check(other)
    Selection.from_components("L1.mlp").check(other)
    with pytest.raises(SelectionError, match=r"2 layers \(L0 to L1\); L2.mlp"):
        Selection.from_components("L2.mlp").check(other)
    with pytest.raises(SelectionError, match=r"the neurons of L1\.mlp, of which there are 8"):
        Selection(("L1.mlp",), neurons={"L1.mlp": ((3, 9),)}).check(other)


def test_a_missing_file_is_refused(tmp_path):
    path = tmp_path / "none.json"
    with pytest.raises(SelectionError, match="cannot be read as a selection") as caught:
        Selection.load(path)
    assert str(caught.value) == f"{path} cannot be read as a selection: No such file or directory."


def test_a_file_with_a_byte_order_mark_is_taken(tmp_path):
    (tmp_path / "selection.json").write_text('{"components": ["L1.mlp"]}', encoding="utf-8-sig")
    assert Selection.load(tmp_path / "selection.json") == Selection.from_components("L1.mlp")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b'{"components": ["L1.mlp"], "components": ["L0.mlp"]}', "the key 'components' stands twice"),
        (
            b'{"components": ["L1.mlp"], "neurons": {"L1.mlp": [[0, 2]], "L1.mlp": [[4, 6]]}}',
            "the key 'L1.mlp' stands twice",
        ),
        (b'{"components": ["L1.mlp\xff"]}', "it is not UTF-8 text"),
    ],
)
def test_a_file_that_can_be_read_in_two_ways_or_in_none_is_refused(content, why, tmp_path):
    path = tmp_path / "selection.json"
    path.write_bytes(content)
    with pytest.raises(SelectionError) as caught:
        Selection.load(path)
    assert str(caught.value) == f"{path} cannot be read as a selection: {why}."


@pytest.mark.parametrize(
    ("limits", "sure"),
    [
        ({}, ("L0.mlp",)),
        ({"heads": 2}, ("L0.head.0",)),
        ({"heads": 0, "mlps": 2}, ("L0.mlp",)),
        ({"heads": 1, "mlps": 1}, ("L0.head.0", "L0.mlp")),
        # The budget may go to one kind alone, and the best may be of either.
        ({"heads": 1, "mlps": 1, "budget": 9}, ()),
        ({"heads": 1, "budget": 9}, ("L0.head.0",)),
        ({"budget": 9}, ()),
        ({"top": 3, "mlps": 1}, ()),
    ],
)
def test_what_will_be_scaled_in_any_case(limits, sure):
    assert sure_components(None, **limits) == sure
    assert sure_components(Selection.from_components("L1.mlp", "L2.head.0"), **limits) == ("L1.mlp", "L2.head.0")


def test_heads_that_read_the_same_values_are_paid_once():
    grouped = replace(SHAPE, n_heads=4, n_kv_heads=2)
    scores = {f"L0.head.{head}": 4.0 - head for head in range(4)} | {"L1.head.0": 0.5}
    # Values of heads 0 and 1 are one slice of 4, and there is nothing left to scale for the second of them.
    assert select(scores, grouped, budget=8, projections=("v",)).components == ("L0.head.0", "L0.head.2")
    assert select(scores, grouped, heads=3, projections="v").components == ("L0.head.0", "L0.head.2", "L1.head.0")
    assert select(scores, grouped, budget=12, projections=("z", "v")).components == ("L0.head.0", "L0.head.1")
    assert select(scores, grouped, budget=8, projections=("z",)).components == ("L0.head.0", "L0.head.1")


def test_equal_selections_have_equal_hashes():
    neurons = {"L1.mlp": [[0, 4], (6, 8)], "L0.mlp": [(1, 2)]}
    first = Selection(("L1.mlp", "L0.mlp"), neurons=neurons)
    second = Selection(("L1.mlp", "L0.mlp"), neurons=dict(reversed(neurons.items())))
    assert first == second
    assert len({first, second, Selection(("L1.mlp", "L0.mlp"))}) == 2
