"""Models whose modules are not as their sizes make them."""

import pytest
import torch
from peft import get_peft_model
from torch import nn

from peft_surgical.errors import ArchitectureError, SelectionError
from peft_surgical.layouts import check_layout
from peft_surgical.localizing.bridge import wrap
from peft_surgical.sites import ModelShape
from peft_surgical.tuner import SurgicalIA3Config

from .adapters import tiny_peft
from .tiny import FAMILIES, tiny_experts, tiny_model
from .untold import UNTOLD, teach, untold_model

QKV = "transformer.h.1.self_attention.query_key_value"


def config_of(component, *projections, **changes):
    return SurgicalIA3Config(components=[component], projections=[*projections], task_type="CAUSAL_LM", **changes)


@pytest.mark.parametrize("family", FAMILIES)
def test_known_models_are_as_wide_as_their_sizes_make_them(family):
    model = tiny_model(family)
    check_layout(model, ModelShape.from_config(model.config))


@pytest.mark.parametrize("model_type", UNTOLD)
def test_models_of_other_types_are_too(model_type, monkeypatch):
    teach(monkeypatch, model_type)
    model = untold_model(model_type)
    check_layout(model, ModelShape.from_config(model.config))
    get_peft_model(model, config_of("L1.head.1", "q", "k", "v"))


@pytest.mark.parametrize(("projection", "changed"), [("k", range(32, 40)), ("v", range(40, 48))])
@pytest.mark.parametrize("head", [0, 1, 3])
def test_the_one_key_head_is_scaled_whichever_query_head_reads_it(projection, changed, head, monkeypatch):
    teach(monkeypatch, "falcon")
    model = get_peft_model(untold_model("falcon"), config_of(f"L1.head.{head}", projection))
    seen = []
    layer = model.get_base_model().get_submodule(QKV)
    for module in (layer.base_layer, layer):
        module.register_forward_hook(lambda _, __, out: seen.append(out.clone()))
    with torch.no_grad():
        layer.surgical_ia3_delta["default"].fill_(0.5)
        model(torch.tensor([[5, 6, 7, 8]]))
    assert torch.equal((seen[0] != seen[1]).any(0).any(0).nonzero().flatten(), torch.tensor([*changed]))


def miscounted(monkeypatch, **changes):
    """A Falcon that has one key/value head, and a configuration that counts as many as there are heads."""
    teach(monkeypatch, "falcon")
    model = untold_model("falcon")
    for name, value in changes.items():
        setattr(model.config, name, value)
    return model


SHARED = f"the output of {QKV} is 48 wide; 4 heads and 4 key/value heads of 8 need 96"


def test_components_are_refused_where_a_module_is_of_another_layout(monkeypatch):
    model = miscounted(monkeypatch, multi_query=False)
    names = [name for name, _ in model.named_modules()]
    with pytest.raises(ArchitectureError, match=SHARED):
        get_peft_model(model, config_of("L1.head.1", "k"))
    with pytest.raises(SelectionError, match="48"):
        get_peft_model(model, config_of("L1.head.1", "k", granularity="module"))
    assert [name for name, _ in model.named_modules()] == names
    # What is scaled here does not depend on it.
    get_peft_model(model, config_of("L1.head.1", "z"))


def test_selections_are_taken_as_they_are(monkeypatch):
    model = miscounted(monkeypatch, multi_query=False)
    spec = {"side": "output", "ranges": [[32, 40]]}
    get_peft_model(model, SurgicalIA3Config(selections={QKV: spec}, task_type="CAUSAL_LM"))


def test_localization_refuses_another_layout_before_it_runs(monkeypatch):
    with pytest.raises(ArchitectureError, match=SHARED.replace(".1.", ".0.")):
        wrap(miscounted(monkeypatch, multi_query=False))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ffn_hidden_size": 64}, "the output of .*dense_h_to_4h is 128 wide; 64 neurons need 64"),
        ({"hidden_size": 64}, "query_key_value is 48 wide; 4 heads and 1 key/value heads of 16 need 96"),
    ],
)
def test_every_size_is_compared(change, message, monkeypatch):
    model = miscounted(monkeypatch, **change)
    with pytest.raises(ArchitectureError, match=message):
        check_layout(model, ModelShape.from_config(model.config))


def test_the_sides_that_the_residual_stream_is_on_are_compared():
    model = tiny_model("llama")
    shape = ModelShape.from_config(model.config)
    mlp = model.get_submodule("model.layers.2.mlp")
    mlp.up_proj = nn.Linear(16, 48)
    with pytest.raises(ArchitectureError, match=r"the input of .*up_proj is 16 wide; a residual stream of 32 need"):
        check_layout(model, shape)


def test_adapters_and_other_kinds_of_modules_are_no_other_layout():
    model = tiny_peft().get_base_model()
    check_layout(model, ModelShape.from_config(model.config))
    model.get_submodule("model.layers.1.mlp").up_proj = nn.Identity()
    check_layout(model, ModelShape.from_config(model.config))


def test_a_module_that_two_layers_share_is_there_in_both():
    model = tiny_model("llama")
    model.model.layers[2].mlp = model.model.layers[0].mlp
    check_layout(model, ModelShape.from_config(model.config))


def test_a_module_that_is_not_there_is_named():
    model = tiny_experts()
    shape = ModelShape.from_config(tiny_model("llama").config)
    with pytest.raises(ArchitectureError, match=r"names model\.layers\.0\.mlp\.gate_proj, and this model has no such"):
        check_layout(model, shape)
