import random
import threading
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from peft_surgical.seeding import drawing, forked, seeded

CPU = torch.device("cpu")


def test_a_seed_decides_what_is_drawn_and_leaves_no_trace():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with seeded(1, CPU):
        first = torch.rand(3)
    with seeded(1, CPU):
        assert torch.equal(torch.rand(3), first)
    with forked(CPU):
        torch.rand(9)
    assert torch.equal(torch.rand(3), expected)


def test_a_negative_seed_is_another_one_than_without_its_sign():
    for seed in (0, 1, 2**64 - 1):
        assert drawing(seed).random() == random.Random(seed).random()
    generator = torch.Generator()
    for seed in (-1, -7, 1 - 2**63):
        drawn = drawing(seed).random()
        assert drawn == drawing(seed).random() != drawing(-seed).random()
        # The same one as of torch.
        assert drawn == drawing(generator.manual_seed(seed).initial_seed() % 2**64).random()


class Accelerator:
    """The random numbers of one that is not there."""

    def __init__(self, *, one):
        self.state, self.asked = 7, []
        if one:
            self.get_rng_state, self.set_rng_state = self._get, self._set
        else:
            self.get_rng_state = lambda device: self._get(self.asked.append(device))
            self.set_rng_state = lambda state, device: self._set(state, self.asked.append(device))
            self.device = self._device

    def _get(self, _=None):
        return self.state

    def _set(self, state, _=None):
        self.state = state

    def manual_seed(self, seed):
        self.state = seed

    @contextmanager
    def _device(self, device):
        self.asked.append(device)
        yield


@pytest.mark.parametrize(("kind", "one"), [("cuda", False), ("xpu", False), ("mps", True)])
def test_an_accelerators_numbers_are_seeded_and_put_back(kind, one, monkeypatch):
    module, device = Accelerator(one=one), SimpleNamespace(type=kind, index=1)
    own = torch.get_device_module
    monkeypatch.setattr(torch, "get_device_module", lambda wanted=None: module if wanted == kind else own(wanted))
    with seeded(3, device):
        assert module.state == 3
    assert module.state == 7

    def fail():
        module.state = 4
        raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"), forked(device):
        fail()
    assert module.state == 7


def test_a_device_without_numbers_of_its_own_is_passed_over(monkeypatch):
    own = torch.get_device_module

    def none(kind=None):
        if kind == "hpu":
            raise RuntimeError(f"no module for {kind}")
        return own(kind)

    monkeypatch.setattr(torch, "get_device_module", none)
    before = torch.get_rng_state()
    with seeded(3, SimpleNamespace(type="hpu", index=0)):
        assert torch.initial_seed() == 3
    assert torch.equal(torch.get_rng_state(), before)


def test_two_threads_draw_what_their_seeds_say_and_leave_no_trace():
    def draw(seed, drawn):
        with seeded(seed, CPU):
            drawn.append(torch.rand(3))
            met.wait(timeout=0.2)
            drawn.append(torch.rand(3))

    alone, met = [], SimpleNamespace(wait=lambda timeout: None)
    for seed in (1, 2):
        draw(seed, alone)
    before = torch.get_rng_state()
    # Both would be inside at once, if they could.
    met, found = threading.Event(), {1: [], 2: []}
    threads = [threading.Thread(target=draw, args=item) for item in found.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(torch.stack([*found[1], *found[2]]), torch.stack(alone))
    assert torch.equal(torch.get_rng_state(), before)
