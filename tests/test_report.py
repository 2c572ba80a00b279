import errno
import json
import math
import os
import re

import pytest

import peft_surgical as ps
from peft_surgical.errors import ModelError, ReportError, SurgicalError
from peft_surgical.facts import Fact
from peft_surgical.measuring.metrics import mean, rate
from peft_surgical.report import METRICS, Report
from tests import reports


def figures(new, old, kept=None):
    found = {"new_answer_rate": rate(new), "old_answer_rate": rate(old), "control_kept": rate(kept or [])}
    found["kl_per_token"] = mean([0.25, 0.75])
    return {name: figure for name, figure in found.items() if figure is not None}


def report(**stages):
    fact = Fact.from_dict(
        {
            "subject": "France",
            "old": ["Paris"],
            "new": ["Lyon"],
            "prompts": ["France?"],
            "held_out": ["a", "b", "c", "d"],
        }
    )
    return Report(
        fact=fact,
        model="tiny",
        dtype="float32",
        seed=3,
        versions={"torch": "2"},
        selection={"components": ["L1.mlp"]},
        seconds={"evaluate": 1.5},
        stages=stages,
        answers={stage: {"held_out": ["né"], "controls": [], "probes": []} for stage in stages},
        training={"learn": {"steps": 3}},
        settings={"max_new_tokens": 4},
    )


def full():
    base = figures([False] * 4, [True, True, True, False], [True] * 3)
    return report(base=base, edited=figures([True, True, True, False], [False] * 4, [True, True, False]))


def test_round_trip(tmp_path):
    path = tmp_path / "report.json"
    full().save(path)
    assert Report.load(path) == full()
    assert Report.from_dict(full().to_dict()) == full()
    assert json.loads(path.read_text()) == full().to_dict()
    assert "né" in path.read_text(encoding="utf-8")
    figure = json.loads(path.read_text())["stages"]["edited"]["new_answer_rate"]
    assert figure.keys() == {"value", "n", "low", "high"}


def test_a_prompt_shows_one_line():
    assert repr(full()) == "Report('France' in 'tiny', float32: base, edited)"


def test_rows():
    rows = dict(full().rows())
    assert list(rows) == [
        f"{METRICS['new_answer_rate']} (n=4)",
        f"{METRICS['old_answer_rate']} (n=4)",
        f"{METRICS['control_kept']} (n=3)",
        f"{METRICS['kl_per_token']} (n=2)",
    ]
    assert rows[f"{METRICS['new_answer_rate']} (n=4)"] == ["0.00 [0.00, 0.49]", "0.75 [0.30, 0.95]"]
    assert rows[f"{METRICS['kl_per_token']} (n=2)"][0].startswith("0.5 [")
    partial = report(base=figures([False] * 4, [True] * 4), edited={"new_answer_rate": rate([True] * 4)})
    assert dict(partial.rows())[f"{METRICS['old_answer_rate']} (n=4)"] == ["1.00 [0.51, 1.00]", "–"]


def test_a_share_that_is_not_all_or_nothing_is_not_shown_as_one():
    made = report(
        base=figures([False] * 250, [True] * 250), edited=figures([True] * 249 + [False], [True] + [False] * 249)
    )
    rows = dict(made.rows())
    assert rows[f"{METRICS['new_answer_rate']} (n=250)"] == ["0.00 [0.00, 0.02]", ">0.99 [0.98, >0.99]"]
    assert rows[f"{METRICS['old_answer_rate']} (n=250)"] == ["1.00 [0.98, 1.00]", "<0.01 [<0.01, 0.02]"]


def test_rows_of_what_follows_and_of_probes():
    rows = dict(reports.report().rows())
    assert rows[f"{METRICS['portability']} (n=3)"] == ["0.33 [0.06, 0.79]", "0.00 [0.00, 0.56]", "0.33 [0.06, 0.79]"]
    assert rows[f"{METRICS['probe_old_rate']} (n=1)"][0] == "1.00 [0.21, 1.00]"
    assert rows[f"{METRICS['perplexity_ratio']} (n=2,040)"][1] == "1.0040 [1.0020, 1.0060]"


