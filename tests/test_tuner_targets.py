"""Modules that no scale could act on, because another reads their weights."""

import importlib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from peft import get_peft_model
from torch import nn
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Llama4TextConfig,
    MambaConfig,
    MambaForCausalLM,
    PhimoeConfig,
    ReformerConfig,
    ReformerModel,
    WavLMConfig,
    WavLMModel,
)
from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4GroupedLinear
from transformers.models.detr.modeling_detr import DetrMHAttentionMap
from transformers.models.falcon.modeling_falcon import FalconLinear
from transformers.models.gemma4_assistant.modeling_gemma4_assistant import Gemma4AssistantForCausalLM
from transformers.models.idefics.modeling_idefics import IdeficsDecoupledLinear
from transformers.models.llama4.modeling_llama4 import Llama4Router
from transformers.models.phimoe.modeling_phimoe import PhimoeTopKRouter

from peft_surgical.adapters.edits import Edit, ModuleScale
from peft_surgical.errors import SelectionError
from peft_surgical.merging import merge
from peft_surgical.tuner import Coordinates, SurgicalIA3Config, targets
from peft_surgical.tuner.targets import check_target, find_module
from tests.adapters import logits, perturb, tiny_peft
from tests.tiny import tiny_ids, tiny_model


def test_multihead_attention_is_refused():
    model = nn.TransformerEncoderLayer(8, 2, 16)
    config = SurgicalIA3Config(selections={"self_attn.out_proj": {"side": "input", "ranges": [[0, 4]]}})
    with pytest.raises(SelectionError, match="MultiheadAttention"):
        get_peft_model(model, config)


@pytest.mark.parametrize("module", ["linear1", "linear2"])
def test_what_torchs_encoder_reads_in_eval_mode_is_refused(module):
    config = SurgicalIA3Config(selections={module: {"side": "output", "ranges": [[0, 4]]}})
    with pytest.raises(SelectionError, match="belongs to a TransformerEncoderLayer, which reads its weight"):
        get_peft_model(nn.TransformerEncoderLayer(8, 2, 16), config)


def test_a_class_that_is_only_called_so_is_taken():
    class TransformerEncoderLayer(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear1 = nn.Linear(4, 4)

        def forward(self, x):
            return self.linear1(x)

    config = SurgicalIA3Config(selections={"linear1": {"side": "output", "ranges": [[0, 4]]}})
    adapted, x = get_peft_model(TransformerEncoderLayer(), config).eval(), torch.randn(2, 4)
    before = adapted(x)
    perturb(adapted)
    assert not torch.equal(adapted(x), before)


@pytest.mark.parametrize("module", ["dt_proj", "x_proj", "out_proj"])
def test_what_kernels_of_mamba_read_is_refused(module):
    sizes = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 1, "state_size": 4}
    model = MambaForCausalLM(MambaConfig(**sizes))
    whole = {f"backbone.layers.0.mixer.{module}": {"side": "output", "ranges": [[0, 4]]}}
    with pytest.raises(SelectionError, match="belongs to a MambaMixer, which reads its weight without calling it"):
        get_peft_model(model, SurgicalIA3Config(selections=whole))
    called = {"backbone.layers.0.mixer.in_proj": {"side": "output", "ranges": [[0, 4]]}}
    adapted = get_peft_model(model, SurgicalIA3Config(selections=called)).eval()
    before = logits(adapted, tiny_ids() % 64)
    perturb(adapted)
    assert not torch.equal(logits(adapted, tiny_ids() % 64), before)


@pytest.mark.parametrize("module", ["q_proj", "out_proj"])
def test_what_the_attention_of_wavlm_reads_is_refused(module):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    convolutions = {"conv_dim": (8,), "conv_stride": (2,), "conv_kernel": (3,), "num_conv_pos_embedding_groups": 2}
    name = f"encoder.layers.0.attention.{module}"
    config = SurgicalIA3Config(selections={name: {"side": "output", "ranges": [[0, 4]]}})
    with pytest.raises(SelectionError, match="belongs to a WavLMAttention, which reads its weight"):
        get_peft_model(WavLMModel(WavLMConfig(**sizes, **convolutions)), config)


