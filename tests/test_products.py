import threading

import pytest
import torch

from peft_surgical.running.products import is_unrounded, rounding, rounding_as_found, unrounded

NEWER = hasattr(torch.backends.mkldnn, "matmul")


@pytest.fixture(autouse=True)
def as_before():
    with rounding_as_found():
        yield


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_nothing_is_rounded_in_a_block_and_what_was_set_comes_back(precision):
    torch.set_float32_matmul_precision(precision)
    before = rounding()
    assert is_unrounded(before) == (precision == "highest")
    with unrounded():
        assert torch.get_float32_matmul_precision() == "highest"
        assert rounding() == before
    assert torch.get_float32_matmul_precision() == precision
    assert rounding() == before


def test_of_blocks_that_overlap_the_last_one_puts_back():
    torch.set_float32_matmul_precision("high")
    first, second = unrounded(), unrounded()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert torch.get_float32_matmul_precision() == "highest"
    second.__exit__(None, None, None)
    assert torch.get_float32_matmul_precision() == "high"


def test_what_is_put_back_while_others_round_nothing_waits_for_them():
    torch.set_float32_matmul_precision("high")
    with unrounded():
        # Seen from within, the caller's is what it was.
        with rounding_as_found():
            pass
        assert torch.get_float32_matmul_precision() == "highest"
    assert torch.get_float32_matmul_precision() == "high"
    with rounding_as_found():
        torch.set_float32_matmul_precision("medium")
    assert torch.get_float32_matmul_precision() == "high"


def test_threads_leave_it_as_it_was():
    torch.set_float32_matmul_precision("high")

    def work():
        for _ in range(200):
            with rounding_as_found(), unrounded():
                pass

    several = [threading.Thread(target=work) for _ in range(4)]
    for thread in several:
        thread.start()
    for thread in several:
        thread.join()
    assert torch.get_float32_matmul_precision() == "high"


@pytest.mark.skipif(not NEWER, reason="torch has these names from 2.9 on")
def test_a_place_that_takes_what_stands_above_it_goes_on_doing_so():
    # What was set by the older name before stands at each place.
    for backend in (torch.backends.cuda, torch.backends.mkldnn):
        backend.matmul.fp32_precision = "none"
    try:
        torch.backends.fp32_precision = "tf32"
        with unrounded():
            assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"
        assert torch.backends.mkldnn.matmul.fp32_precision == "tf32"
        torch.backends.fp32_precision = "ieee"
        assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"
    finally:
        torch.backends.fp32_precision = "none"
