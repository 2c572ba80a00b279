"""Answers of models that keep more than keys and values, or count their positions in their own way."""

import pytest
import torch

from peft_surgical.running.generation import generate_ids

from .localizing import word_tokenizer
from .test_beginnings import built
from .test_generation import BEGIN_ALIKE, ROWS, greedy, stopping_tokenizer


@pytest.mark.parametrize("family", ["falcon_h1", "minimax"])
@torch.no_grad()
def test_rows_stay_where_more_is_kept_of_them_than_keys_and_values(family):
    model, words = built(family), len(word_tokenizer())
    free = [greedy(model, prompt, 9, stop=None) for prompt in ROWS]
    # A token that ends some answers in the first round, and not all.
    counts = {token: sum(token in answer[:4] for answer in free) for answer in free for token in answer[:4]}
    end = next(token for token, count in counts.items() if count < len(free) and token < words)
    expected = [greedy(model, prompt, 9, stop=end) for prompt in ROWS]
    assert generate_ids(model, stopping_tokenizer(end), ROWS, max_new_tokens=9) == expected
    [alone] = generate_ids(model, stopping_tokenizer(end), ROWS[:1], max_new_tokens=9)
    assert alone == expected[0]


@pytest.mark.parametrize("family", ["falcon_h1", "minimax"])
@torch.no_grad()
def test_a_beginning_that_leaves_more_than_keys_and_values_is_not_shared(family):
    model = built(family)
    expected = [greedy(model, prompt, 5) for prompt in BEGIN_ALIKE]
    assert generate_ids(model, word_tokenizer(), BEGIN_ALIKE, max_new_tokens=5) == expected
