"""How earlier edits are folded into a model's weights for as long as another one is made, and taken out again."""

import warnings
import weakref
from dataclasses import replace

import pytest
import torch

from peft_surgical.adapters.low_rank import LowRank
from peft_surgical.earlier import Earlier
from peft_surgical.errors import AdapterError
from peft_surgical.folding import folded_apart
from peft_surgical.running.identity import weights_digest

from .conftest import fingerprint
from .test_folding import ADDED, NAME, SCALES, folded
from .tiny import tiny_model


def test_what_is_kept_of_the_base_is_kept_of_the_folded_one(tmp_path):
    model = tiny_model("llama")
    before, own = weights_digest(model), fingerprint(model)
    earlier = Earlier((tmp_path,), (SCALES,), (SCALES,))
    with earlier.folded_into(model):
        assert weights_digest(model) not in (before, None)
    assert weights_digest(model) == before
    with pytest.raises(KeyboardInterrupt), earlier.folded_into(model):
        raise KeyboardInterrupt
    assert fingerprint(model) == own


def test_weights_are_folded_in_order_and_come_back_bit_for_bit(tmp_path):
    model, untouched = (tiny_model("llama", dtype=torch.bfloat16) for _ in range(2))
    with Earlier((tmp_path,), (ADDED, SCALES), (ADDED, SCALES)).folded_into(model):
        weight = untouched.get_parameter(f"{NAME}.weight").float()
        expected = ((weight + 0.25) * SCALES.modules[NAME].dense(48)).bfloat16()
        assert torch.equal(model.get_parameter(f"{NAME}.weight"), expected)
    assert all(torch.equal(value, untouched.state_dict()[key]) for key, value in model.state_dict().items())


def test_new_weights_are_made_as_they_are_written(tmp_path, monkeypatch):
    """One module's at a time, as all of them would take as much room again as those that are kept."""
    names = [f"model.layers.{layer}.mlp.down_proj" for layer in range(2)]
    names += [f"model.layers.{layer}.mlp.up_proj" for layer in range(2)]
    model = tiny_model("llama", dtype=torch.bfloat16)
    sizes = {name: model.get_parameter(f"{name}.weight").shape for name in names}
    factors = {name: (torch.ones(1, size[1]), torch.full((size[0], 1), 0.25)) for name, size in sizes.items()}
    scales = {name: replace(SCALES.modules[NAME], width=size[1]) for name, size in sizes.items()}
    steps = (LowRank(factors), replace(SCALES, modules=scales))
    expected = {key: values for key, (values, _) in folded(model, steps).items()}
    made, most = [], []

    def watched(*args):
        for found in folded_apart(*args):
            made.extend(weakref.ref(values) for values, _ in found.values())
            most.append(sum(one() is not None for one in made))
            yield found

    monkeypatch.setattr("peft_surgical.earlier.folded_apart", watched)
    with Earlier((tmp_path,), steps, steps).folded_into(model):
        assert not any(one() is not None for one in made)
        assert all(torch.equal(model.get_parameter(key), values) for key, values in expected.items())
    assert len(made) == len(expected) == len(names)
    assert max(most) <= 2


def test_weights_that_are_written_before_another_one_fails_come_back(tmp_path):
    model = tiny_model("llama")
    own = fingerprint(model)
    wrong = replace(ADDED, factors=ADDED.factors | {"model.layers.0.mlp.up_proj": ADDED.factors[NAME]})
    earlier = Earlier((tmp_path,), (wrong,), (wrong,))
    with pytest.raises(AdapterError, match="this model has a weight of shape"), earlier.folded_into(model):
        pass
    assert fingerprint(model) == own


def test_what_half_precision_loses_of_them_is_said(tmp_path):
    small = replace(SCALES, modules={NAME: replace(SCALES.modules[NAME], scale=torch.full((3,), 1.003))})
    earlier = Earlier((tmp_path / "france",), (small,), (small,))
    with (
        pytest.warns(UserWarning, match=r"\d+\.\d% of the weights that \S*france should .* bfloat16, .* float32"),
        earlier.folded_into(tiny_model("llama", dtype=torch.bfloat16)),
    ):
        pass
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        with earlier.folded_into(tiny_model("llama")):
            pass
