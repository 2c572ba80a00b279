"""Rows that are filled to more tokens than they have."""

from collections.abc import Callable
from typing import Any

import pytest
import torch


def fill_rows(monkeypatch: pytest.MonkeyPatch, multiple: int) -> None:
    """Fills all rows, short ones too, to multiples of some tokens."""
    monkeypatch.setattr("peft_surgical.running.shapes._EACH", 0)
    monkeypatch.setattr("peft_surgical.running.suffix._MULTIPLE", multiple)


def assert_filling_changes_no_value(
    monkeypatch: pytest.MonkeyPatch, untrained: torch.nn.Module, trained: Callable[[], Any]
) -> None:
    """Trains with rows as they are and filled, and compares all parameters."""
    expected = trained()
    fill_rows(monkeypatch, 11)
    named = dict(trained().named_parameters())
    for name, parameter in named.items():
        # What is trained is rounded to half precision.
        torch.testing.assert_close(parameter, expected.get_parameter(name), atol=1e-4, rtol=2e-3)
    assert not all(torch.equal(untrained.get_parameter(name), parameter) for name, parameter in named.items())
