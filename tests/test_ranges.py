import pytest

from peft_surgical.errors import SelectionError
from peft_surgical.ranges import checked_ranges, united_index
from peft_surgical.sites import WIDEST


def test_united_index_holds_exactly_the_indices():
    assert united_index([7, 1, 2, 3, 9, 8, 3]) == ((1, 4), (7, 10))
    assert united_index([]) == ()


def test_a_range_may_end_where_the_widest_module_does():
    assert checked_ranges("it", [[0, WIDEST]]) == ((0, WIDEST),)
    with pytest.raises(SelectionError, match="no module is so wide"):
        checked_ranges("it", [[0, WIDEST + 1]])
