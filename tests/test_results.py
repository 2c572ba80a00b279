"""What a localization holds: ranks, choices, its table and its file."""

import json
import math
import pickle
import re
from dataclasses import replace

import numpy as np
import pytest

from peft_surgical.errors import SelectionError
from peft_surgical.localization import localize
from peft_surgical.localizing.localization_files import pack
from peft_surgical.localizing.results import Localization
from peft_surgical.localizing.scores import Scores
from peft_surgical.selection import Selection
from peft_surgical.sites import ModelShape

from .localizing import capital, word_tokenizer
from .tiny import tiny_model

SHAPE = ModelShape("llama", n_layers=2, n_heads=1, n_kv_heads=1, d_head=4, d_mlp=5, d_model=4)
FIRST = {"L0.head.0": 2.0, "L0.mlp": 0.0, "L1.head.0": 0.0, "L1.mlp": 1.0}
SECOND = {"L0.head.0": 0.0, "L0.mlp": 3.0, "L1.head.0": 4.0, "L1.mlp": 5.0}


def result(**changes):
    neurons = {"L1.mlp": np.array([0.1, 0.5, 0.4, -1.0, 0.3], "float32"), "L0.mlp": np.zeros(5, "float32")}
    values = {
        "model": "m",
        "dtype": "float32",
        "shape": SHAPE,
        "subject": "s",
        "scorers": ("first", "second"),
        "tables": {"first": Scores(FIRST), "second": Scores(SECOND, neurons, {"seconds": 1.0})},
        "corruption": ({"prompt": "p"},),
        "seed": 0,
    }
    return Localization(**{**values, **changes})


def test_tables_are_equal_that_hold_the_same():
    tables, others = result().tables, result().tables
    assert tables == others
    assert tables["second"] != tables["first"]
    neurons, notes = tables["second"].neurons, tables["second"].notes
    for name in (*neurons, "L9.mlp"):
        assert tables["second"] != Scores(SECOND, {**neurons, name: np.full(5, 9, "float32")}, notes)
    assert tables["second"] != Scores(SECOND, neurons)
    assert tables["second"] == Scores(SECOND, neurons, {"seconds": 2.0})
    assert tables["second"] != Scores(SECOND, neurons, {"seconds": 1.0, "filter": "none"})


def test_top_goes_by_the_first_scorer_and_the_others_break_ties():
    loc = result()
    assert loc.top(4).components == ("L0.head.0", "L1.mlp", "L1.head.0", "L0.mlp")
    assert loc.top(2, by="second").components == ("L1.mlp", "L1.head.0")
    assert loc.top(heads=1, mlps=1).components == ("L0.head.0", "L1.mlp")
    assert loc.top(budget=4).components == ("L0.head.0",)
    assert loc.ranks()["L1.head.0"] == 3


def test_equal_localizations_choose_alike():
    ties = {**dict.fromkeys(FIRST, 1.0), "L1.head.0": 0.0}
    tables = {
        "first": Scores(dict.fromkeys(FIRST, 1.0)),
        "b": Scores(ties, {"L1.mlp": np.arange(5, dtype="float32")}),
        "a": Scores({**ties, "L1.head.0": 2.0}, {"L1.mlp": -np.arange(5, dtype="float32")}),
    }
    loc = result(scorers=("first",), tables=tables)
    turned = [
        Scores(dict(reversed(tables[name].components.items())), tables[name].neurons) for name in reversed(tables)
    ]
    other = result(scorers=("first",), tables=dict(zip(reversed(tables), turned, strict=True)))
    assert loc == other
    assert list(loc.ranks()) == list(other.ranks()) == ["L1.head.0", "L0.head.0", "L0.mlp", "L1.mlp"]
    chosen = Selection.from_components("L1.mlp")
    assert loc.best_neurons(chosen, 2) == other.best_neurons(chosen, 2)
    assert loc.best_neurons(chosen, 2).neurons == {"L1.mlp": ((0, 2),)}


def test_what_another_scorer_left_out_comes_last_among_equals():
    first, second = dict.fromkeys(FIRST, 1.0), {"L1.mlp": -1.0, "L0.mlp": -2.0, "L1.head.0": -3.0}
    loc = result(tables={"first": Scores(first), "second": Scores(second)})
    assert list(loc.ranks()) == ["L1.mlp", "L0.mlp", "L1.head.0", "L0.head.0"]


