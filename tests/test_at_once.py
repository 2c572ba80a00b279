import threading
import time
from functools import partial

import pytest
import torch

from peft_surgical.running.at_once import _shared_out, at_once, deal

from .threads import threads


def test_at_once_is_at_the_same_time():
    met = threading.Barrier(3)

    def meet(name):
        met.wait(timeout=30)
        return name

    with threads(6):
        assert at_once([partial(meet, name) for name in "abc"]) == ["a", "b", "c"]
        assert at_once([torch.get_num_threads, torch.get_num_threads]) == [3, 3]
        assert at_once([torch.get_num_threads]) == [6]
        assert torch.get_num_threads() == 6
    assert at_once([]) == []


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_gradients_are_recorded_as_in_the_calling_thread(mode):
    with mode():
        expected = (torch.is_grad_enabled(), torch.is_inference_mode_enabled())
        found = at_once([lambda: (torch.is_grad_enabled(), torch.is_inference_mode_enabled())] * 2)
    assert found == [expected] * 2


@pytest.mark.parametrize("flushed", [False, True])
def test_denormals_are_flushed_as_in_the_calling_thread(flushed):
    supported = torch.set_flush_denormal(flushed)
    try:
        found = at_once([lambda: float(torch.tensor([1e-39]).mul(0.5)) == 0] * 2)
    finally:
        torch.set_flush_denormal(False)
    assert found == [flushed and supported] * 2


@pytest.mark.parametrize("failing", [0, 1])
def test_what_fails_is_raised_when_all_have_ended(failing):
    ended = []

    def run(number):
        if number == failing:
            raise ValueError(f"number {number}")
        ended.append(number)

    with threads(2):
        with pytest.raises(ValueError, match=f"number {failing}"):
            at_once([partial(run, 0), partial(run, 1)])
        assert torch.get_num_threads() == 2
    assert ended == [1 - failing]


@pytest.mark.parametrize(
    ("workers", "items", "dealt"),
    [(2, "abcde", ["x:ace", "y:bd"]), (3, "ab", ["x:a", "y:b"]), (1, "abc", ["x:abc"]), (2, "", [])],
)
def test_items_are_dealt_in_turn(workers, items, dealt):
    assert deal("xyz"[:workers], items, lambda worker, own: f"{worker}:{''.join(own)}") == dealt


@pytest.mark.parametrize("failing", ["x", "y"])
def test_when_one_fails_the_others_get_nothing_more(failing):
    met, taken = threading.Barrier(2), []

    def run(worker, own):
        for item in own:
            taken.append(item)
            if len(taken) <= 2:
                met.wait(timeout=30)
            if worker == failing:
                raise KeyboardInterrupt
            # Else it would go on for a minute.
            time.sleep(0.001)

    with pytest.raises(KeyboardInterrupt):
        deal("xy", range(100_000), run)
    assert sorted(taken)[:2] == [0, 1]
    assert len(taken) < 50_000


def test_an_interrupt_while_the_others_run_ends_them_first(monkeypatch):
    interrupted, taken = threading.Event(), []

    def run(worker, own):
        for item in own:
            taken.append(item)
            if worker == "y":
                assert interrupted.wait(timeout=30)

    def waiting(thread):
        monkeypatch.setattr(threading.Thread, "join", join)
        interrupted.set()
        raise KeyboardInterrupt

    join = threading.Thread.join
    monkeypatch.setattr(threading.Thread, "join", waiting)
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        deal("xy", range(2000), run)
    assert threading.active_count() == before
    assert max(i for i in taken if i % 2) < 1999


def test_an_interrupt_while_a_thread_starts_leaves_none_behind(monkeypatch):
    stopped, worked = threading.Event(), []

    def work():
        assert stopped.wait(timeout=30)
        worked.append(1)

    def starting(thread):
        monkeypatch.setattr(threading.Thread, "start", start)
        start(thread)
        raise KeyboardInterrupt

    start, before = threading.Thread.start, threading.active_count()
    monkeypatch.setattr(threading.Thread, "start", starting)
    with pytest.raises(KeyboardInterrupt):
        at_once([work, work, work], stop=stopped.set)
    assert threading.active_count() == before
    # The first one had not been begun, and the last one was not.
    assert len(worked) <= 1


def test_a_thread_that_has_not_begun_when_another_fails_does_nothing(monkeypatch):
    waited_for, worked = threading.Event(), []
    run, join = threading.Thread.run, threading.Thread.join

    def late(thread):
        assert waited_for.wait(timeout=30)
        run(thread)

    def joining(thread):
        waited_for.set()
        join(thread)

    monkeypatch.setattr(threading.Thread, "run", late)
    monkeypatch.setattr(threading.Thread, "join", joining)
    with pytest.raises(ZeroDivisionError):
        at_once([lambda: 1 / 0, lambda: worked.append(1)])
    assert not worked


def test_threads_are_given_back_when_the_last_block_ends():
    with threads(4):
        with _shared_out(2):
            assert torch.get_num_threads() == 2
            with _shared_out(4):
                assert torch.get_num_threads() == 1
            assert torch.get_num_threads() == 2
        assert torch.get_num_threads() == 4


def test_a_thread_gets_its_own_back_though_another_is_not_done():
    begun, go_on, found = threading.Event(), threading.Event(), []

    def other():
        with _shared_out(2):
            found.append(torch.get_num_threads())
            begun.set()
            go_on.wait(timeout=30)
        found.append(torch.get_num_threads())

    with threads(4):
        thread = threading.Thread(target=other)
        with _shared_out(2):
            thread.start()
            begun.wait(timeout=30)
        assert torch.get_num_threads() == 4
        go_on.set()
        thread.join()
        # A part of all that there are, and not of what it began with within another's block.
        assert found == [2, 4]
        assert torch.get_num_threads() == 4
