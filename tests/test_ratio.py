import pytest

from peft_surgical.measuring.ratio import paired_ratio


def paired(both, first, second, neither=0):
    """Prompts that both hit, that only one does, and that neither does."""
    hits = [True] * (both + first) + [False] * (second + neither)
    return hits, [True] * both + [False] * first + [True] * second + [False] * neither


def test_a_published_interval():
    # Complete response before and after consolidation therapy (Cavo et al. 2012), as R's `contingencytables` has it.
    found = paired_ratio(*paired(59, 6, 16, 80))
    assert found.n == 161
    assert (found.value, found.low, found.high) == pytest.approx((0.8667, 0.7579, 0.9910), abs=5e-5)


def test_where_nothing_or_all_is_hit():
    none = paired_ratio(*paired(0, 0, 26))
    assert (none.value, none.low) == (0.0, 0.0)
    # Twenty-six of twenty-six that stay away are no proof of none.
    assert 0.1 < none.high < 0.2
    same = paired_ratio(*paired(20, 0, 0, 6))
    assert same.value == 1
    assert same.low * same.high == pytest.approx(1)
    assert paired_ratio(*paired(0, 5, 0, 5)) is None
    assert paired_ratio([], []) is None


def test_a_ratio_turned_round_has_the_turned_interval():
    hits, reference = paired(9, 2, 5, 4)
    found, turned = paired_ratio(hits, reference), paired_ratio(reference, hits)
    assert turned.value == pytest.approx(1 / found.value)
    assert (turned.low, turned.high) == pytest.approx((1 / found.high, 1 / found.low))


def test_agreement_prompt_by_prompt_narrows_it():
    # Ten hits against twelve, of the same prompts as far as can be, and of others as far as can be.
    same, other = paired_ratio(*paired(10, 0, 2, 8)), paired_ratio(*paired(2, 8, 10, 0))
    assert same.value == other.value
    assert other.low < same.low < same.high < other.high


def test_answers_of_different_numbers_are_not_paired():
    with pytest.raises(ValueError, match="zip"):
        paired_ratio([True], [True, False])
