import copy
import json
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from peft import get_peft_model

import peft_surgical as ps
from benchmarks.baselines import values
from benchmarks.baselines.method import STEPS
from benchmarks.speed import beside as beside_module
from benchmarks.speed import case as case_module
from benchmarks.speed import editing, training
from benchmarks.speed import memory as memory_module
from benchmarks.speed import once as once_module
from benchmarks.speed import scaling as scaling_module
from benchmarks.speed.__main__ import main
from benchmarks.speed.case import Case, Sizes, matrix_product_peak
from benchmarks.speed.editing import beginning, memory
from benchmarks.speed.passes import TOKENS
from benchmarks.speed.scaling import Grid, exponent, made_up_fact, scaling, wide_model, word_tokenizer
from benchmarks.speed.stock import fit_with_trainer, mean_loss, padded, with_stock_adapter
from benchmarks.speed.table import lines
from benchmarks.speed.training import learn
from peft_surgical.editing import EDIT_SCORERS
from peft_surgical.errors import FactError
from peft_surgical.running import computing
from peft_surgical.running.generation import generate_answers
from peft_surgical.running.replicas import is_alone, replicate
from peft_surgical.running.suffix import SuffixRunner
from peft_surgical.stages import RECIPES
from peft_surgical.staging.whole_answers import whole_answer
from peft_surgical.texts.prompts import EncodedAnswer, encode_answer
from tests import localizing

from .conftest import fingerprint
from .localizing import capital, planted
from .tiny import tiny_model

RECIPE = {"steps": 2, "general": 0, "everyday": 3, "neighbours": 2, "variants": 0, "retain_tokens": 1}
RECIPE |= {"compute_dtype": "float32"}
SMALL = Sizes(stage_steps=4, trainer_steps=2, own_steps=2, repeats=1, components=3, prompts=1, answers=1)


@pytest.fixture(autouse=True)
def small_squares(monkeypatch):
    monkeypatch.setattr(training, "matrix_product_peak", partial(matrix_product_peak, sizes=(128, 256)))


@pytest.fixture
def case():
    return Case(planted(), localizing.word_tokenizer(), capital(), replace(SMALL, changed=RECIPE))


def test_the_alternative_trains_as_many_scales_on_the_same_modules(case):
    ours, stock = get_peft_model(case.fresh(), case.config), with_stock_adapter(case)
    counts = [sum(p.numel() for p in model.parameters() if p.requires_grad) for model in (ours, stock)]
    assert counts[0] == counts[1] > 0
    assert case.modules("input") == [f"model.layers.{layer}.mlp.up_proj" for layer in (0, 1, 2)]
    assert set(case.modules("input", "output")) == set(case.config.selections)


@pytest.mark.parametrize(("seconds", "sizes"), [(1.0, [8, 8, 8]), (0.5, [8, 8, 8, 16, 16, 16])])
def test_large_squares_are_left_out_where_small_ones_say_they_would_take_seconds(monkeypatch, seconds, sizes):
    taken = []

    def timed(function, matrix, other):
        taken.append(len(matrix))
        return function(matrix, other), seconds * (len(matrix) / 8) ** 3

    monkeypatch.setattr(case_module, "timed", timed)
    peaks = matrix_product_peak(torch.device("cpu"), sizes=(8, 16))
    assert taken == sizes * 2
    assert peaks == {"float32": 2 * 8**3 / seconds, "bfloat16": 2 * 8**3 / seconds}


def test_a_case_is_as_if_just_loaded(case):
    before = fingerprint(case.model)
    stage = learn(case)
    assert stage.record.steps > 0
    assert fingerprint(case.model) == before


@torch.no_grad()
def test_mean_loss_is_per_answer_token():
    model = tiny_model("llama")
    rows = [EncodedAnswer((5, 6, 7, 8), 2), EncodedAnswer((9, 10, 11), 2)]
    losses = []
    for ids, start in (((5, 6, 7, 8), 2), ((9, 10, 11), 2)):
        log_probs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        losses += [-float(log_probs[position - 1, ids[position]]) for position in range(start, len(ids))]
    assert len(losses) == 3
    assert mean_loss(model, rows) == pytest.approx(sum(losses) / 3, rel=1e-5)
    # The batch's own loss, over the answers' tokens, is the same.
    assert model(**padded(rows)).loss.item() == pytest.approx(sum(losses) / 3, rel=1e-5)


