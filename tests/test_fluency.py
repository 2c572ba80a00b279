import math

import pytest
import torch

from peft_surgical.errors import ModelError
from peft_surgical.measuring import fluency
from peft_surgical.measuring.fluency import (
    TOKENS,
    check_fluency_fits,
    continuations,
    fluency_metrics,
    fluency_prompts,
    n_gram_entropy,
    repetition,
    words,
)
from peft_surgical.running.generation import left_pad
from peft_surgical.texts.prompts import encode
from peft_surgical.texts.topics import topic_prompts

from .conftest import fingerprint
from .localizing import capital, word_tokenizer
from .offloading import offloaded
from .tiny import tiny_model

TOKENIZER = word_tokenizer()
PROMPTS = ["tell me about france", "what is the capital"]


@pytest.mark.parametrize(
    ("text", "entropy"),
    [
        # Bigrams ab, bc, cd and trigrams abc, bcd: log2(3) and log2(2) bits.
        ("a b c d", (2 / 3 * math.log2(3) + 4 / 3) / 2),
        # Bigrams ab twice, ba twice; trigrams aba twice, bab once: 1 bit and log2(3) - 2/3.
        ("a b a b a", (2 / 3 + 4 / 3 * (math.log2(3) - 2 / 3)) / 2),
        ("a a a a a a", 0),
        # Two words are one bigram and no trigram.
        ("a b", 0),
        ("", 0),
    ],
)
def test_entropy_by_hand(text, entropy):
    assert n_gram_entropy(text) == pytest.approx(entropy, abs=1e-12)


def test_repetition_by_hand():
    assert repetition("a b c d e") == 0
    # abcd, bcda, cdab, dabc, abcd: one of five was there.
    assert repetition("a b c d a b c d") == pytest.approx(1 / 5)
    assert repetition("a a a a a") == 0.5
    assert repetition("a b c") == 0


def test_words_are_split_as_a_reader_does():
    assert words("France's capital, Paris.") == ["France's", "capital", ",", "Paris", "."]
    assert words("over_ and\nover") == ["over_", "and", "over"]
    # Scripts without spaces have a character where others have a word.
    assert words("法国的首都 is 2") == ["法", "国", "的", "首", "都", "is", "2"]


def test_marks_are_a_part_of_their_word():
    assert words("हिन्दी भाषा है।") == ["हिन्दी", "भाषा", "है", "।"]
    assert words("தமிழ்") == ["தமிழ்"]
    assert words("cafe\u0301, cafés") == ["café", ",", "cafés"]
    assert words("x\u0304y is n̄") == ["x\u0304y", "is", "n̄"]
    # Of what is no word, and in scripts without spaces, they stand by themselves.
    assert words("❤\ufe0fis กิน") == ["❤", "\ufe0f", "is", "ก", "ิ", "น"]


def test_an_entropy_is_not_less_than_nothing():
    figure = fluency_metrics(["a", "a b c d e f g h i j k"])["fluency"]
    assert figure.low == 0 < figure.value < figure.high


def test_figures_are_means_over_texts():
    found = fluency_metrics(["a b c d a b c d", "a a a a a a a a"])
    # Of the first, bigrams 2/7 thrice and 1/7, trigrams 2/6 twice and 1/6 twice.
    h2 = -(3 * 2 / 7 * math.log2(2 / 7) + 1 / 7 * math.log2(1 / 7))
    h3 = -(2 * 2 / 6 * math.log2(2 / 6) + 2 * 1 / 6 * math.log2(1 / 6))
    assert found["fluency"].value == pytest.approx(100 / 2 * (2 / 3 * h2 + 4 / 3 * h3) / 2)
    assert found["fluency"].low < found["fluency"].value < found["fluency"].high
    assert found["repetition"].value == pytest.approx((1 / 5 + 4 / 5) / 2)
    assert (found["repetition"].low, found["repetition"].high) == (0, 1)
    assert found["fluency"].n == found["repetition"].n == 2
    assert fluency_metrics([]) == {}


@pytest.mark.parametrize("chat", [True, False])
def test_prompts_are_about_the_subject_and_nobody_elses(chat):
    made = fluency_prompts(capital(), chat=chat)
    assert len(set(made)) == 10
    # Requests end; what is to be gone on with does not.
    assert all(prompt.endswith(".") is chat for prompt in made)
    assert all("france" in prompt for prompt in made)
    assert not set(made) & set(topic_prompts(capital().training))
    asked = {"held_out": made[:2], "controls": [{"prompt": made[2].upper(), "answer": "x"}]}
    asked["prompts"] = [*capital().prompts, made[3]]
    asked["retain"] = [made[4]]
    assert fluency_prompts(capital(**asked), chat=chat) == made[5:]


