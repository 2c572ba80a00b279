from contextlib import contextmanager

from peft_surgical.running.overlapping import Overlapping


def test_the_first_enters_and_the_last_leaves_whichever_it_is():
    seen = []

    @contextmanager
    def noted():
        seen.append("entered")
        yield
        seen.append("left")

    within = Overlapping(noted)
    for _ in range(2):
        first, second = within(), within()
        first.__enter__()
        second.__enter__()
        assert seen.pop() == "entered"
        first.__exit__(None, None, None)
        assert not seen
        second.__exit__(None, None, None)
        assert seen.pop() == "left"
    assert not seen


def test_it_is_left_when_a_block_fails():
    values = []

    @contextmanager
    def noted():
        values.append(1)
        try:
            yield
        finally:
            values.clear()

    within = Overlapping(noted)
    block = within()
    block.__enter__()
    assert values
    assert not block.__exit__(KeyError, KeyError(), None)
    assert not values