def test_both_sides_learn_the_same_sentence(case):
    chatting = copy.copy(case.tokenizer)
    chatting.chat_template = "{{ messages[0]['content'] }}"
    asked = "name the capital, of france ."
    bare = replace(case, tokenizer=chatting, fact=capital(answer="lyon"))
    assert whole_answer(bare.fact) == learn(bare).to_dict()["answer"] != "lyon"
    taught = [encode_answer(chatting, prompt, whole_answer(bare.fact)) for prompt in bare.fact.prompts]
    assert bare.rows == taught
    with pytest.warns(ps.FactWarning, match="is not trained on"):
        fewer = capital(answer="lyon", held_out=[asked])
    assert replace(bare, fact=fewer).rows == [taught[0], taught[2]]


def test_a_trainer_is_stopped_at_the_target_or_at_the_last_step(case):
    passed = fit_with_trainer(case, steps=7, target=100.0)
    assert (passed.steps, passed.reached) == (len(case.rows), True)
    capped = fit_with_trainer(case, steps=4, target=-1.0)
    assert (capped.steps, capped.reached) == (4, False)
    assert capped.seconds > 0
    assert not fit_with_trainer(case, steps=1).reached


def test_a_bound_is_called_one(case):
    found = training.stage_to_the_same_loss(case)
    assert found["lower_bound"] == (not found["other_reached"])
    assert found["other_reached"] == (found["other_loss"] <= found["loss"])
    assert found["ratio"] == found["other_seconds"] / found["seconds"]
    assert found["seconds_of_a_step_of_prompts"] > 0


def test_a_step_of_prompts_alone_takes_each_once_and_nothing_else(case, monkeypatch):
    seen, retained = [], learn(case).retained
    monkeypatch.setattr(training, "learn", lambda *given: seen.append(given[1]) or learn(*given))
    training.step_of_prompts(case, retained)
    (recipe,) = seen
    assert (recipe.fact_batch, recipe.near_batch, recipe.far_batch) == (len(case.rows), 0, 0)


def test_a_base_keeps_what_it_says_right_and_nonsense_does_not(case):
    said = generate_answers(case.model, case.tokenizer, ["where is rome ?"])[0].split()[0]
    controls = [{"prompt": "where is rome ?", "answer": [said]}, {"prompt": "who wrote hamlet ?", "answer": ["x"]}]
    case = replace(case, fact=capital(controls=controls, retain=["what color has the sky ?"]))
    kept, nonsense = training._kept(case, case.model), planted()
    nonsense.get_output_embeddings().weight.data.neg_()
    assert (kept["value"], kept["n"]) == (1, 1)
    assert training._kept(case, nonsense)["value"] == 0


def test_operations_of_a_step_are_counted(case):
    found = training.step_at_equal_batch(case)
    assert found["rows"] > len(case.rows)
    assert found["reached_gflops"] > 0
    assert 0 < found["share_of_peak"] <= found["share_of_own_dtype_peak"] < 1
    assert found["ratio"] == found["other_seconds"] / found["seconds"]


def test_an_exponent_is_that_of_the_power():
    sizes = [2, 4, 8, 16]
    assert exponent(sizes, [3 * size**1.5 for size in sizes]) == pytest.approx(1.5)
    assert exponent(sizes, [7.0] * 4) == pytest.approx(0)


def test_what_does_not_grow_is_no_part_of_the_cost(monkeypatch):
    scored, clock = iter([0.5, 0.25, 0.75]), iter(range(100))

    def localize(*_, prompts=None, **__):
        seconds = 9.0 if prompts else next(scored)
        return SimpleNamespace(tables={"attribution": SimpleNamespace(notes={"seconds": seconds})})

    monkeypatch.setattr(ps, "localize", localize)
    monkeypatch.setattr(scaling_module, "LOCALIZERS", ("attribution",))
    monkeypatch.setattr(scaling_module, "time", SimpleNamespace(perf_counter=lambda: 0.001 * next(clock) ** 2))
    found = scaling_module.cost({"prompts": 2, "length": 8, "layers": 1, "width": 64}, 0)
    # Six steps end at 0, 1, 4, 9, 16 and 25 ms; what is done once is before the first end.
    assert found == {"step": pytest.approx(0.001), "attribution": 0.25}


