import pytest

from peft_surgical.running.shapes import filled


@pytest.mark.parametrize(
    ("count", "multiple", "expected"),
    [
        (1, 4, 1),
        (15, 4, 15),
        (16, 4, 16),
        (17, 4, 20),
        (20, 4, 20),
        (21, 4, 24),
        (17, 16, 32),
        (48, 16, 48),
        (49, 16, 64),
    ],
)
def test_filled_by_hand(count, multiple, expected):
    assert filled(count, multiple) == expected


@pytest.mark.parametrize("multiple", [1, 4, 16])
def test_no_count_is_cut_and_few_are_left(multiple):
    counts = range(1, 200)
    found = [filled(count, multiple) for count in counts]
    assert all(0 <= to - count < multiple for count, to in zip(counts, found, strict=True))
    assert found == sorted(found)
    assert len(set(found)) <= 16 + -(-200 // multiple)
