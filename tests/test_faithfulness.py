import json
from dataclasses import replace

import pytest
import torch

from peft_surgical.errors import SelectionError
from peft_surgical.localizing.faithfulness import Carried, Faithfulness
from peft_surgical.localizing.results import Localization
from peft_surgical.measuring.metrics import Figure
from peft_surgical.selection import Selection
from peft_surgical.sites import ModelShape

from .test_results import result

CHOSEN = Selection(("L1.mlp", "L0.head.0"), None, {"L1.mlp": ((1, 3),)})


def record(**changes):
    alone = torch.tensor([[0.5, 0.0, 0.2], [0.7, 0.2, 0.0]], dtype=torch.float64)
    values = {"faithfulness": Carried.of(alone), "necessity": Carried.of(1 - alone), "left_out": ("p",)}
    return Faithfulness(**{"selection": CHOSEN, **values, "least": 0.1, "seed": 5, **changes})


def test_the_interval_is_over_prompts_and_the_range_over_draws():
    carried = record().faithfulness
    # Student's: 12.706 times the standard error, 0.1, of two values.
    assert carried.own == Figure(0.6, 2, pytest.approx(0.6 - 1.27062), pytest.approx(0.6 + 1.27062))
    # Each prompt's mean over the draws is 0.1.
    assert carried.random == Figure(pytest.approx(0.1), 2, pytest.approx(0.1), pytest.approx(0.1))
    assert carried.draws == (pytest.approx(0.1), pytest.approx(0.1))
    assert record().n == 2
    unlike = Carried.of(torch.tensor([[1.0, 0.0, 4.0]]))
    assert unlike.draws == (0.0, 4.0)
    assert unlike.random == Figure(2.0, 1, 2.0, 2.0)


def test_without_draws_or_prompts_there_are_no_figures():
    alone = Carried.of(torch.tensor([[1.0], [3.0]]))
    assert (alone.own.value, alone.random, alone.draws) == (2.0, None, ())
    assert Carried.of(torch.zeros(0, 4)) == Carried(None, None, ())
    none = Carried(None, None, ())
    empty = record(faithfulness=none, necessity=none)
    assert empty.n == 0
    header, rows = empty.rows()
    assert header == ["", "selection", "mean of random", "their range"]
    assert rows[0][1:] == ["–", "–", "–"]
    assert Faithfulness.from_dict(json.loads(json.dumps(empty.to_dict()))) == empty


def test_it_is_told_in_words():
    assert record().told() == (
        "What the 2 components carry together, 0 being the corrupted run and 1 the clean run (2 prompts; 1 left out,"
        " as the corruption lowers the logit difference by less than 0.1):"
    )
    one = record(selection=Selection.from_components("L0.mlp"), left_out=())
    assert one.told() == ("What the one component carries, 0 being the corrupted run and 1 the clean run (2 prompts):")
    shape = ModelShape("llama", n_layers=1, n_heads=2, n_kv_heads=2, d_head=8, d_mlp=20, d_model=32)
    alone = record(selection=Selection(("L0.mlp",), shape), left_out=())
    assert alone.told().endswith("(2 prompts; no other selection is of that size):")
    header, rows = record(faithfulness=Carried.of(torch.tensor([[1.0, 0.25, -0.001]]))).rows()
    assert header == ["", "selection", "mean of 2 random", "their range"]
    assert rows[0] == ["faithfulness: kept alone", "1.00 [1.00, 1.00]", "0.12 [0.12, 0.12]", "0.00 to 0.25"]


def test_a_localization_keeps_it_and_older_files_have_none(tmp_path):
    plain, measured = result(), result(faithfulness=record())
    assert "faithfulness" not in plain.to_dict()
    measured.save(tmp_path / "a.json", CHOSEN)
    assert Localization.load(tmp_path / "a.json") == measured
    assert Selection.load(tmp_path / "a.json") == CHOSEN
    plain.save(tmp_path / "b.json")
    assert Localization.load(tmp_path / "b.json").faithfulness is None
    assert replace(measured, faithfulness=None) == plain


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"selection": {"components": ["L7.mlp"]}}, "L7.mlp"),
        ({"selection": []}, "a selection has the keys"),
        ({"least": "a"}, "'a' stands where a number should"),
        ({"seed": 1.5}, "its seed is 1.5"),
        ({"left_out": [3]}, r"the prompts that were left out are \[3\]"),
        ({"left_out": "p"}, "the prompts that were left out are 'p'"),
        ({"necessity": {"own": None, "random": None}}, "stands where a figure should"),
        ({"necessity": {"own": None, "random": None, "draws": 3}}, "the draws are 3"),
        ({"necessity": {"own": None, "random": None, "draws": [True]}}, "True stands where a number should"),
        ({"necessity": {"own": 3, "random": None, "draws": []}}, "3 stands where a figure should"),
        (
            {"necessity": {"own": {"value": 1, "n": 0, "low": 1, "high": 1}, "random": None, "draws": []}},
            "0 stands where a count should",
        ),
        (
            {"necessity": {"own": {"value": 1e999, "n": 2, "low": 1, "high": 1}, "random": None, "draws": []}},
            "inf stands where a number should",
        ),
        ({"necessity": {"own": {"value": 1, "n": 2}, "random": None, "draws": []}}, "stands where a figure should"),
        ({"other": 1}, "it has the keys"),
    ],
)
def test_a_damaged_record_is_refused(change, told):
    data = result(faithfulness=record()).to_dict()
    data["faithfulness"] |= change
    with pytest.raises(SelectionError, match=told):
        Localization.from_dict(data)