@pytest.mark.parametrize(("seconds", "counted"), [([3, 1, 2, 0], 3), ([8, 1], 1), ([4, 5, 1], 2)])
def test_what_takes_long_is_measured_less_often(seconds, counted):
    left = iter(seconds)
    assert scaling_module.least(lambda: next(left), runs=3, enough=8) == min(seconds[:counted])
    assert len([*left]) == len(seconds) - counted


def test_the_table_shows_both_exponents():
    seconds, exponents = {"step": [1.0, 1.0, 2.0]}, {"exponents": {"step": 0.5}, "last_exponents": {"step": 1.0}}
    *_, head, row = lines({"scaling": {"layers": {"sizes": [2, 4, 8], "seconds": seconds, **exponents}}})
    assert head.split()[2:5] == ["exponent", "the", "last"]
    assert row.split() == ["layers", "step", "0.50", "1.00", "2:", "1.000", "4:", "1.000", "8:", "2.000"]


def test_one_axis_grows_at_a_time(monkeypatch):
    grid = Grid(prompts=(1, 2, 4), length=(8, 16), layers=(1, 2), width=(64, 128))
    assert [point["prompts"] for point in grid.points("prompts")] == [1, 2, 4]
    fixed = {"length": 16, "layers": 2, "width": 128}
    assert all({**point, **fixed} == point for point in grid.points("prompts"))
    # Once each: no figure is looked at.
    monkeypatch.setattr(scaling_module, "least", partial(scaling_module.least, runs=1))
    found = scaling(Grid(prompts=(2, 4), length=(8, 12), layers=(1, 2), width=(64, 128)))
    assert set(found) == {"prompts", "length", "layers", "width"}
    assert found["prompts"]["sizes"] == [2, 4]
    assert set(found["layers"]["exponents"]) == {"step", "attribution", "logit_drop"}
    # Of two sizes these are the last two.
    assert found["layers"]["exponents"] == found["layers"]["last_exponents"]
    assert all(value > 0 for axis in found.values() for column in axis["seconds"].values() for value in column)


@pytest.mark.parametrize(("prompts", "length"), [(3, 4), (70, 16)])
def test_made_up_prompts_differ_and_have_the_length(prompts, length):
    fact, tokenizer = made_up_fact(prompts, length), word_tokenizer()
    rows = [tokenizer(prompt)["input_ids"] for prompt in fact.prompts]
    assert len({tuple(row) for row in rows}) == prompts
    assert {len(row) for row in rows} == {length}
    assert all(tokenizer.unk_token_id not in row for row in rows)


def test_a_wide_model_is_as_wide_as_asked():
    model = wide_model(192, 1)
    assert model.config.model_type == "phi3"
    assert model.model.layers[0].mlp.down_proj.weight.shape == (192, 512)
    assert torch.isfinite(model(torch.tensor([[5, 6, 7]])).logits).all()


def test_rome_continues_a_sentence_that_names_the_subject():
    assert beginning(capital(answer="the capital of france is lyon .")) == ("france", "the capital of france is")
    assert beginning(capital(answer="France has its capital in lyon .")) == ("France", "France has its capital in")
    assert beginning(capital()) == ("france", "what is the capital of france ?")
    held_out = ["the capital of france is", *capital().held_out]
    asked = capital(answer="the capital of france is lyon .", held_out=held_out, prompts=["where is france ruled ?"])
    assert beginning(asked) == ("france", "where is france ruled ?")
    with pytest.raises(FactError, match="no prompt names the subject 'norway'"):
        beginning(replace(capital(), subject="norway"))


def test_no_method_pays_for_what_a_process_does_once(case, monkeypatch):
    taken, own = [], (ps.learn_by_subject, ps.learn_keyed_by_subject)

    def built(name):
        whole = (ps.learn_by_subject, ps.learn_keyed_by_subject) == own
        return SimpleNamespace(edit=lambda *_: taken.append((name, values.STEPS, whole)) or nullcontext())

    monkeypatch.setattr(editing, "build", built)
    found = editing.of_one_sentence(case, ("rome", "surgical"))
    assert set(found) == {"prompt", "rome", "surgical"}
    assert taken == [("rome", 2, False), ("surgical", 2, False), ("rome", STEPS, True), ("surgical", STEPS, True)]


