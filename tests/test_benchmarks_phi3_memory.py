import json

import pytest
from click.testing import CliRunner

import peft_surgical as ps
from benchmarks.phi3_memory import COLUMNS, at_depth, main, measure


def test_the_line_by_hand():
    found = [{"layers": n, "weights_mib": 10 + 5 * n, "above_mib": 7 - 0.5 * n, "exact_mib": 3} for n in (2, 4, 8)]
    expected = {"layers": 32, "weights_mib": 170, "above_mib": -9, "exact_mib": 3}
    assert at_depth(32, found) == pytest.approx(expected)


def test_a_small_run():
    arguments = ["--width", "96", "--layers", "1", "--layers", "2", "--prompts", "2", "--tokens", "8"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    one, two, all_of_it = json.loads(result.stdout.splitlines()[-1])
    assert [each["layers"] for each in (one, two, all_of_it)] == [1, 2, 32]
    # Query, key, value and output projections, gate, up and down, two norms; bfloat16.
    layer = 4 * 96**2 + 3 * 96 * 256 + 2 * 96
    assert (two["weights_mib"] - one["weights_mib"]) * 2**20 == pytest.approx(2 * layer)
    assert all_of_it["weights_mib"] * 2**20 == pytest.approx(2 * (2 * 32064 * 96 + 96 + 32 * layer))
    assert all(each["above_mib"] > 0 for each in (one, two))
    assert all(each.keys() == COLUMNS.keys() for each in (one, two, all_of_it))
    *_, header, _, first, _, last, _ = result.stdout.splitlines()
    assert header == f"| {' | '.join(COLUMNS.values())} |"
    assert first.startswith(f"| 1 | {one['weights_mib']:,.0f} | {one['above_mib']:,.0f} | ")
    assert last.startswith("| 32 (from the lines) |")


def test_one_depth_is_refused():
    assert CliRunner().invoke(main, ["--layers", "2"]).exit_code == 2


def test_each_phase_is_localized_by_itself_with_its_own_scorers_and_prompts(monkeypatch):
    asked = []

    def localize(model, tokenizer, fact, scorers, *, prompts, progress):
        asked.append((scorers, prompts, len(fact.prompts)))

    monkeypatch.setattr(ps, "localize", localize)
    assert measure(96, 1, 3, 8).keys() == COLUMNS.keys()
    assert asked == [(None, None, 3), (["attribution"], None, 3), (["logit_drop"], 1, 3)]
