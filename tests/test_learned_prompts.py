"""Adapters that learn a prompt: what stands before each row shifts its places, and no row's depend on another's."""

import pytest
import torch
from peft import PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, get_peft_model

from peft_surgical.errors import ModelError
from peft_surgical.evaluation import evaluate
from peft_surgical.measuring.fluency import TOKENS, check_fluency_fits, continuations
from peft_surgical.measuring.retention import measure_retention
from peft_surgical.measuring.states import adapter_state
from peft_surgical.running.generation import generate_ids

from .localizing import capital, word_tokenizer
from .test_generation import greedy
from .tiny import tiny_ids, tiny_model

TOKENIZER = word_tokenizer()
KINDS = {
    "prompt": (PromptTuningConfig, {}),
    "p": (PromptEncoderConfig, {"encoder_hidden_size": 16}),
    "prefix": (PrefixTuningConfig, {}),
}


def learned(kind, family="llama", **options):
    config, own = KINDS[kind]
    model = get_peft_model(
        tiny_model(family, **options), config(task_type="CAUSAL_LM", num_virtual_tokens=4, **own)
    ).eval()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "prompt" in name:
            parameter.data.normal_(0, 0.3, generator=generator)
    return model


@pytest.mark.parametrize("family", ["llama", "qwen2", "opt"])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_an_answer_behind_a_learned_prompt_does_not_depend_on_its_batch(kind, family):
    model = learned(kind, family)
    rows = [tiny_ids(1, length, seed=length)[0].tolist() for length in (3, 5, 9, 17, 5)]
    expected = [greedy(model, row, 8) for row in rows]
    assert len({tuple(answer) for answer in expected}) > 1
    for batch_size in (2, 5):
        assert generate_ids(model, TOKENIZER, rows, max_new_tokens=8, batch_size=batch_size) == expected


def test_texts_behind_a_learned_prompt_do_not_depend_on_their_batch(monkeypatch):
    model = learned("prompt", vocab_size=len(TOKENIZER))
    prompts = ["tell me about france", "france", "name it", "what is the capital of france", "rome"]
    widths, run = [], model.generate

    def spy(**kwargs):
        assert kwargs["attention_mask"].all()
        widths.append(len(kwargs["input_ids"]))
        return run(**kwargs)

    monkeypatch.setattr(model, "generate", spy)
    texts = continuations(model, TOKENIZER, prompts)
    assert widths == [1, 2, 1, 1]
    # The first batch draws first, whatever comes behind it.
    assert texts[0] == continuations(model, TOKENIZER, prompts[:1])[0]
    assert len(texts) == len(prompts) == len(set(texts))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_unrelated_text_is_read_behind_a_learned_prompt(kind):
    model = learned(kind, "opt", vocab_size=len(TOKENIZER), max_position_embeddings=16)
    text = "the capital of france is paris . " * 20
    states = {"base": adapter_state(model, []), "edited": adapter_state(model, ["default"])}
    found = measure_retention(model, TOKENIZER, states, text=text, tokens=30)["edited"]
    # In windows of the model's positions less the four learned tokens.
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"][:30]
    kl = []
    for row in (ids[:12], ids[12:24], ids[24:]):
        edited = model(torch.tensor([row])).logits[0, -len(row) : -1].log_softmax(-1)
        with model.disable_adapter():
            base = model(torch.tensor([row])).logits[0, :-1].log_softmax(-1)
        kl += (base.exp() * (base - edited)).sum(-1).tolist()
    assert found["kl_per_token"].n == len(kl) == 27
    assert found["kl_per_token"].value == pytest.approx(sum(kl) / 27, rel=1e-4)
    assert found["kl_per_token"].value > 1e-3


def test_a_learned_prompt_can_be_evaluated():
    model = learned("prompt", vocab_size=len(TOKENIZER))
    report = evaluate(model, TOKENIZER, capital(), retention_tokens=40, progress=False)
    assert report.stages["edited"]["kl_per_token"].value > 0


def test_no_margin_is_measured_of_names_that_a_learned_prompt_leaves_no_room_for():
    fact = capital(new=["the new town"])
    [prompt] = fact.held_out
    # An answer of one token has room, and one of three has none.
    long = len(TOKENIZER(prompt)["input_ids"]) + 4 + 1
    for more in (0, 2):
        model = learned("prompt", vocab_size=len(TOKENIZER), max_position_embeddings=long + more)
        options = {"max_new_tokens": 1, "retention_tokens": 0, "progress": False}
        report = evaluate(model, TOKENIZER, fact, margins=True, **options)
        assert ("answer_margin" in report.stages["edited"]) == bool(more)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_learned_prompt_takes_positions(kind, family):
    model = learned(kind, family, max_position_embeddings=24, **({"n_positions": 24} if family == "gpt2" else {}))
    row = tiny_ids(1, 12, seed=1)[0].tolist()
    assert len(generate_ids(model, TOKENIZER, [row], max_new_tokens=8)[0]) <= 8
    told = "a prompt of 12 tokens, 4 that an adapter learned before it, and an answer of 9 do not fit the model's 24"
    with pytest.raises(ModelError, match=told):
        generate_ids(model, TOKENIZER, [row], max_new_tokens=9)


@pytest.mark.parametrize("kind", KINDS)
def test_a_learned_prompt_that_is_switched_off_takes_none(kind):
    model = learned(kind, max_position_embeddings=16)
    rows = [tiny_ids(1, 8, seed=1)[0].tolist()]
    with model.disable_adapter():
        assert generate_ids(model, TOKENIZER, rows, max_new_tokens=8) == [greedy(model, rows[0], 8)]
    with pytest.raises(ModelError, match="4 that an adapter learned before it"):
        generate_ids(model, TOKENIZER, rows, max_new_tokens=8)


def test_texts_behind_a_learned_prompt_fit_its_positions():
    bare = tiny_model("llama", vocab_size=len(TOKENIZER), max_position_embeddings=TOKENS + 3)
    check_fluency_fits(bare, TOKENIZER, ["france"])
    model = learned("prompt", vocab_size=len(TOKENIZER), max_position_embeddings=TOKENS + 3)
    with pytest.raises(ModelError, match="4 that an adapter learned before it, and an answer of 100 do not fit"):
        check_fluency_fits(model, TOKENIZER, ["france"])


def test_a_learned_prompt_that_takes_all_positions_leaves_no_text_to_read():
    model = learned("prefix", vocab_size=len(TOKENIZER), max_position_embeddings=4)
    states = {"base": adapter_state(model, [])}
    assert measure_retention(model, TOKENIZER, states, text="the capital of france", tokens=4) == {"base": {}}