@pytest.mark.parametrize("parameter", ["A_log", "D"])
def test_what_has_only_one_of_mambas_parameters_is_taken(parameter):
    # Gated delta nets have an A_log, too, and call their output projection.
    mixer = nn.ModuleDict({"out_proj": nn.Linear(4, 4)})
    mixer.register_parameter(parameter, nn.Parameter(torch.ones(4)))
    assert find_module(mixer, "out_proj") is mixer["out_proj"]


def test_what_is_made_of_a_class_that_reads_weights_does_so_and_what_is_only_called_so_does_not():
    made = type("Mine", (DetrMHAttentionMap,), {})(16, 2)
    with pytest.raises(SelectionError, match="belongs to a Mine, which reads its weight"):
        find_module(made, "k_proj")
    called = type("DetrMHAttentionMap", (nn.ModuleDict,), {})({"k_proj": nn.Linear(4, 4)})
    assert find_module(called, "k_proj") is called["k_proj"]


@pytest.mark.parametrize("ordered", [True, False])
def test_the_head_of_an_assistant_is_refused_where_it_is_read_in_an_order_of_its_own(ordered):
    assistant = Gemma4AssistantForCausalLM.__new__(Gemma4AssistantForCausalLM)
    nn.Module.__init__(assistant)
    assistant.lm_head, assistant.config = nn.Linear(4, 4), SimpleNamespace(use_ordered_embeddings=ordered)
    if ordered:
        with pytest.raises(SelectionError, match="belongs to a Gemma4AssistantForCausalLM, which reads its weight"):
            find_module(assistant, "lm_head")
    else:
        assert find_module(assistant, "lm_head") is assistant.lm_head


@pytest.mark.parametrize("width", [7, 9])
def test_a_module_of_another_width_than_the_adapters_is_refused(width):
    words = f"the adapter was made for a 0 with {width} input features; this model's has 8"
    with pytest.raises(SelectionError, match=words):
        check_target("0", nn.Linear(8, 12), Coordinates("input", ((0, 4),)), width)


MAPS = {"detr": "Detr", "conditional_detr": "ConditionalDetr", "maskformer": "MaskFormerDetr", "dab_detr": "DabDetr"}


@pytest.mark.parametrize("family", MAPS)
def test_the_keys_of_maps_of_attention_which_run_as_a_convolution_are_refused(family):
    modeling = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    kind = getattr(modeling, f"{MAPS[family]}MHAttentionMap")
    model = nn.Sequential(kind(16, 16, 2) if family == "dab_detr" else kind(16, 2))
    query, key = ("0.q_linear", "0.k_linear") if family == "dab_detr" else ("0.q_proj", "0.k_proj")
    with pytest.raises(SelectionError, match=f"belongs to a {kind.__name__}, which reads its weight"):
        find_module(model, key)
    assert find_module(model, query) is model.get_submodule(query)


@pytest.mark.parametrize("module", ["mlp.dense_4h_to_h", "self_attention.dense"])
@pytest.mark.parametrize(("slices", "slow", "reads"), [(2, True, True), (2, False, False), (1, True, False)])
def test_what_bloom_reads_in_slices_is_refused(module, slices, slow, reads):
    sizes = {"vocab_size": 128, "hidden_size": 32, "n_layer": 1, "n_head": 4}
    model = BloomForCausalLM(BloomConfig(**sizes, pretraining_tp=slices, slow_but_exact=slow)).eval()
    config = SurgicalIA3Config(selections={f"transformer.h.0.{module}": {"side": "input", "ranges": [[0, 4]]}})
    before = logits(model)
    if reads:
        with pytest.raises(SelectionError, match=r"belongs to a Bloom\w+, which reads its weight"):
            get_peft_model(model, config)
    else:
        adapted = get_peft_model(model, config)
        perturb(adapted)
        assert not torch.equal(logits(adapted), before)


