from dataclasses import replace

import pytest

from peft_surgical.prompts import encode, encode_answer
from peft_surgical.subjects import other_sentences, subject_ends
from peft_surgical.text import contains, digest

from .localizing import word_tokenizer
from .small_tokenizers import small_tokenizer
from .test_by_subject import FACT, PROMPTS

TOKENIZER = word_tokenizer()


def test_the_subjects_last_token_each_time_that_it_is_named():
    prompt, subject = "tell me about new zealand . the capital of new zealand is", "new zealand"
    row = encode_answer(TOKENIZER, prompt, "lyon has new zealand")
    found = subject_ends(TOKENIZER, prompt, subject, row.ids)
    words = [TOKENIZER.convert_ids_to_tokens(row.ids[i]) for i in found]
    assert words == ["zealand"] * 3
    assert all(TOKENIZER.convert_ids_to_tokens(row.ids[i - 1]) == "new" for i in found)


@pytest.mark.parametrize("kind", ["byte_level", "unigram", "bpe", "legacy"])
@pytest.mark.parametrize("prompt", ["The capital of France is", "France has a capital, and it is", "About france:"])
def test_the_subjects_last_token_whatever_the_tokenizer(kind, prompt):
    tokenizer = small_tokenizer(kind)
    ids = encode(tokenizer, prompt)
    (end,) = subject_ends(tokenizer, prompt, "France", ids)
    until, before = tokenizer.decode(ids[: end + 1]), tokenizer.decode(ids[:end])
    assert contains(until, ["France"])
    assert not contains(before, ["France"])


def test_other_names_stand_in_for_the_subject_and_no_evaluation_prompt_is_among_them():
    fact = replace(FACT, contrast=("italy", "spain"))
    made = other_sentences(fact, 30, seed=0)
    assert len(made) == 30
    assert made[:2] == ["the capital of italy is", PROMPTS[1].replace("france", "spain")]
    assert not any(contains(prompt, ["france"]) for prompt in made)
    assert made != other_sentences(fact, 30, seed=1)
    held = replace(fact, evaluated=frozenset([digest(made[0])]))
    assert made[0] not in other_sentences(held, 30, seed=0)
