import json
from dataclasses import replace

import pytest
from click.testing import CliRunner
from peft import PeftModel, get_peft_model

import peft_surgical as ps
from benchmarks import unseen
from benchmarks.unseen import main, measure, others, read
from peft_surgical.staging import retain
from peft_surgical.staging.retain import base_answers

from .adapters import perturb, saved
from .staged import COMPONENTS, FACT, RECIPE, TOKENIZER
from .tiny import tiny_model

GENERAL = [
    "who wrote hamlet ?",
    "what color has the sky ?",
    "where is rome ?",
    "the town of italy ?",
    "spain , tell me",
]


@pytest.fixture(autouse=True)
def few_prompts(monkeypatch):
    for module in (retain, unseen):
        monkeypatch.setattr(module, "everyday_prompts", lambda: ["tell me about the sky ."])
        monkeypatch.setattr(module, "general_prompts", lambda: GENERAL)


def edit(path, spread):
    model = get_peft_model(tiny_model("llama"), ps.SurgicalIA3Config(components=COMPONENTS))
    perturb(model, spread=spread)
    return saved(model, path)


def measured(path):
    return measure(tiny_model("llama"), TOKENIZER, FACT, path, replace(RECIPE, general=2), 0)


def test_others_are_those_that_are_neither_kept_nor_asked():
    recipe = replace(RECIPE, general=1)
    # The sky is in the fact's own list; a control asks where Rome is.
    assert others(FACT.training, replace(RECIPE, general=2), 0) == GENERAL[3:]
    # As many as training might keep, and no more.
    assert others(FACT.training, recipe, 0) == GENERAL[3:4]
    # What names the subject is about the fact.
    assert others(replace(FACT, subject="italy", contrast=()).training, recipe, 0) == GENERAL[4:]
    assert others(FACT.training, replace(RECIPE, general=5), 0) == []


def test_scales_of_one_move_nothing(tmp_path):
    found = measured(edit(tmp_path, 0.0))
    assert list(found) == ["near, kept", "general, others", "controls"]
    for figures in found.values():
        assert figures["kl_per_token"].value == pytest.approx(0, abs=1e-6)
        assert figures["unchanged"].value == 1


def test_the_divergence_is_that_of_whole_distributions(tmp_path):
    path = edit(tmp_path, 0.4)
    found = measured(path)
    assert found["controls"]["kl_per_token"].n == len(FACT.controls) == 1
    base = tiny_model("llama")
    rows = base_answers(base, TOKENIZER, [FACT.controls[0].prompt], max_new_tokens=RECIPE.retain_tokens)
    [before] = read(base, rows)
    [after] = read(loaded(path), rows)
    before, after = before.log_softmax(-1), after.log_softmax(-1)
    expected = float((before.exp() * (before - after)).sum(-1).mean())
    # The base's 64 likeliest of 128 tokens are told apart, the others taken together.
    assert 0 < found["controls"]["kl_per_token"].value <= expected
    assert found["controls"]["kl_per_token"].value == pytest.approx(expected, rel=0.2)
    same = bool((before.argmax(-1) == after.argmax(-1)).all())
    assert found["controls"]["unchanged"].value == same


def loaded(path):
    return PeftModel.from_pretrained(tiny_model("llama"), path).eval()


def test_from_the_command_line(tmp_path, model_folder):
    fact = tmp_path / "france.json"
    fact.write_text(json.dumps(FACT.to_dict()))
    arguments = [str(fact), "--model", str(model_folder), "--edits", str(tmp_path)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    assert "edit the facts into" in result.output
    model, _ = ps.load_model(model_folder)
    saved(get_peft_model(model, ps.SurgicalIA3Config(components=["L1.mlp"])), tmp_path / "france" / "edit")
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout.strip().splitlines()[-1])
    assert set(found["france"]["controls"]["kl_per_token"]) == {"value", "n", "low", "high"}
    assert "| france | controls | 1 |" in result.stdout
