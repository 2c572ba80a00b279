import json
from dataclasses import replace

import pytest
import yaml
from click.testing import CliRunner

import peft_surgical as ps
from benchmarks import selection
from benchmarks.comparison import HEADS, Comparison, asked_digest, row_names
from benchmarks.journal import read_records
from benchmarks.selection import SHOWN, choose, main, results, spread, table
from peft_surgical.measuring.states import adapter_state
from peft_surgical.stages import RECIPES
from peft_surgical.staging.stage import LEARN

from .conftest import fingerprint
from .localizing import capital, planted, without, word_tokenizer
from .test_plugins import BUILT_IN

SHORT = ps.Recipe(steps=2, general=4, neighbours=2, variants=2)


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setitem(RECIPES, LEARN, SHORT)


def compare(model=None, fact=None, recipe=SHORT):
    return Comparison(model or planted(), word_tokenizer(), fact or capital(), recipe, prompts=2, seed=0)


def invoke(*arguments):
    return CliRunner().invoke(main, list(map(str, arguments)))


def last_line(result):
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout.strip().splitlines()[-1])


@pytest.fixture
def given(model_folder, fact_file, tmp_path):
    return ["--model", model_folder, "--fact", fact_file, "--prompts", 2, "--out", tmp_path / "rows.jsonl"]


def test_the_rows_are_every_built_in_scorers_chance_and_layers():
    names = row_names(3, heads=False)
    ranked = sorted(BUILT_IN - {"random"}) + [f"random:draw={draw}" for draw in range(3)]
    assert names == ["early_mlps", "late_mlps", "all_mlps", "all", *ranked, "top10", "paper"]
    assert row_names(3, heads=True) == [*names, *(name + HEADS for name in ranked)]


def test_the_first_stage_leaves_nothing_to_begin_with(monkeypatch):
    monkeypatch.undo()
    assert RECIPES[LEARN].undo == 1


def test_selections_of_one_budget_have_as_many_mlps():
    comparison = compare()
    chosen = {name: comparison.selection(name) for name in row_names(2, heads=True)}
    assert {granularity for name, (_, granularity) in chosen.items() if name != "paper"} == {"component"}
    assert chosen["early_mlps"][0].components == ("L0.mlp", "L1.mlp")
    assert chosen["late_mlps"][0].components == ("L1.mlp", "L2.mlp")
    assert chosen["all_mlps"][0].components == ("L0.mlp", "L1.mlp", "L2.mlp")
    assert len(chosen["all"][0].components) == 3 * 5
    assert comparison.budget == 2 * 32
    for name in [*sorted(BUILT_IN - {"random"}), "random:draw=0", "random:draw=1"]:
        alone, mixed = chosen[name][0], chosen[name + HEADS][0]
        assert (len(alone.mlps), alone.heads) == (2, ()), name
        assert mixed.heads, name
        assert 64 - 8 < 32 * len(mixed.mlps) + 8 * len(mixed.heads) <= 64, name
    # What carries the planted fact.
    assert chosen["attribution"][0].components[0] == "L2.mlp"
    assert chosen["attribution" + HEADS][0].components[:2] == comparison.localization("attribution").top(2).components
    assert chosen["top10"][0].components == comparison.localization("verified").top(10).components
    paper, granularity = chosen["paper"]
    assert (len(paper.heads), len(paper.mlps), granularity) == (2, 3, "module")
    assert len({chosen[f"random:draw={draw}{HEADS}"][0].components for draw in (0, 1)}) == 2


def test_a_row_is_what_evaluate_says_of_that_edit():
    recipe = replace(SHORT, steps=20)
    found = compare(recipe=recipe).row("late_mlps")
    model, tokenizer = planted(), word_tokenizer()
    config = ps.SurgicalIA3Config(components=["L1.mlp", "L2.mlp"], projections=["in"], task_type="CAUSAL_LM")
    stage = ps.learn(model, tokenizer, capital(), config, recipe=recipe, progress=False)
    states = {"base": adapter_state(stage.model, []), "edited": adapter_state(stage.model, [LEARN])}
    report = ps.evaluate(stage.model, tokenizer, capital(), states=states, progress=False)
    expected = report.stages["edited"]
    assert set(expected) == set(found["figures"])
    for metric, figure in expected.items():
        assert found["figures"][metric] == pytest.approx(figure.to_dict()), metric
    assert expected["kl_per_token"].value > 1e-6
    assert (found["scales"], found["components"]) == (64, ["L1.mlp", "L2.mlp"])
    assert found["said"]["held_out"] == tuple(report.answers["edited"]["held_out"])


def test_a_row_does_not_depend_on_those_before_it_and_leaves_no_trace():
    model = planted()
    before = fingerprint(model)
    comparison = compare(model)
    comparison.row("early_mlps")
    assert fingerprint(model) == before
    second, alone = comparison.row("late_mlps"), compare().row("late_mlps")
    assert fingerprint(model) == before
    for found in (second, alone):
        del found["seconds"], found["training"]["seconds"]
    assert second["training"] == pytest.approx(alone["training"])
    assert second["said"] == alone["said"]
    for metric, figure in alone["figures"].items():
        assert second["figures"][metric] == pytest.approx(figure), metric


