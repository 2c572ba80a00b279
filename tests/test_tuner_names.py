import copy

import pytest
import torch
from peft import get_peft_model
from torch import nn

from peft_surgical.errors import AdapterError
from peft_surgical.tuner import SurgicalIA3Layer, activate
from peft_surgical.tuner.names import check_usable
from tests.adapters import tiny_peft
from tests.tiny import tiny_model


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("half", "something of that name"),
        ("training", "something of that name"),
        ("v1.0", "no dot"),
        ("", "not empty"),
        ("mlp", "a module is called so"),
        ("1", "a module is called so"),
        ("model", "a module is called so"),
        ("surgical_ia3_delta", "a module is called so"),
        ("weight", "a parameter is called so"),
        ("bias", "a parameter is called so"),
        ("inv_freq", "a parameter is called so"),
        ("__base__", "PEFT means the model without an adapter by it"),
        ("modules_to_save", "PEFT means where it keeps"),
        (3, "a name is text"),
        (["new"], "a name is text"),
        (None, "a name is text"),
    ],
)
def test_a_name_that_torch_or_peft_does_not_take_changes_nothing(name, words):
    model = tiny_peft()
    before, plain = sorted(model.state_dict()), tiny_model("llama")
    for attempt in (
        lambda: model.add_weighted_adapter(["default"], [0.5], name),
        lambda: model.add_adapter(name, copy.deepcopy(model.peft_config["default"])),
        lambda: get_peft_model(plain, copy.deepcopy(model.peft_config["default"]), adapter_name=name),
    )[: 3 if isinstance(name, str) else 1]:
        with pytest.raises(AdapterError, match=f"cannot name an adapter: .*{words}"):
            attempt()
    assert sorted(model.state_dict()) == before
    assert list(model.peft_config) == ["default"]
    assert not any(isinstance(module, SurgicalIA3Layer) for module in plain.modules())
    model.add_weighted_adapter(["default"], [0.5], "a_half")


def test_one_number_is_no_list_of_weights():
    with pytest.raises(AdapterError, match="the weights must be a list of one number for each adapter, not 1"):
        tiny_peft().add_weighted_adapter(["default"], 1, "new")


@pytest.mark.parametrize("given", [None, 3, [3], [["default"]]])
def test_what_is_no_name_activates_nothing(given):
    model = tiny_peft()
    for attempt in (
        lambda: activate(model, given),
        lambda: activate(model, ["default"], trainable=given),
        lambda: model.base_model.set_adapter(given),
    ):
        with pytest.raises(AdapterError, match="given by one name or a list of names, not by"):
            attempt()
    with pytest.raises(AdapterError, match=r"a list of names, got|there is no adapter named"):
        model.base_model.add_weighted_adapter(given, [1.0], "new")
    assert model.active_adapters == ["default"]


def test_a_parameter_of_the_model_itself_names_no_adapter():
    model = tiny_model("llama")
    model.logit_scale = nn.Parameter(torch.ones(1))
    with pytest.raises(AdapterError, match="'logit_scale' cannot name an adapter: a parameter is called so"):
        check_usable("logit_scale", model)
