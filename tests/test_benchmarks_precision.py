import pytest
import torch

from benchmarks.precision import scores

from .localizing import capital, planted, word_tokenizer


def measured(dtype):
    return {
        name: means
        for name, (means, _) in scores(planted().to(dtype), word_tokenizer(), capital(), 2, 2048)[0].items()
    }


def test_float32_is_scored_once_and_bfloat16_in_both_arithmetics():
    assert set(measured(torch.float32)) == {"exact in float32", "attribution in float32"}
    assert set(measured(torch.bfloat16)) == {"exact in bfloat16", "attribution in bfloat16", "exact in float32"}


def test_prompts_are_those_that_were_used():
    fact = capital()
    assert scores(planted(), word_tokenizer(), fact, 1, 2048)[1] == 1
    assert scores(planted(), word_tokenizer(), fact, 100, 2048)[1] <= len(fact.prompts)


def test_all_rank_the_planted_components_first():
    reference = measured(torch.float32)["exact in float32"]
    best = set(reference.topk(2).indices.tolist())
    for means in measured(torch.bfloat16).values():
        assert set(means.topk(2).indices.tolist()) == best


def test_wide_arithmetic_is_closer_than_narrow():
    reference = measured(torch.float32)["exact in float32"]
    narrow = measured(torch.bfloat16)
    wide_error = (narrow["exact in float32"] - reference).abs().max()
    assert wide_error <= (narrow["exact in bfloat16"] - reference).abs().max() + 1e-6
    assert float(wide_error) == pytest.approx(0, abs=0.05 * float(reference.abs().max()))