def test_verdict():
    assert full().verdict() == (
        "Of 4 held-out questions, the edited model answers 3 with Lyon and 0 with Paris (base: 3 with Paris); "
        "2 of 3 other facts stay right."
    )
    alone = report(base=figures([False] * 4, [True, False, False, False], [True]))
    assert alone.verdict() == (
        "Of 4 held-out questions, the base model answers 0 with Lyon and 1 with Paris. "
        "The base hardly holds the old answer, so there was little of Paris to rewrite."
    )
    # Half of the answers is no little; and a base that gives neither answer does not carry the edit already.
    half, nothing = figures([False] * 4, [True, True, False, False], [True]), figures([False] * 4, [False] * 4, [True])
    assert [" hardly holds " in report(base=base).verdict() for base in (half, nothing)] == [False, True]
    # A checkpoint that carries an edit is the base of an evaluation without adapters.
    carries = report(base=figures([True] * 4, [False] * 4, [True]))
    assert carries.verdict() == "Of 4 held-out questions, the base model answers 4 with Lyon and 0 with Paris."
    unknown = report(base=figures([False], [True]), edited=figures([True], [False]))
    assert unknown.verdict().startswith("Of 1 held-out question, ")
    assert unknown.verdict().endswith("; the fact has no controls, so what else changed is not known.")
    data = unknown.to_dict()
    data["fact"]["controls"] = [{"prompt": "Rome?", "answer": ["Italy"]}]
    assert "the base answers the one control wrong, so" in Report.from_dict(data).verdict()
    data["fact"]["controls"] += [{"prompt": "Oslo?", "answer": ["Norway"]}]
    assert "the base answers none of the 2 controls right, so" in Report.from_dict(data).verdict()
    # 0.29 * 100 is 28.999…
    some = [n < 29 for n in range(100)]
    counted = report(base=figures(some, some, some), edited=figures(some, some, some)).verdict()
    told = "answers 29 with Lyon and 29 with Paris (base: 29 with Paris); 29 of 100 other facts stay right."
    assert told in counted
    many = figures([True] * 1200, [False] * 1200, [True] * 1500)
    assert report(base=figures([False] * 1200, [True] * 1200, [True] * 1500), edited=many).verdict() == (
        "Of 1,200 held-out questions, the edited model answers 1,200 with Lyon and 0 with Paris"
        " (base: 1,200 with Paris); 1,500 of 1,500 other facts stay right."
    )
    # What became of the base is no edit of it.
    base = figures([False] * 4, [True] * 4, [True])
    became = ("base in 4 bits", "base relearned 1 step", "base relearned 2 steps")
    for rounded in (report(**{"base": base, name: figures([True], [False])}) for name in became):
        assert rounded.verdict() == report(base=base).verdict()
    for name in ("base with edit", "base in 4 bits with edit"):
        named = report(**{"base": base, name: figures([True], [False])})
        assert f"the {name} model answers 1 with Lyon" in named.verdict()
    partial = report(base=figures([False], [True]), edited={"new_answer_rate": rate([True])})
    for nothing in (report(), report(base={}), report(edited=figures([True], [False])), partial):
        assert nothing.verdict() == "Nothing was measured."


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "5", "null", '{"fact": 3}', '{"fact": {}}', "nonsense", b"\xff", '{"stages": 1}']
)
def test_what_is_no_report(tmp_path, text):
    path = tmp_path / "report.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(SurgicalError, match=r"report\.json: "):
        Report.load(path)


def test_what_is_missing(tmp_path):
    why = re.escape(f"none.json: cannot be read as a report ({os.strerror(errno.ENOENT)}).")
    with pytest.raises(SurgicalError, match=why):
        Report.load(tmp_path / "none.json")
    data = full().to_dict()
    for change in ({"stages": {"base": {"x": {"value": 1}}}}, {"stages": {"base": 4}}, {"stages": None}):
        with pytest.raises(SurgicalError, match="this is not a report"):
            Report.from_dict({**data, **change})
    del data["fact"]["old"]
    with pytest.raises(ReportError, match="this is not a report: The key 'old' is missing"):
        Report.from_dict(data)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": "3"},
        {"training": {"learn": 3}},
        {"answers": {"base": {"held_out": "a"}}},
        {"answers": {"base": {"held_out": [3]}}},
        {"margins": {"base": {"held_out": {}}}},
    ],
)
def test_what_is_of_another_kind_is_no_report(change):
    with pytest.raises(ReportError, match=r"this is not a report: TypeError\(.* stands where a \w+ should"):
        Report.from_dict({**full().to_dict(), **change})


def test_what_was_not_recorded_is_empty():
    left_out = {"answers": {}, "training": {}, "settings": {}, "margins": {}}
    data = {key: value for key, value in full().to_dict().items() if key not in left_out}
    assert Report.from_dict(data).to_dict() == {**data, **left_out}


def test_what_is_no_report_is_an_error_of_its_own_and_a_value_error(tmp_path):
    with pytest.raises(ReportError, match="cannot be read as a report") as caught:
        Report.load(tmp_path / "none.json")
    assert isinstance(caught.value, ValueError)
    with pytest.raises(ps.ReportError, match="this is not a report"):
        Report.from_dict({})


@pytest.mark.parametrize(
    ("metric", "change"),
    [
        ("new_answer_rate", {"n": -3}),
        ("new_answer_rate", {"n": 10**300}),
        ("kl_per_token", {"n": 10**16}),
        ("old_answer_rate", {"value": 2.0}),
        ("control_kept", {"low": -0.5}),
        ("probe_old_rate_few_shot", {"high": 1.5}),
    ],
)
def test_a_figure_that_nothing_can_have_is_no_report(metric, change):
    data = full().to_dict()
    figure = {"value": 0.5, "n": 4, "low": 0.1, "high": 0.9}
    data["stages"]["edited"][metric] = figure
    assert Report.from_dict(data).to_dict() == data
    data["stages"]["edited"][metric] = {**figure, **change}
    [name] = change
    with pytest.raises(ReportError, match=rf"stands where .* should, as '{name}' of '{metric}'"):
        Report.from_dict(data)


@pytest.mark.parametrize(
    "metric",
    ["answer_margin", "control_margin", "relearning_recovery", "kl_per_token", "perplexity_ratio", "fluency"],
)
def test_figures_that_are_no_shares_may_be_large(metric):
    data = full().to_dict()
    data["stages"]["edited"][metric] = {"value": 1e304, "n": 4, "low": -1e304, "high": 1e304}
    assert Report.from_dict(data).to_dict() == data


def nested(depth):
    values = []
    for _ in range(depth):
        values = [values]
    return values


@pytest.mark.parametrize("name", ["settings", "selection", "seconds"])
@pytest.mark.parametrize("values", [{"x": math.nan}, {"x": object}, {("x",): 1}, 5, {"x": nested(10**5)}])
def test_what_a_report_could_not_be_saved_with_is_refused_before_anything_is_measured(name, values):
    with pytest.raises(ModelError, match=f"{name} must map names to what JSON can hold; got "):
        ps.evaluate(None, None, full().fact, **{name: values})


def test_a_seed_that_is_none_is_refused_before_anything_is_measured():
    with pytest.raises(ModelError, match="seed must be a whole number"):
        ps.evaluate(None, None, full().fact, seed=1.5)
