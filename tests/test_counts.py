import math

import numpy as np
import pytest

from peft_surgical.counts import (
    check_amounts,
    check_counts,
    check_limits,
    check_positive,
    check_seed,
    check_switches,
    counted,
    whole,
)
from peft_surgical.errors import ModelError


def test_counts_that_are_large_enough_are_let_through():
    check_counts(0, steps=0, batch=3)
    check_counts(1, steps=1)
    check_counts(1)


@pytest.mark.parametrize("count", [0, -1, 1.5, "3", None, True])
def test_what_is_no_count_is_named(count):
    with pytest.raises(ModelError, match=rf"batch must be a whole number of 1 or more; got {count!r}\."):
        check_counts(1, steps=2, batch=count)


def test_seeds_of_64_bits_are_let_through():
    for seed in (0, -(2**63), 2**64 - 1):
        check_seed(seed)


@pytest.mark.parametrize("seed", [None, 1.5, "a", True, np.int64(3), 2**64])
def test_what_is_no_seed_is_told(seed):
    with pytest.raises(ModelError, match=r"seed must be a whole number \(int\) from -2\*\*63 to 2\*\*64 - 1, not "):
        check_seed(seed)


def test_amounts_that_can_be_used_are_let_through():
    check_amounts(length=0, ridge=0.0, step_kl=3e-3, margin=99)
    check_amounts()


@pytest.mark.parametrize("amount", [-1, -1e-9, float("nan"), float("inf"), "0.1", None, True])
def test_what_is_no_amount_is_named(amount):
    with pytest.raises(ModelError, match=rf"length must be a finite number of 0 or more; got {amount!r}\."):
        check_amounts(ridge=0.1, length=amount)


def test_numbers_of_numpy_are_numbers():
    check_amounts(step_kl=np.float64(3e-3))
    check_positive(damping=np.float64(1))
    check_limits(target_loss=np.float64(0.1))


@pytest.mark.parametrize("amount", [0, 0.0, -1, float("nan"), float("inf"), "1", None, True])
def test_what_has_to_be_above_0_is_named(amount):
    check_positive(damping=1e-9)
    with pytest.raises(ModelError, match=rf"ridge must be a finite number above 0; got {amount!r}\."):
        check_positive(damping=1, ridge=amount)


@pytest.mark.parametrize("limit", [float("nan"), "0.1", None, True])
def test_a_limit_is_a_number(limit):
    check_limits(target_loss=-1, target_kl=math.inf)
    with pytest.raises(ModelError, match=rf"target_kl must be a number; got {limit!r}\."):
        check_limits(target_loss=0.1, target_kl=limit)


def test_a_whole_number_is_pythons_own_or_numpys():
    assert [whole(number) for number in (3, np.int64(3), -1)] == [3, 3, -1]
    assert [whole(nothing) for nothing in (True, False, 3.0, "3", None)] == [None] * 5


def test_one_alone_is_singular():
    assert [counted(count, "step") for count in (0, 1, 1234)] == ["0 steps", "1 step", "1,234 steps"]


@pytest.mark.parametrize("switch", [1, 0, "yes", None])
def test_a_switch_is_true_or_false(switch):
    check_switches(other_names=True)
    with pytest.raises(ModelError, match=rf"other_names must be True or False; got {switch!r}\."):
        check_switches(other_names=switch)
