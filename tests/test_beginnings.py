from peft_surgical.running.beginnings import shared_prefix


def test_shared_prefix():
    a, b, c = (1, 2, 3, 4), (1, 2, 3, 5, 6), (1, 2, 9)
    assert shared_prefix([a, b], [3, 4]) == 3
    assert shared_prefix([a, b, c], [3, 4, 2]) == 2
    assert shared_prefix([a, b], [1, 4]) == 1  # what is read stays out
    assert shared_prefix([a, a], [9, 9]) == 3  # a row goes on after it
    assert shared_prefix([a, (7, 8)], [9, 9]) == 0
    assert shared_prefix([a], [0]) == 0
    assert shared_prefix([], []) == 0
