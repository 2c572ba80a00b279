from peft_surgical.ranges import united_index


def test_united_index_holds_exactly_the_indices():
    assert united_index([7, 1, 2, 3, 9, 8, 3]) == ((1, 4), (7, 10))
    assert united_index([]) == ()
