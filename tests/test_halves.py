"""Scales that half precision holds."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from peft_surgical.adapters.halves import fits_half, rounded, settle_on_half


def _delta(values: list[float]) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values))


def test_half_precision_holds_numbers_of_eleven_bits() -> None:
    assert fits_half({"a": torch.tensor([1.0, 0.5, 1 + 2**-10, 0.0, -3.0])})
    assert not fits_half({"a": torch.tensor([1.0]), "b": torch.tensor([1 + 2**-11])})
    assert not fits_half({"a": torch.tensor([1e6])})


def test_a_scale_of_its_own_goes_to_the_nearest_number() -> None:
    delta = _delta([0.0, 0.1, -0.3, 2.7, -1.0, -1.5])
    before = delta.detach().clone()
    settle_on_half([delta], [torch.ones(6)])
    assert torch.equal(delta + 1, (before + 1).half().float())


def test_a_delta_of_which_the_product_is_a_number_already_stays_bit_for_bit() -> None:
    # In float32 this plus 1 is 1.
    delta = _delta([2.0**-30])
    settle_on_half([delta], [torch.ones(1)])
    assert delta.tolist() == [2.0**-30]


def test_the_product_with_what_is_frozen_is_a_number_of_half_precision() -> None:
    generator = torch.Generator().manual_seed(0)
    frozen = 1 + 0.05 * torch.randn(20_000, generator=generator)
    delta = nn.Parameter(0.05 * torch.randn(20_000, generator=generator))
    before = frozen * (delta.detach() + 1)
    settle_on_half([delta], [frozen])
    after = (frozen * (delta + 1)).detach()
    assert fits_half({"product": after})
    # Most take the nearest number, and no other is far.
    off = (after - before).abs()
    assert (off <= 2**-11).float().mean() > 0.9
    assert off.max() < 0.07
    nearest = before.half().float()
    assert (after < nearest).any()
    assert (after > nearest).any()


def test_at_the_end_of_half_precision_nothing_is_settled_beyond_it() -> None:
    frozen = 1 + torch.rand(2_000, generator=torch.Generator().manual_seed(0))
    delta = nn.Parameter(65_503 / frozen - 1)
    settle_on_half([delta], [frozen])
    assert delta.isfinite().all()


def test_what_is_settled_stays_and_zero_is_left_alone() -> None:
    frozen = torch.tensor([0.0, 0.75, 1.25])
    delta = _delta([0.123456, 1.0, 0.2])
    settle_on_half([delta], [frozen])
    once = delta.detach().clone()
    assert once[0] == torch.tensor(0.123456)
    assert once[1] == 1.0
    settle_on_half([delta], [frozen])
    assert torch.equal(delta, once)


def test_a_scale_beyond_half_precision_is_left_alone() -> None:
    delta = _delta([1e6, float("nan")])
    settle_on_half([delta], [torch.ones(2)])
    assert delta[0] == 1e6
    assert delta[1].isnan()


@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e-9, 1e-25, 1e9, 1e25])
def test_numbers_that_half_precision_does_not_hold_stay_as_they_are(scale):
    values = scale * torch.randn(50, generator=torch.Generator().manual_seed(0))
    assert torch.equal(rounded(values), values.half().float() if scale == 1 else values)
    assert torch.equal(rounded(torch.zeros(3)), torch.zeros(3))


@pytest.mark.parametrize("other", [float("inf"), float("nan"), 1e30])
def test_numbers_beside_one_that_no_half_can_be_stay_as_they_are(other):
    values = torch.tensor([0.1, other])
    assert rounded(values).allclose(values, rtol=0, atol=0, equal_nan=True)
