import pytest
import torch

from peft_surgical.errors import ModelError
from peft_surgical.staging.displacement import Displacement
from peft_surgical.staging.solving import solved_with


def test_equations_without_a_solution_name_the_amount_that_would_give_one():
    with pytest.raises(ModelError, match=r"with ridge=1e-30; give a recipe with a larger ridge, "):
        with solved_with("ridge", 1e-30):
            torch.linalg.solve(torch.zeros(2, 2), torch.ones(2))
    with pytest.raises(KeyError), solved_with("ridge", 1.0):
        raise KeyError("others pass")


def test_a_form_that_says_nothing_of_a_direction_needs_damping():
    form = torch.tensor([[4.0, 4.0], [4.0, 4.0]])
    [factor] = Displacement((form,)).factors(0.5)
    expected = torch.tensor([[6**0.5, 0.0], [4 / 6**0.5, (6 - 16 / 6) ** 0.5]])
    torch.testing.assert_close(factor, expected)
    assert form.tolist() == [[4.0, 4.0], [4.0, 4.0]]
    with pytest.raises(ModelError, match="larger damping"):
        Displacement((form,)).factors(1e-30)
