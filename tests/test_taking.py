import pytest
import torch

from peft_surgical.errors import SelectionError
from peft_surgical.keying.taking import is_shut, neuron_to_take


def test_a_neuron_that_hardly_fires_is_taken_only_where_it_could_write_nothing():
    squares, lengths = torch.ones(48), torch.ones(48)
    lengths[[8, 30]] = torch.tensor([0.1, 0.16])
    none = torch.zeros(48, dtype=torch.bool)
    assert neuron_to_take(squares, lengths, none) == 8
    squares[5] = 0.001
    assert neuron_to_take(squares, lengths, none) == 8
    lengths[5] = 0.001
    assert neuron_to_take(squares, lengths, none) == 5
    # Where most never fire that says nothing.
    squares[:] = 0.0
    squares[0] = 1.0
    assert neuron_to_take(squares, lengths, none) != 0


def test_a_neuron_that_is_shut_is_taken_only_where_it_could_write_nothing():
    squares, lengths = torch.ones(48), torch.ones(48)
    squares[8], shut = 0.5, torch.zeros(48, dtype=torch.bool)
    assert neuron_to_take(squares, lengths, shut) == 8
    shut[8] = True
    assert neuron_to_take(squares, lengths, shut) != 8
    lengths[8] = 0.001
    assert neuron_to_take(squares, lengths, shut) == 8
    with pytest.raises(SelectionError, match="no neuron is left to be rewritten: those of other edits are left alone"):
        neuron_to_take(torch.ones(48), torch.ones(48), ~torch.zeros(48, dtype=torch.bool))


def test_what_is_shut_is_half_as_deep_as_a_rewritten_neuron():
    rows, biases, mean = torch.zeros(6, 2), torch.zeros(6), torch.tensor([0.0, 2.0])
    rows[:4, 1] = torch.tensor([-2.0, -1.01, -0.99, 2.0])
    assert is_shut(rows, biases, mean, -4.0).tolist() == [True, True, False, False, False, False]
    biases[:5] = torch.tensor([3.0, 0.0, -0.1, -7.0, -1.9])
    assert is_shut(rows, biases, mean, -4.0).tolist() == [False, True, True, True, False, False]
    # Where most are, it tells nothing.
    biases[4] = -2.1
    assert not is_shut(rows, biases, mean, -4.0).any()
