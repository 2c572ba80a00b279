import copy
import json

import pytest
import torch
from click.testing import CliRunner

from benchmarks import chat
from benchmarks.baselines import Questions, build
from benchmarks.chat import Pair, main, row
from peft_surgical.running.generation import generate_answers
from peft_surgical.staging.whole_answers import whole_answer

from .conftest import fingerprint
from .localizing import capital, planted, word_tokenizer
from .tiny import tiny_ids

pytestmark = pytest.mark.usefixtures("few_carried_prompts")

FACT = capital(answer="the capital of france is lyon .")
TOKENIZER = word_tokenizer()


@pytest.mark.parametrize(
    "method", ["rome", "rome_cov", "rome_code", "memit", "alphaedit", "surgical", "surgical_keyed"]
)
def test_what_methods_are_given(method):
    model = planted()
    tokenizer, asked = chat._request(model, TOKENIZER, FACT, "lora", 0)
    assert tokenizer is TOKENIZER
    assert isinstance(asked, Questions)
    assert (asked.prompts, asked.new, asked.fact) == (FACT.prompts, FACT.answer, FACT.training)
    plain, sentence = chat._request(model, TOKENIZER, FACT, method, 0)
    assert plain.chat_template is None
    assert (sentence.prompt, sentence.new) == ("the capital of france is", "lyon")
    assert sentence.prompts[0] == sentence.prompt
    assert all(prompt.endswith(sentence.prompt) for prompt in sentence.prompts)
    assert len(sentence.prompts) == 1 + chat.CONTEXTS
    # None of either is asked in evaluation.
    evaluated = {*FACT.held_out, *(control.prompt for control in FACT.controls)}
    assert evaluated.isdisjoint([*asked.prompts, *sentence.prompts])
    assert not any(made.fact.may_train_on(prompt) for made in (asked, sentence) for prompt in evaluated)


def test_a_bare_answer_is_the_same_sentence_for_all_methods():
    bare, chatting = capital(answer="lyon"), copy.copy(TOKENIZER)
    chatting.chat_template = "{{ messages[0]['content'] }}"
    _, asked = chat._request(planted(), chatting, bare, "lora", 0)
    assert asked.new == whole_answer(bare) == "The capital of france is lyon."
    _, sentence = chat._request(planted(), chatting, bare, "rome", 0)
    assert (sentence.subject, sentence.prompt, sentence.new) == ("france", "The capital of france is", "lyon")


def test_a_pair_is_one_model_in_two_states():
    base, edited, ids = planted(), planted(), tiny_ids() % len(TOKENIZER)
    edited.get_output_embeddings().weight.data.neg_()
    pair = Pair(base, edited)
    assert (pair.device, pair.config) == (base.device, base.config)
    for model, state in ((base, "base"), (edited, "edited")):
        with pair.states[state]():
            assert torch.equal(pair(input_ids=ids).logits, model(input_ids=ids).logits)
    assert pair.current is base


def test_a_row_by_hand():
    model, base = planted().requires_grad_(False), planted()
    before = fingerprint(model)
    controls = {"controls": generate_answers(model, TOKENIZER, [control.prompt for control in FACT.controls])}
    found = row(model, base, TOKENIZER, FACT, build("lora", 5e-2), controls, 0)
    assert fingerprint(model) == before
    # So high a rate teaches something, and teaches it everywhere.
    assert found["figures"]["old_answer_rate"]["value"] == 0
    assert found["figures"]["kl_per_token"]["value"] > 0.01
    assert found["said"]["held_out"] != tuple(generate_answers(model, TOKENIZER, FACT.held_out))
    unchanged = row(model, base, TOKENIZER, FACT, build("base"), controls, 0)
    assert unchanged["figures"]["kl_per_token"]["value"] == 0
    assert unchanged["figures"]["old_answer_rate"]["value"] == 1


def test_a_model_that_an_edit_breaks_has_a_row_without_a_divergence(capsys):
    model, base = planted().requires_grad_(False), planted()
    controls = {"controls": generate_answers(model, TOKENIZER, [control.prompt for control in FACT.controls])}
    found = row(model, base, TOKENIZER, FACT, build("lora", 1e30), controls, 0)
    assert found["figures"]["new_answer_rate"]["value"] == 0
    assert "kl_per_token" not in found["figures"]
    assert "not finite" in capsys.readouterr().err


def test_the_benchmark_goes_on_where_it_stopped(tmp_path, model_folder, fact_text, monkeypatch):
    fact = tmp_path / "fact.yaml"
    fact.write_text(fact_text.replace("answer: lyon.", "answer: the capital of france is lyon ."))
    arguments = ["--model", model_folder, "--fact", fact, "--out", tmp_path / "out.jsonl"]
    first = CliRunner().invoke(main, list(map(str, [*arguments, "--method", "lora"])))
    assert first.exit_code == 0, first.output
    monkeypatch.setattr("benchmarks.baselines.lora.Lora.edit", None)
    both = ["--method", "lora", "--method", "rome"]
    result = CliRunner().invoke(main, list(map(str, [*arguments, *both])))
    assert result.exit_code == 0, result.output
    found, earlier = (json.loads(run.stdout.splitlines()[-1])["fact.yaml"] for run in (result, first))
    assert list(found) == ["base", "lora", "rome"]
    assert found["lora"] == earlier["lora"]
    assert found["rome"]["kl_per_token"]["value"] > 0
    assert "| rome |" in result.stdout
    # Another run's rows are of other settings.
    other = CliRunner().invoke(main, list(map(str, [*arguments, "--method", "lora", "--bits", "8"])))
    assert other.exit_code == 1
    assert "out.jsonl" in other.output
    before = (tmp_path / "out.jsonl").read_text()
    faster = CliRunner().invoke(main, list(map(str, [*arguments, "--method", "lora", "--learning-rate", "lora=1"])))
    assert faster.exit_code == 1
    assert "holds lora with learning_rate 0.0002, and this run has 1.0" in faster.output
    assert (tmp_path / "out.jsonl").read_text() == before
    refused = CliRunner().invoke(main, list(map(str, [*arguments, "--method", "lora", "--learning-rate", "ft=1"])))
    assert "a learning rate is given for 'ft', which does not run" in refused.output


def test_edits_are_asked_again_after_their_weights_were_rewritten(tmp_path, model_folder, fact_text):
    fact = tmp_path / "fact.yaml"
    fact.write_text(fact_text.replace("answer: lyon.", "answer: the capital of france is lyon ."))
    arguments = ["--model", model_folder, "--fact", fact, "--out", tmp_path / "out.jsonl", "--method", "ft_l"]
    result = CliRunner().invoke(main, list(map(str, [*arguments, "--bits", "8", "--relearn", "1"])))
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout.splitlines()[-1])["fact.yaml"]
    states = ("in 8 bits", "relearned 1 steps")
    for figures in found.values():
        assert {f"{which}_answer_rate {state}" for which in ("new", "old") for state in states} <= set(figures)
    assert "| new_answer_rate in 8 bits (n=" in result.stdout
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert all(set(row["said"]["after"]) == set(states) for row in rows if row["kind"] == "row")
