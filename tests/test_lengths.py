from __future__ import annotations

import math
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

import peft_surgical as ps
from peft_surgical import evaluation
from peft_surgical.architectures import residual_factor
from peft_surgical.errors import FactError, ModelError
from peft_surgical.measuring.retention import measure_retention
from peft_surgical.running.generation import generate_answers
from peft_surgical.texts.lengths import check_row, check_turned, padding, turning_length
from tests.localizing import capital, planted, word_tokenizer
from tests.tiny import tiny_granite, tiny_model, tiny_sighted

QUESTIONS = ["what is the capital of france ?", "where is rome ?"]


def padded_beyond(model):
    """A tokenizer that was given a padding token of which the model was not told."""
    tokenizer = word_tokenizer()
    tokenizer.add_tokens([f"x{number}" for number in range(model.config.vocab_size)])
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert tokenizer.pad_token_id >= model.config.vocab_size
    return tokenizer


def test_padding_is_a_token_that_the_model_has():
    config = SimpleNamespace(vocab_size=20)
    assert padding(config, SimpleNamespace(pad_token_id=19)) == 19
    assert padding(config, SimpleNamespace(pad_token_id=20)) == 0
    assert padding(config, SimpleNamespace(pad_token_id=None)) == 0
    assert padding(object(), SimpleNamespace(pad_token_id=20)) == 20


def test_a_row_is_of_the_models_tokens():
    config = SimpleNamespace(vocab_size=20)
    check_row(config, [0, 19])
    check_row(config, [])
    with pytest.raises(ModelError, match="gives token 20, and the model has embeddings of 20 tokens only: take"):
        check_row(config, [0, 20, 3])


@pytest.mark.parametrize(
    ("rope", "own", "length"),
    [
        ({"rope_type": "longrope", "original_max_position_embeddings": 16}, 32, 16),
        ({"rope_type": "longrope"}, 32, 32),
        ({"rope_type": "longrope"}, None, math.inf),
        # One for each kind of layer, as models with two have them.
        ({"full": {"rope_type": "longrope"}, "sliding": {"rope_type": "default"}}, 32, 32),
        ({"rope_type": "default", "original_max_position_embeddings": 16}, 32, math.inf),
        (None, 32, math.inf),
    ],
)
def test_positions_are_turned_alike_up_to_what_longrope_began_with(rope, own, length):
    config = SimpleNamespace(rope_parameters=rope, original_max_position_embeddings=own)
    assert turning_length(config) == length
    check_turned(config, [0] * min(length, 99))
    if length < 99:
        with pytest.raises(ModelError, match=rf"have {length + 1} tokens, and beyond {length} LongRoPE turns"):
            check_turned(config, [0] * (length + 1))


def test_a_model_that_names_no_positions_has_no_bound():
    for positions in (-1, 0, None):
        check_row(SimpleNamespace(max_position_embeddings=positions), [0] * 10**4)


def test_answers_do_not_depend_on_padding():
    model = planted()
    beyond = padded_beyond(model)
    assert generate_answers(model, beyond, QUESTIONS) == generate_answers(model, word_tokenizer(), QUESTIONS)


def test_what_is_learned_does_not_depend_on_padding(few_carried_prompts):
    def learned(tokenizer_of):
        model = planted()
        config = ps.SurgicalIA3Config(components=["L1.mlp"], task_type="CAUSAL_LM")
        stage = ps.unlearn(model, tokenizer_of(model), capital(), config, progress=False)
        return [p.detach().clone() for p in stage.model.parameters() if p.requires_grad]

    for mine, theirs in zip(learned(padded_beyond), learned(lambda model: word_tokenizer()), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize(
    "work",
    [
        lambda model, tokenizer: generate_answers(model, tokenizer, QUESTIONS),
        lambda model, tokenizer: ps.localize(model, tokenizer, capital(), ["attribution"], progress=False),
        lambda model, tokenizer: ps.learn(
            model, tokenizer, capital(), ps.SurgicalIA3Config(components=["L1.mlp"]), progress=False
        ),
        lambda model, tokenizer: ps.learn_keyed(model, tokenizer, capital(), progress=False),
        lambda model, tokenizer: ps.evaluate(model, tokenizer, capital(), progress=False),
    ],
    ids=["answers", "localize", "learn", "learn_keyed", "evaluate"],
)
def test_another_models_tokenizer_is_told(work):
    with pytest.raises(ModelError, match=r"the tokenizer gives token \d+, and the model has embeddings of 20 tokens"):
        work(tiny_model("llama", vocab_size=20), word_tokenizer())


def test_a_model_that_sees_has_the_positions_and_tokens_of_its_text_part():
    model, tokenizer = tiny_sighted(max_position_embeddings=64, vocab_size=64), word_tokenizer()
    assert len(generate_answers(model, tokenizer, QUESTIONS, max_new_tokens=2)) == 2
    with pytest.raises(ModelError, match=r"a prompt of \d+ tokens and an answer of 60 do not fit the model's 64"):
        generate_answers(model, tokenizer, QUESTIONS, max_new_tokens=60)
    with pytest.raises(ModelError, match="gives token 64, and the model has embeddings of 64 tokens only"):
        check_row(model.config, [64])


LONG = "what is the capital of france ? " * 10


@pytest.mark.parametrize(
    ("key", "asked"),
    [
        ("held_out", LONG),
        ("controls", {"prompt": LONG, "answer": ["italy"]}),
        ("probes", {"prompt": LONG, "kind": "doubt"}),
        ("portability", {"kind": "one_hop", "prompt": LONG, "answer": ["the color of the sky"]}),
    ],
)
def test_evaluating_says_which_prompt_is_too_long_before_it_asks_any(key, asked, monkeypatch):
    def fail(*_, **__):
        raise AssertionError

    monkeypatch.setattr(evaluation, "generate_answers", fail)
    model = tiny_model("llama", max_position_embeddings=48)
    told = rf"^'what is .* in '{key}' and its answer have \d+ tokens; the model has 48 positions\.$"
    with pytest.raises(FactError, match=told):
        ps.evaluate(model, word_tokenizer(), capital(**{key: [asked]}), retention_tokens=0, progress=False)


def test_asking_says_which_prompt_is_too_long():
    model = tiny_model("llama", max_position_embeddings=48)
    told = r"^a prompt of \d+ tokens and an answer of 4 do not fit the model's 48 positions: 'what is .*'\.$"
    with pytest.raises(ModelError, match=told):
        generate_answers(model, word_tokenizer(), {"who ?": 1, LONG: 2}, max_new_tokens=4)


def test_windows_of_text_fit_a_model_that_sees():
    found = measure_retention(
        tiny_sighted(max_position_embeddings=8), word_tokenizer(), {"base": nullcontext}, text="the sky is " * 12
    )
    # 36 tokens in windows of 8, the first of each unpredicted.
    assert found["base"]["kl_per_token"].n == 36 - 5


def test_a_factor_on_the_residual_stream_is_read_off_the_text_part():
    model = tiny_granite(0.5)
    whole = SimpleNamespace(get_text_config=lambda: model.config)
    assert residual_factor(SimpleNamespace(config=whole)) == residual_factor(model) == 0.5
