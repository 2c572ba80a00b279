from contextlib import contextmanager

from peft_surgical.running.overlapping import Changes, Overlapping


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


def test_each_thing_is_changed_once_and_put_back_once():
    changes, held = Changes(), {"a": 1, "b": 2}

    def change(key):
        own, held[key] = held[key], 0
        return lambda: held.__setitem__(key, own)

    for key in ("a", "b", "a"):
        assert changes.enter(key, lambda key=key: change(key))
    assert held == {"a": 0, "b": 0}
    changes.leave("a")
    changes.leave("b")
    assert held == {"a": 0, "b": 2}
    changes.leave("a")
    assert held == {"a": 1, "b": 2}


def test_where_there_is_nothing_to_change_no_block_is_entered():
    changes = Changes()
    assert not changes.enter("a", lambda: None)
    assert changes.enter("a", lambda: lambda: None)