def test_the_other_side_of_an_edit_by_hand(case, monkeypatch):
    given = replace(case, fact=capital(probes=[{"prompt": "is it paris ?", "kind": "direct"}]))
    monkeypatch.setattr(editing, "fit_with_trainer", lambda case, steps: SimpleNamespace(steps=steps, seconds=3.0))
    monkeypatch.setattr(editing, "timed", lambda function, case, prompts: (None, 5.0 * len(prompts)))
    where = {"other_seconds_a_prompt": 7.0, "prompts_default": 3, "components": 15, "components_one_by_one": 3}
    found = editing.end_to_end(given, {"seconds": 10.0, "seconds_following": 5.0}, where)
    # Two stages of four steps at 1.5 s; three prompts; every question in each of three states.
    asked = len(given.fact.held_out) + len(given.fact.controls) + 1
    assert found["other_phases"] == {"training": 12.0, "localization": 21.0, "evaluation": 3 * asked * 5.0}
    other = 33.0 + 15.0 * asked
    assert (found["ratio"], found["ratio_following"]) == (other / 10, other / 5)
    assert found["ratio_localized_on_one_prompt"] == (other - 14.0) / 10
    assert found["extrapolated"]["answers"] == [1, 3 * asked]


def test_which_way_is_measured_against_which(case, monkeypatch):
    prefix_once, has_plain_attention = SuffixRunner.prefix_once, computing.has_plain_attention

    def learn(*_):
        seconds = 1.0
        if is_alone():
            seconds = 2.0
        elif SuffixRunner.prefix_once is not prefix_once:
            seconds = 3.0
        elif computing.has_plain_attention is not has_plain_attention:
            seconds = 4.0
        return SimpleNamespace(record=SimpleNamespace(seconds=seconds))

    for module in (beside_module, once_module):
        monkeypatch.setattr(module, "learn", learn)
    monkeypatch.setattr(beside_module, "generate_answers", lambda *_, **__: None)
    assert beside_module.beside(case)["steps"] == {"seconds": 1.0, "other_seconds": 2.0, "ratio": 2.0}
    found = once_module.once(case)
    assert found["prefix"]["steps"] == {"seconds": 1.0, "other_seconds": 3.0, "ratio": 3.0}
    assert found["attention"]["steps"] == {"seconds": 1.0, "other_seconds": 4.0, "ratio": 4.0}


def test_all_rows_in_one_run(model_folder, fact_file):
    arguments = ["--model", model_folder, "--fact", fact_file, "--following", fact_file, "--stage-steps", 3]
    arguments += ["--recipe", json.dumps(RECIPE)]
    arguments += ["--trainer-steps", 2, "--components", 3, "--prompts", 1, "--repeats", 1, "--own-steps", 1]
    parts = ["stage", "step", "passes", "beside", "once", "localization", "edit", "rome", "keyed", "sentence"]
    result = CliRunner().invoke(main, [*map(str, arguments), *(word for part in parts for word in ("--part", part))])
    assert result.exit_code == 0, result.output
    *table, last = result.stdout.splitlines()
    found = json.loads(last)
    assert set(found) >= {*parts, "machine", "sizes", "seed", "commit", "versions"}
    assert (found["fact"], found["recipe"]) == (str(fact_file), RECIPE)
    assert set(found["machine"]) >= {"processor", "threads", "capability"}
    edit, shown = found["edit"], "\n".join(table)
    assert edit["ratio"] == pytest.approx(sum(edit["other_phases"].values()) / edit["seconds"])
    assert edit["seconds"] >= edit["seconds_without_evaluation"] > 0
    assert edit["ratio_following"] == pytest.approx(sum(edit["other_phases"].values()) / edit["seconds_following"])
    assert edit["seconds_following"] >= edit["seconds_without_evaluation_following"] > 0
    assert edit["extrapolated"]["trainer_steps"] == [2, 6]
    assert edit["extrapolated"]["components"] == [3, 15]
    assert found["rome"]["ratio"] == found["rome"]["seconds"] / found["rome"]["other_seconds"]
    keyed = found["keyed"]
    assert keyed["ratio"] == keyed["seconds"] / found["rome"]["other_seconds"]
    assert keyed["edit"]["seconds"] > keyed["seconds"] == keyed["edit"]["phases"]["learn"] > 0
    sentence = found["sentence"]
    assert sentence["other_seconds"] == found["rome"]["other_seconds"]
    assert sentence["ratio"] == sentence["seconds"] / sentence["other_seconds"]
    assert sentence["ratio_keyed"] == sentence["seconds_keyed"] / sentence["other_seconds"]
    assert found["localization"]["largest_error"] < 1e-4
    assert found["localization"]["top10_overlap_of"].keys() == set(EDIT_SCORERS)
    assert [*found["passes"]["tokens"]] == [*map(str, TOKENS)]
    for cost in found["passes"]["tokens"].values():
        assert min(cost[name]["seconds"] for name in ("step", "curvature")) > 0
    beside = found["beside"]
    assert beside["replicas"] == len(replicate(torch.nn.Linear(1, 1)))
    for name in ("steps", "before", "answers"):
        assert beside[name]["ratio"] == beside[name]["other_seconds"] / beside[name]["seconds"]
    for own in (found["once"][name][row] for name in ("prefix", "attention") for row in ("steps", "before")):
        assert own["ratio"] == own["other_seconds"] / own["seconds"]
    for words in (
        "same loss",
        "rows side by side",
        "2 trainer steps to 6",
        "3 of 15 components",
        "evaluation, against ROME",
        "its subject's key",
        "of the machine's peak",
        "tokens a pass",
    ):
        assert words in shown


