import pytest

from peft_surgical.counts import check_counts
from peft_surgical.errors import ModelError


def test_counts_that_are_large_enough_are_let_through():
    check_counts(0, steps=0, batch=3)
    check_counts(1, steps=1)
    check_counts(1)


@pytest.mark.parametrize("count", [0, -1, 1.5, "3", None, True])
def test_what_is_no_count_is_named(count):
    with pytest.raises(ModelError, match=rf"batch must be a whole number of 1 or more; got {count!r}\."):
        check_counts(1, steps=2, batch=count)