def test_of_equal_neurons_the_first_are_taken_and_all_may_be():
    shape = replace(SHAPE, d_mlp=100)
    scores = np.zeros(100, "float32")
    scores[[50, 70]] = 1, -1
    loc = result(shape=shape, tables={"first": Scores(FIRST, {"L1.mlp": scores})})
    chosen = Selection.from_components("L1.mlp")
    assert loc.best_neurons(chosen, 21).neurons == {"L1.mlp": ((0, 20), (50, 51))}
    assert loc.best_neurons(chosen, 99).neurons == {"L1.mlp": ((0, 70), (71, 100))}
    assert loc.best_neurons(chosen, 100).neurons == {"L1.mlp": ((0, 100),)}


def test_the_seconds_are_those_of_all_scorers_that_noted_a_number():
    notes = {"first": {"seconds": 1.5}, "second": {"seconds": "long"}, "asked": {"seconds": 2}, "silent": {}}
    loc = result(tables={name: Scores(FIRST, notes=note) for name, note in notes.items()})
    assert loc.seconds == 3.5


def test_what_is_no_name_or_count_is_refused():
    loc = result()
    for by in (["first"], 0, b"first"):
        for use in (lambda by: loc.top(2, by), loc.ranks, loc.head_scores, loc.mlp_scores, lambda by: loc.rows(2, by)):
            with pytest.raises(SelectionError, match="by must be the name of one scorer, not "):
                use(by)
    with pytest.raises(SelectionError, match="projections must be a list of names, got 5"):
        loc.top(2, projections=5)
    for top in ("a", -1, 1.5, True):
        with pytest.raises(SelectionError, match="top must be a whole number of at least 0, not "):
            loc.rows(top)
    assert loc.rows(0)[1] == []
    assert len(loc.rows(np.int64(3))[1]) == 3


def test_neuron_scores_of_a_head_are_refused_as_such():
    data = result().to_dict()
    data["neurons"]["second"]["L0.head.0"] = data["neurons"]["second"]["L1.mlp"]
    with pytest.raises(SelectionError, match=r"neuron scores of L0\.head\.0, and only an MLP has neurons"):
        Localization.from_dict(data)


def test_scores_as_matrices_have_each_one_at_its_layer_and_head():
    shape = replace(SHAPE, n_layers=3, n_heads=2)
    loc = result(shape=shape, tables={"first": Scores({"L2.head.1": 4.0, "L0.head.0": -1.0, "L1.mlp": 5.0})})
    nan = math.nan
    np.testing.assert_array_equal(loc.head_scores(), [[-1.0, nan], [nan, nan], [nan, 4.0]])
    np.testing.assert_array_equal(loc.mlp_scores(), [nan, 5.0, nan])
    np.testing.assert_array_equal(result().mlp_scores("second"), [3.0, 5.0])
    with pytest.raises(SelectionError, match="there are no scores by 'third' here"):
        loc.head_scores("third")


def test_neurons_are_those_of_the_first_scorer_that_has_them():
    loc = result()
    assert loc.top(2, neurons=3).neurons == {"L1.mlp": ((1, 3), (4, 5))}
    with pytest.raises(SelectionError, match=r"no scores of the neurons of L1\.mlp by first"):
        loc.top(2, by="first", neurons=3)
    with pytest.raises(SelectionError, match="between 1 and 5"):
        loc.top(2, neurons=6)
    for neurons in (2.5, True):
        with pytest.raises(SelectionError, match=f"neurons must be a whole number, not {neurons}"):
            loc.top(2, neurons=neurons)


def test_the_table_for_the_terminal():
    header, rows = result().rows(2)
    assert header == ["rank", "component", "first", "second"]
    assert rows == [["1", "L0.head.0", "2", "0"], ["2", "L1.mlp", "1", "5"]]
    assert result().rows(1, by="second") == (["rank", "component", "second", "first"], [["1", "L1.mlp", "5", "1"]])


