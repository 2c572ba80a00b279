import time
from types import SimpleNamespace

import pytest
import torch

from peft_surgical import profiling
from peft_surgical.profiling import Profile, phase, profiled


@pytest.fixture
def clock(monkeypatch):
    """A clock that only `tick` moves."""
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def tick(seconds):
        now[0] += seconds

    return tick


def test_spans_are_nested_as_the_calls_are_and_add_up(clock):
    @phase("inner")
    def inner():
        clock(2)

    with profiled() as profile:
        clock(1)
        with phase("outer"):
            inner()
            clock(4)
            inner()
        inner()
    assert profile.total == 11
    assert profile.seconds == {("outer",): 8, ("outer", "inner"): 4, ("inner",): 2}
    assert profile.calls == {("outer",): 1, ("outer", "inner"): 2, ("inner",): 1}
    assert profile.rest() == 1
    assert profile.rest(("outer",)) == 4
    assert profile.table().splitlines() == [
        "outer                  8.00 s   72.7%",
        "  inner                4.00 s   36.4%  2 times",
        "  everything else      4.00 s   36.4%",
        "inner                  2.00 s   18.2%",
        "everything else        1.00 s    9.1%",
        "total                 11.00 s  100.0%",
    ]


def test_a_span_that_fails_has_its_time_and_is_left(clock):
    @phase("outer")
    def fail():
        clock(3)
        raise ValueError("inside")

    with profiled() as profile, pytest.raises(ValueError, match="inside"):
        fail()
    assert (profile.total, profile.seconds) == (3, {("outer",): 3})
    with profiled() as again, phase("next"):
        clock(1)
    assert again.seconds == {("next",): 1}


def test_nothing_is_taken_down_when_nobody_profiles(monkeypatch):
    monkeypatch.setattr(profiling, "_now", lambda: pytest.fail("the clock was read"))
    with phase("outer"), phase("inner"):
        pass


def test_an_empty_profile_has_a_table():
    assert [line.split() for line in Profile().table().splitlines()] == [
        ["everything", "else", "0.00", "s", "0.0%"],
        ["total", "0.00", "s", "0.0%"],
    ]


def test_an_open_span_has_a_table(clock):
    with profiled() as profile, phase("outer"):
        clock(1)
        assert profile.table().splitlines()[0].split()[0] == "outer"
        assert (profile.seconds, profile.calls) == ({("outer",): 0.0}, {("outer",): 0})


@pytest.mark.parametrize(
    ("module", "waits"),
    [
        (SimpleNamespace(is_initialized=lambda: True, is_available=lambda: True), True),
        # One that nothing has used yet must not be begun by a clock.
        (SimpleNamespace(is_initialized=lambda: False, is_available=lambda: True), False),
        (SimpleNamespace(is_available=lambda: True), True),
        (SimpleNamespace(is_available=lambda: False), False),
    ],
)
def test_the_clock_waits_for_an_accelerator_that_is_in_use(module, waits, monkeypatch):
    waited = []
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: SimpleNamespace(type="xpu"))
    monkeypatch.setattr(torch, "get_device_module", lambda kind: module)
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda: waited.append(True))
    with profiled(), phase("span"):
        pass
    assert bool(waited) == waits