@pytest.mark.parametrize("module", ["query_key", "value"])
def test_what_hashed_attention_reads_in_generation_is_refused(module):
    sizes = {"hidden_size": 16, "attention_head_size": 8, "num_attention_heads": 2, "feed_forward_size": 16}
    model = ReformerModel(ReformerConfig(**sizes, attn_layers=["lsh", "local"], axial_pos_embds=False))
    hashed, local = (f"encoder.layers.{layer}.attention.self_attention.{module}" for layer in (0, 1))
    with pytest.raises(SelectionError, match="belongs to a LSHSelfAttention, which reads its weight"):
        find_module(model, hashed)
    if module == "value":
        assert find_module(model, local) is model.get_submodule(local)


@pytest.mark.parametrize("kind", [*targets._READ_BY])
def test_what_is_said_to_read_weights_does(kind):
    families = Path(transformers.models.__path__[0])
    sources = [path.read_text(encoding="utf-8") for path in families.glob("*/modeling_*.py")]
    if not (holding := [source for source in sources if f"class {kind}(" in source]):
        pytest.skip("this transformers has no such class")
    assert all(f"self.{module}.weight" in source for source in holding for module in targets._READ_BY[kind])


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Named(nn.Linear):
    pass


@pytest.mark.parametrize("side", ["input", "output"])
@pytest.mark.parametrize(
    "module",
    [
        DeepseekV4GroupedLinear(8, 12, 2),
        IdeficsDecoupledLinear(8, 12, out_additional_features=2),
        Llama4Router(Llama4TextConfig(hidden_size=8, num_local_experts=12)),
        PhimoeTopKRouter(PhimoeConfig(hidden_size=8, num_local_experts=12)),
        Doubled(8, 12),
    ],
    ids=lambda module: type(module).__name__,
)
def test_what_does_not_compute_as_a_linear_is_refused(module, side):
    model = nn.Sequential(module)
    config = SurgicalIA3Config(selections={"0": {"side": side, "ranges": [[0, 4]]}})
    with pytest.raises(SelectionError, match=f"0 is a {type(module).__name__}, which has a forward of its own"):
        get_peft_model(model, config)
    assert model[0] is module


@pytest.mark.parametrize("side", ["input", "output"])
@pytest.mark.parametrize("kind", [FalconLinear, Named, nn.modules.linear.NonDynamicallyQuantizableLinear])
def test_a_class_that_computes_as_a_linear_is_scaled_and_merged(kind, side):
    module, x = kind(8, 12), torch.randn(3, 8)
    nn.init.normal_(module.weight), nn.init.normal_(module.bias)
    before = module(x)
    config = SurgicalIA3Config(selections={"0": {"side": side, "ranges": [[0, 4]]}})
    model = get_peft_model(nn.Sequential(module), config).eval()
    perturb(model)
    edited = model(x)
    assert not torch.equal(edited, before)
    model.merge_adapter()
    torch.testing.assert_close(model(x), edited)


def test_a_name_that_only_a_property_leads_to_is_refused(tmp_path):
    model, name = tiny_model("llama"), "base_model.layers.0.mlp.down_proj"
    assert model.get_submodule(name) is model.model.layers[0].mlp.down_proj
    edit = Edit({name: ModuleScale(Coordinates("input", ((0, 2),)), torch.tensor([2.0, 3.0]), 48)})
    words = r"no module named base_model\.layers\.0\.mlp\.down_proj; it has model\.layers\.0\.mlp\.down_proj"
    with pytest.raises(SelectionError, match=words):
        merge(model, edit, tmp_path / "merged")
    with pytest.raises(SelectionError, match=words):
        get_peft_model(model, edit.config())
    assert find_module(model, name.removeprefix("base_")) is model.get_submodule(name)
    with pytest.raises(SelectionError, match="no module named nothing"):
        find_module(model, "nothing.at.all")
    # What an adapter stands around has no name that anybody would select.
    with pytest.raises(SelectionError, match=r"no module named nowhere\.base_layer\.$"):
        find_module(tiny_peft(), "nowhere.base_layer")