def test_memory_is_measured_on_a_share_of_the_prompts(model_folder, fact_file, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["memory", str(model_folder), str(fact_file), "float32", json.dumps(RECIPE), "3"])
    memory_module.main()
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["prompts"] == 1
    assert found["mib"] > 0


def test_memory_is_measured_as_the_option_has_it(model_folder, fact_file, monkeypatch, capsys):
    given = {}

    def edited(*_, recipe, **__):
        given.update(recipe, alone=is_alone())

    monkeypatch.setattr("peft_surgical.edit", edited)
    monkeypatch.setattr(memory_module, "give_back_freed", lambda: given.update(given_back=True))
    arguments = ["memory", str(model_folder), str(fact_file), "float32", "{}", "1", "low"]
    monkeypatch.setattr(sys, "argv", arguments)
    memory_module.main()
    assert given.pop("given_back")
    assert given.pop("alone")
    assert given == {stage: replace(own, pass_tokens=256) for stage, own in RECIPES.items()}
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["prompts"] > 1


def test_a_process_that_was_killed_is_told(monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, -9, "", ""))
    with pytest.raises(ps.SurgicalError, match="measuring memory failed: its process ended with status -9"):
        memory("demo", "fact.yaml", "float32", {})


def test_a_changed_recipe_leaves_what_else_the_stages_have():
    sizes = Sizes(changed={"general": 60})
    assert sizes.recipes == {stage: replace(own, general=60) for stage, own in RECIPES.items()}
    assert sizes.keyed_recipe == replace(ps.KeyedRecipe(), general=60)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "no/such"], "Error: cannot load the model 'no/such'"),
        (["--dtype", "half"], "Error: unknown dtype 'half'"),
        (["--recipe", "{steps"], "is no JSON of fields of a recipe"),
        (["--recipe", '{"pace": 1}'], "unexpected keyword argument 'pace'"),
        (["--recipe", '{"fact_batch": 0}'], "fact_batch"),
    ],
)
def test_mistakes_are_told_in_a_sentence(arguments, message):
    result = CliRunner().invoke(main, ["--part", "step", *arguments])
    assert result.exit_code in (1, 2)
    assert isinstance(result.exception, SystemExit)
    assert message in result.output


def test_the_table_shows_memory_both_ways():
    prompts = {"quarter": {"prompts": 6}, "all": {"prompts": 24}}
    found = {"mib": 3278.4, "mib_quarter": 3270, "mib_low": 1423, "mib_low_quarter": 1401, "prompts": prompts}
    shown = "\n".join(lines({"memory": found}))
    for words in ("3278", "with 6 prompts 3270 MiB", "--low-memory", "with 6 prompts 1401 MiB, with all 24 1423 MiB"):
        assert words in shown