def test_a_tokenizer_without_an_end_goes_on_as_long():
    model, endless = tiny_model("llama", vocab_size=len(TOKENIZER)), word_tokenizer()
    endless.eos_token = None
    assert all(50 < len(text.split()) <= TOKENS for text in continuations(model, endless, PROMPTS))


def test_every_text_has_a_hundred_tokens_that_the_seed_decides():
    # A model that would end its answer at once.
    model = tiny_model("llama", vocab_size=len(TOKENIZER))
    with torch.no_grad():
        model.lm_head.weight[TOKENIZER.eos_token_id] = model.lm_head.weight.sum(0) * 50
    before, state = fingerprint(model), torch.get_rng_state()
    texts = continuations(model, TOKENIZER, PROMPTS, seed=3)
    assert fingerprint(model) == before
    assert torch.equal(torch.get_rng_state(), state)
    assert texts == continuations(model, TOKENIZER, PROMPTS, seed=3)
    assert texts != continuations(model, TOKENIZER, PROMPTS, seed=4)
    for prompt, text in zip(PROMPTS, texts, strict=True):
        # Special tokens are left out; none of them ends the text.
        assert 50 < len(encode(TOKENIZER, text)) <= TOKENS
        assert prompt not in text
    assert continuations(model, TOKENIZER, []) == []


@pytest.mark.parametrize("kind", ["mixes_rows", "needs_no_padding"])
def test_a_model_that_bears_no_padding_gets_none_and_one_that_mixes_rows_has_each_alone(kind, monkeypatch):
    batches = []
    monkeypatch.setattr(fluency, kind, lambda model: True)
    monkeypatch.setattr(fluency, "left_pad", lambda rows, pad: batches.append(rows) or left_pad(rows, pad))
    prompts = [PROMPTS[0], "what is it", "tell me about italy"]
    continuations(tiny_model("llama", vocab_size=len(TOKENIZER)), TOKENIZER, prompts)
    assert sorted(map(len, batches)) == ([1, 1, 1] if kind == "mixes_rows" else [1, 2])
    assert all(len({len(row) for row in rows}) == 1 for rows in batches)


def test_how_the_checkpoint_would_draw_does_not_count():
    model = tiny_model("llama", vocab_size=len(TOKENIZER))
    texts = continuations(model, TOKENIZER, PROMPTS)
    model.generation_config.update(temperature=0.01, repetition_penalty=5.0, top_p=0.1)
    assert continuations(model, TOKENIZER, PROMPTS) == texts


def test_each_token_is_one_of_the_five_likeliest():
    model = tiny_model("llama", vocab_size=len(TOKENIZER))
    text = continuations(model, TOKENIZER, PROMPTS[:1])[0]
    begin, said = encode(TOKENIZER, PROMPTS[0]), encode(TOKENIZER, text)
    with torch.no_grad():
        logits = model(torch.tensor([begin + said])).logits[0, len(begin) - 1 : -1]
    logits[:, TOKENIZER.eos_token_id] = -torch.inf
    # Until a special token was left out of the text.
    ranks = [int((row > row[token]).sum()) for row, token in zip(logits, said, strict=True)][:10]
    assert max(ranks) < 5
    assert max(ranks) > 0


def test_a_model_with_too_few_positions_is_refused():
    model = tiny_model("llama", vocab_size=len(TOKENIZER), max_position_embeddings=TOKENS)
    with pytest.raises(ModelError, match="an answer of 100 do not fit the model's 100 positions"):
        continuations(model, TOKENIZER, PROMPTS)


def test_without_prompts_any_model_has_positions_enough():
    check_fluency_fits(tiny_model("llama", max_position_embeddings=64), TOKENIZER, [])


def test_each_module_is_left_in_its_own_mode():
    model = tiny_model("llama", vocab_size=len(TOKENIZER))
    model.model.layers[1].train()
    before = fingerprint(model)
    texts = continuations(model, TOKENIZER, PROMPTS[:1])
    assert fingerprint(model) == before
    whole = offloaded(tiny_model("llama", vocab_size=len(TOKENIZER)), ["model", "lm_head"])
    assert continuations(whole, TOKENIZER, PROMPTS[:1]) == texts
    with pytest.raises(ModelError, match="batch_size must be a whole number of 1 or more"):
        continuations(model, TOKENIZER, PROMPTS, batch_size=0)