def test_a_scorer_that_failed_is_not_silently_replaced():
    loc = result(tables={"second": Scores(SECOND)}, errors={"first": "It broke."})
    with pytest.raises(SelectionError, match="'first' failed: It broke"):
        loc.top(2)
    assert loc.top(1, by="second").components == ("L1.mlp",)
    with pytest.raises(SelectionError, match="no scores by 'third' here, only by second"):
        loc.top(1, by="third")


def test_a_budget_counts_the_neurons_that_are_chosen():
    # MLPs have 5 neurons, heads 4 coordinates.
    loc = result()
    assert loc.top(budget=6, neurons=2).components == ("L0.head.0", "L1.mlp")
    assert loc.top(budget=6).components == ("L0.head.0",)
    assert loc.top(budget=8, projections=("z", "in")).components == ("L0.head.0", "L1.mlp")


def test_the_selection_can_stand_in_the_file(tmp_path):
    loc, path = result(), tmp_path / "loc.json"
    loc.save(path, loc.top(2, neurons=3))
    for other, words in (
        (Selection.from_components("L9.mlp"), r"L9\.mlp"),
        ("L1.mlp", "must be a Selection, not 'L1"),
    ):
        with pytest.raises(SelectionError, match=words):
            loc.save(path, other)
        with pytest.raises(SelectionError, match=words):
            loc.best_neurons(other, 3)
    assert Selection.load(path) == loc.top(2, neurons=3)
    assert Localization.load(path).to_dict() == loc.to_dict()
    # First, where a person finds it.
    assert next(iter(json.loads(path.read_text()))) == "selection"


def test_a_localization_survives_its_file(tmp_path):
    loc = localize(tiny_model("llama"), word_tokenizer(), capital(), ["attribution", "random"], progress=False)
    loc.save(tmp_path / "loc.json")
    back = Localization.load(tmp_path / "loc.json")
    assert back.to_dict() == loc.to_dict()
    assert back == loc == pickle.loads(pickle.dumps(loc))
    assert back != replace(loc, seed=loc.seed + 1)
    assert back.top(5, neurons=3) == loc.top(5, neurons=3)
    assert np.array_equal(back.tables["attribution"].neurons["L1.mlp"], loc.tables["attribution"].neurons["L1.mlp"])


@pytest.mark.parametrize(
    "damage", [lambda d: d.pop("shape"), lambda d: d.update(format=0), lambda d: d.update(neurons={})]
)
def test_a_damaged_file_is_refused(tmp_path, damage):
    data = result().to_dict()
    damage(data)
    path = tmp_path / "loc.json"
    path.write_text(json.dumps(data))
    with pytest.raises(SelectionError, match="localization"):
        Localization.load(path)
    path.write_text("{")
    with pytest.raises(SelectionError, match="cannot be read"):
        Localization.load(path)


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [
        (("scores", "first"), {}, "the scores of 'first' are {}"),
        (("scores", "first", "L0.mlp"), True, "the score of L0.mlp is True"),
        (("scores", "first", "L0.mlp"), 10**400, "the score of L0.mlp is not a finite number"),
        (("scores", "first", "L2.mlp"), 1.0, "L2"),
        (("neurons", "second", "L1.mlp"), pack(np.full(5, np.inf)), "a neuron score of L1.mlp is not a finite number"),
        (("neurons", "second", "L1.mlp"), pack(np.ones(4)), "it has 4 neuron scores of L1.mlp, and an MLP has 5 neu"),
        (("neurons", "second", "L2.mlp"), pack(np.ones(5)), "L2"),
        (("scorers",), [], "its scorers are []"),
        (("errors",), {"third": 3}, "its errors are {'third': 3}"),
        (("corruption",), [3], "its corruption is [3]"),
        (("notes",), {"first": {}}, "it has no 'second'"),
        (("seed",), True, "its seed is True"),
    ],
)
def test_a_value_that_cannot_be_is_named(place, value, told):
    data = result().to_dict()
    *within, last = place
    held = data
    for name in within:
        held = held[name]
    held[last] = value
    with pytest.raises(SelectionError, match=re.escape(told)):
        Localization.from_dict(data)


def test_what_a_prompt_shows_is_one_short_line():
    assert repr(result()) == "Localization('s' in 'm', float32, by first, second)"
