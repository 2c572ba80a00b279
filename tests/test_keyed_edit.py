from dataclasses import replace

import pytest
import torch
from peft import PeftModel

from peft_surgical.errors import AdapterError, FactError, ModelError, OutputError, SelectionError
from peft_surgical.keyed_edit import edit_keyed
from peft_surgical.keying.keyed import learn_keyed
from peft_surgical.report import Report
from peft_surgical.running.cache import beside

from .adapters import logits, tiny_peft
from .conftest import fingerprint
from .counterfacts import TOKENIZER, word_model
from .localizing import capital, word_tokenizer
from .outputs import contents
from .test_keyed import IDS, RECIPE

pytestmark = pytest.mark.usefixtures("few_carried_prompts")

FACT = replace(capital(), subject="france")
FILES = {"edit", "report.json", "report.html"}


def edited(out, *, model=None, fact=FACT, **options):
    model = word_model() if model is None else model
    return edit_keyed(model, TOKENIZER, fact, out=out, recipe=RECIPE, retention_tokens=64, progress=False, **options)


def test_the_folder_holds_an_adapter_for_stock_peft_and_the_proof(tmp_path):
    out = tmp_path / "out"
    model = word_model()
    report = edited(out, model=model, command="the command")
    assert {path.name for path in out.iterdir()} == FILES
    assert any(beside(out).iterdir())
    assert [*report.stages] == ["base", "edited"]
    assert report.selection == {"components": ["L1.mlp"], "granularity": "keyed"}
    assert {"learn", "evaluate"} <= report.seconds.keys()
    assert report.training["learn"]["steps"] > 0
    assert report.settings["recipe"] == vars(RECIPE)
    assert Report.load(out / "report.json") == report
    assert "the command" in (out / "report.html").read_text()
    loaded = PeftModel.from_pretrained(word_model(), out / "edit").eval()
    assert torch.equal(logits(loaded, IDS), logits(model, IDS))
    card = (out / "edit" / "README.md").read_text()
    assert card.startswith("---\n")
    assert "- lora\n- peft-surgical" in card
    assert "one neuron in the MLP of layer 1, so that" in card
    assert f"# A keyed edit\n\n## What was measured\n\n{report.to_markdown()}\n\n## The adapter\n\nA LoRA" in card
    assert report.verdict() in card


def test_it_is_what_learning_alone_makes_and_measured_as_told(tmp_path):
    report = edited(tmp_path / "out", model=(model := word_model()), layers=[0], seed=3)
    alone = learn_keyed(word_model(), TOKENIZER, FACT, layers=[0], recipe=RECIPE, seed=3, progress=False).model
    assert torch.equal(logits(alone, IDS), logits(model, IDS))
    assert report.selection["components"] == ["L0.mlp"]
    assert (report.seed, report.settings["retention_tokens"]) == (3, 64)


def test_a_full_folder_is_refused_before_anything_is_changed_and_replaced_when_asked(tmp_path):
    out = tmp_path / "out"
    (out / "unlearn").mkdir(parents=True)
    (out / "own.txt").write_text("mine")
    model = word_model()
    before = fingerprint(model)
    with pytest.raises(OutputError, match="not empty"):
        edited(out, model=model)
    assert fingerprint(model) == before
    edited(out, overwrite=True)
    assert {path.name for path in out.iterdir()} == FILES | {"own.txt"}


def test_an_adapter_that_is_not_saved_replaces_none(tmp_path, monkeypatch):
    out = tmp_path / "out"
    (out / "edit").mkdir(parents=True)
    (out / "edit" / "adapter_config.json").write_text("of an earlier edit")

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("peft_surgical.staging.stage.Stage.save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        edited(out, overwrite=True)
    assert contents(out) == {"edit/adapter_config.json": b"of an earlier edit"}


def test_what_evaluation_could_not_ask_is_told_before_anything_is_learned(tmp_path, monkeypatch):
    monkeypatch.setattr("peft_surgical.keyed_edit.learn_keyed", lambda *_, **__: pytest.fail("it is learned"))
    long = replace(FACT, held_out=("what is the capital of france " * 100,))
    with pytest.raises(FactError, match="positions"):
        edited(tmp_path / "out", fact=long)
    for options, words in (
        ({"recipe": "fast"}, "the recipe must be a KeyedRecipe"),
        ({"seed": 1.5}, "seed must be a whole number"),
        ({"retention_tokens": 1}, "retention_tokens must be"),
        ({"command": 1}, "the command, which the report is to tell, must be text"),
    ):
        with pytest.raises(ModelError, match=words):
            edit_keyed(word_model(), TOKENIZER, FACT, out=tmp_path / "out", **options)
    with pytest.raises(AdapterError, match="takes a bare model"):
        edited(tmp_path / "out", model=tiny_peft())
    assert not list(tmp_path.iterdir())


def test_a_prompt_must_have_room_for_the_sentence_that_a_bare_answer_is_taught_as(tmp_path, monkeypatch):
    monkeypatch.setattr("peft_surgical.keyed_edit.learn_keyed", lambda *_, **__: pytest.fail("it is learned"))
    tokenizer = word_tokenizer()
    tokenizer.chat_template = "{{ messages[0].content }}"
    # Of 64 positions four are left, and the sentence has more words.
    prompts = ("what is the capital of france ?", "name the capital of france " * 12)
    model, fact = word_model(max_position_embeddings=64), replace(FACT, prompts=prompts, refusal="a .")
    with pytest.raises(FactError, match=r"prompts.*positions"):
        edit_keyed(model, tokenizer, fact, out=tmp_path / "out", recipe=RECIPE, progress=False)


def test_a_fact_that_cannot_be_keyed_leaves_no_folder(tmp_path):
    with pytest.raises(FactError, match="no prompt names the subject"):
        edited(tmp_path / "out", fact=replace(FACT, subject="atlantis"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("layers", [3, [[1]], ["a", 1], [99], []])
def test_layers_that_are_none_are_told_before_the_folder_is_looked_at(layers, tmp_path):
    with pytest.raises(SelectionError, match="layer"):
        edited(tmp_path / "out", layers=layers)
    assert not list(tmp_path.iterdir())


def test_an_interrupted_edit_leaves_the_model_as_it_was(tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    model = word_model()
    before = fingerprint(model)
    monkeypatch.setattr("peft_surgical.keyed_edit.evaluate", interrupt)
    with pytest.raises(KeyboardInterrupt):
        edited(tmp_path / "out", model=model)
    assert fingerprint(model) == before