def test_a_run_from_the_command_line(given):
    names = ["early_mlps", "all", "lookup", "random"]
    result = invoke(*given, "--seeds", 2, *(part for name in names for part in ("--only", name)))
    found = last_line(result)
    assert list(found) == ["base", "early_mlps", "all", "lookup", "random:draw=0", "random:draw=1", "random"]
    for name, figures in found.items():
        for metric in SHOWN[: 2 if name == "base" else None]:
            # The planted model cannot answer the control, so nothing is counted over it.
            if metric != "control_kept":
                assert set(figures[metric]) == {"value", "n", "low", "high"}, (name, metric)
    assert found["early_mlps"]["components"] == ["L0.mlp", "L1.mlp"]
    assert [found[name]["scales"] for name in ("base", "early_mlps", "lookup", "random", "all")] == [
        0,
        64,
        64,
        64,
        192,
    ]
    draws = [found[f"random:draw={draw}"]["kl_per_token"]["value"] for draw in (0, 1)]
    assert found["random"]["kl_per_token"] == pytest.approx(spread(draws))
    lines = [line for line in result.stdout.splitlines() if line.startswith("| ")]
    assert lines[0].startswith("| Selection | scales | new_answer_rate (n=1) |")
    assert "| all | 192 (3.00 × the budget) |" in result.stdout
    assert lines[1].startswith("| base | 0 |")
    assert lines[1].endswith("| – | – | – |")


def test_a_run_goes_on_where_it_was_interrupted(given, monkeypatch):
    arguments = [*given, "--only", "early_mlps", "--only", "late_mlps"]
    whole, out = last_line(invoke(*arguments)), given[-1]
    out.write_text("".join(out.read_text().splitlines(keepends=True)[:-1]))
    measured, real = [], Comparison.row
    monkeypatch.setattr(Comparison, "row", lambda self, name: measured.append(name) or real(self, name))
    assert last_line(invoke(*arguments)) == whole
    assert measured == ["late_mlps"]
    assert [record.get("row") for record in read_records(out) if record["kind"] == "row"] == [
        "base",
        "early_mlps",
        "late_mlps",
    ]
    # More rows may be added; other settings may not.
    assert "all_mlps" in last_line(invoke(*arguments, "--only", "all_mlps"))
    refused = invoke(*arguments, "--steps", 1)
    assert refused.exit_code == 1
    assert "holds a run with recipe" in refused.output


def test_a_scorer_that_cannot_score_the_fact_is_left_out(given):
    given[3].write_text(yaml.safe_dump(without("contrast", "retain").to_dict()))
    with pytest.warns(ps.PluginWarning):
        result = invoke(*given, "--only", "early_mlps", "--only", "specificity")
    assert list(last_line(result)) == ["base", "early_mlps"]
    assert "specificity is left out: the scorer 'specificity' failed" in result.stderr


def test_several_facts_stand_under_their_files_names(given, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump(capital(new=["rome"]).to_dict()))
    found = last_line(invoke(*given, "--fact", other, "--only", "early_mlps"))
    assert {file: list(rows) for file, rows in found.items()} == {
        name: ["base", "early_mlps"] for name in ("fact.yaml", "other.yaml")
    }
    twin = tmp_path / "folder" / "fact.yaml"
    twin.parent.mkdir()
    twin.write_text(other.read_text())
    refused = invoke(*given, "--fact", twin, "--only", "early_mlps")
    assert refused.exit_code == 1
    assert "files of one name" in refused.output


def test_rows_are_chosen_by_name():
    every = row_names(2, heads=True)
    assert choose([], every) == every
    assert choose(["random", "early_mlps"], every) == ["early_mlps", "random:draw=0", "random:draw=1"]
    assert choose([f"random{HEADS}"], every) == [f"random:draw=0{HEADS}", f"random:draw=1{HEADS}"]
    for name in ("nonsense", f"early_mlps{HEADS}", "random:draw=2"):
        with pytest.raises(ps.SurgicalError, match=f"there is no row '{name}'".replace("+", r"\+")):
            choose([name], every)


def row(value, scales=10):
    return {"figures": {"new_answer_rate": {"value": value, "n": 9, "low": 0, "high": 1}}, "scales": scales} | {
        "components": ["L0.mlp"]
    }


def test_chance_is_the_mean_and_the_range_of_its_draws():
    rows = {
        "early_mlps": row(1.0),
        "random:draw=0": row(0.2),
        "random:draw=1": row(0.5),
        f"random:draw=0{HEADS}": row(0),
    }
    found = results(rows)
    assert found["random"]["new_answer_rate"] == pytest.approx({"value": 0.35, "n": 2, "low": 0.2, "high": 0.5})
    assert f"random{HEADS}" not in found
    assert table(found, 10).splitlines()[-1] == "| random | 10 | 0.350 [0.200, 0.500] | – | – | – | – |"
    assert "new_answer_rate (n=9)" in table(found, 10)


def test_the_steps_can_be_fewer(given, monkeypatch):
    seen = []
    monkeypatch.setattr(selection, "Comparison", lambda *a, **k: seen.append(a[3]) or Comparison(*a, **k))
    last_line(invoke(*given, "--only", "early_mlps", "--steps", 1))
    assert seen == [replace(SHORT, steps=1)]


def test_what_training_may_not_ask_decides_a_row():
    fact = capital()
    probed = replace(fact, probes=(*fact.probes, ps.Probe("write a short poem about rain .", "few_shot")))
    assert asked_digest(probed) != asked_digest(fact)
    other_kind = replace(fact, probes=(*fact.probes, ps.Probe("write a short poem about rain .", "contradiction")))
    assert asked_digest(probed) == asked_digest(other_kind)
