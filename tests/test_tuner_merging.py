"""Adapters folded into the base weights and taken out again, and adapters multiplied into new ones."""

import copy
import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.testing._internal.two_tensor import TwoTensor
from transformers import Wav2Vec2Config, Wav2Vec2Model

from peft_surgical.errors import AdapterError
from peft_surgical.tuner import SurgicalIA3Config, activate
from peft_surgical.tuner.mergeable import places_of, shared_with
from tests.adapters import add, logits, perturb, tiny_peft, trainable
from tests.tiny import tiny_model

TOLERANCES = {torch.float32: 1e-5, torch.float16: 0.02, torch.bfloat16: 0.2}


def test_deleting_an_idle_adapter_leaves_a_merged_one_merged():
    model = tiny_peft()
    add(model, "other")
    model.merge_adapter()
    merged = logits(model)
    model.delete_adapter("other")
    assert model.get_model_status().merged_adapters == ["default"]
    assert torch.equal(logits(model), merged)


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES.items(), ids=str)
def test_merge_unmerge_is_bit_exact(dtype, tolerance):
    model = tiny_peft(dtype=dtype)
    add(model, "other")
    activate(model, ["default", "other"])
    layer = model.base_model.surgical_layers()[0]
    layer.surgical_ia3_delta["default"].data[0] = -1.0
    before, edited = copy.deepcopy(model.state_dict()), logits(model)
    model.merge_adapter()
    assert model.get_model_status().merged_adapters == ["default", "other"]
    assert not all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    torch.testing.assert_close(logits(model), edited, atol=tolerance, rtol=tolerance / 2)
    with pytest.raises(ValueError, match="while they are merged"):
        model.delete_adapter("other")
    model.unmerge_adapter()
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    assert torch.equal(logits(model), edited)


def test_switching_off_a_merged_model_gives_the_base():
    model = tiny_peft(dtype=torch.bfloat16)
    base, edited = logits(tiny_model("llama", dtype=torch.bfloat16)), logits(model)
    model.merge_adapter()
    with model.disable_adapter():
        assert torch.equal(logits(model), base)
    assert torch.equal(logits(model), edited)


def test_unload_gives_the_base_back():
    model = tiny_peft()
    add(model, "other")
    base = model.unload()
    assert torch.equal(logits(base), logits(tiny_model("llama")))
    assert not any("surgical" in name for name, _ in base.named_modules())


def test_a_merge_that_rounding_loses_warns_and_float32_keeps_it():
    model = tiny_peft(dtype=torch.bfloat16)
    for layer in model.base_model.surgical_layers():
        layer.surgical_ia3_delta["default"].data[:] = 0.001
    with pytest.warns(UserWarning, match=r"100\.0% of the weights .* bfloat16; merge in float32"):
        model.merge_adapter()
    model.unmerge_adapter()
    with pytest.warns(UserWarning, match="loses part of the edit"):
        model.merge_and_unload()
    model = tiny_peft()
    for layer in model.base_model.surgical_layers():
        layer.surgical_ia3_delta["default"].data[:] = 0.001
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.merge_adapter()


def test_merging_adapters_of_unlike_selections_says_nothing():
    model = tiny_peft(components=["L1.mlp"])
    add(model, "other", components=["L2.mlp"])
    model.base_model.set_adapter(["default", "other"])
    both = logits(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        merged = model.merge_and_unload()
    torch.testing.assert_close(logits(merged), both, atol=1e-5, rtol=1e-5)


def test_safe_merge_refuses_what_is_not_finite():
    model = tiny_peft()
    model.base_model.surgical_layers()[1].surgical_ia3_delta["default"].data[0] = float("inf")
    with pytest.raises(AdapterError, match="NaNs detected in the merged weights"):
        model.merge_and_unload(safe_merge=True)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda layer: layer.surgical_ia3_delta["default"].data.fill_(float("nan")), "has scales that are not"),
        (lambda layer: layer.base_layer.weight.data.fill_(float("nan")), "not finite without an adapter either"),
        (lambda layer: layer.base_layer.weight.data.fill_(60000), "does not fit into float16; merge in float32"),
    ],
)
def test_a_safe_merge_says_what_is_not_finite(change, why):
    model = tiny_peft(dtype=torch.float16)
    for layer in model.base_model.surgical_layers():
        layer.surgical_ia3_delta["default"].data.fill_(0.5)
    change(model.base_model.surgical_layers()[1])
    with pytest.raises(AdapterError, match=why):
        model.merge_adapter(safe_merge=True)


def test_a_bias_that_another_module_has_too_is_not_merged():
    pair = torch.nn.ModuleDict({name: torch.nn.Linear(4, 4) for name in ("a", "b")})
    pair["b"].bias = pair["a"].bias
    pair.forward = lambda x: pair["b"](pair["a"](x))
    model = get_peft_model(pair, SurgicalIA3Config(selections={"a": {"side": "output", "ranges": [[0, 4]]}}))
    with pytest.raises(AdapterError, match=r"a shares its bias with b\.bias"):
        model.merge_adapter()
    # On the input side nothing happens to it.
    beside = get_peft_model(model.unload(), SurgicalIA3Config(selections={"a": {"side": "input", "ranges": [[0, 4]]}}))
    perturb(beside)
    expected = beside(torch.ones(4))
    beside.merge_adapter()
    torch.testing.assert_close(beside(torch.ones(4)), expected)


def test_a_model_of_sound_that_has_no_embeddings_of_tokens_is_merged():
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    convolutions = {"conv_dim": (8,), "conv_stride": (2,), "conv_kernel": (3,), "num_conv_pos_embedding_groups": 2}
    model = Wav2Vec2Model(Wav2Vec2Config(**sizes, **convolutions)).eval()
    selections = {"encoder.layers.0.feed_forward.output_dense": {"side": "input", "ranges": [[0, 24]]}}
    model, sound = get_peft_model(model, SurgicalIA3Config(selections=selections)), torch.randn(1, 400)
    perturb(model)
    with torch.no_grad():
        before = model(sound).last_hidden_state
        torch.testing.assert_close(model.merge_and_unload()(sound).last_hidden_state, before)


@pytest.mark.parametrize("before", [[], ["other"]])
def test_a_refused_merge_leaves_the_weights_and_the_layers(before):
    model = tiny_peft()
    model.base_model.surgical_layers()[1].surgical_ia3_delta["default"].data[0] = float("inf")
    add(model, "other")
    if before:
        model.merge_adapter(before)
    weights = copy.deepcopy(model.state_dict())
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(AdapterError, match="NaNs detected"):
            merge(safe_merge=True, adapter_names=["default"])
        assert model.get_model_status().merged_adapters == before
        assert all(torch.equal(value, model.state_dict()[key]) for key, value in weights.items())


def last_layer(model):
    return model.get_submodule("model.layers.2.self_attn.o_proj")


def of_two_tensors(module):
    module.weight = torch.nn.Parameter(TwoTensor(module.weight.data, module.weight.data.clone()), requires_grad=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (of_two_tensors, "cannot be rewritten in place: TwoTensor"),
        (torch.nn.utils.parametrizations.weight_norm, "the weight of a .*Linear is computed from other parameters"),
        (torch.nn.utils.spectral_norm, "the weight of a Linear is computed from other parameters"),
    ],
)
@pytest.mark.parametrize("safe_merge", [False, True])
def test_weights_that_would_lose_the_edit_are_not_merged(change, message, safe_merge):
    """As those of quanto and torchao, which call themselves bfloat16, and of FSDP2."""
    base = tiny_model("llama")
    change(last_layer(base))
    model = get_peft_model(base, SurgicalIA3Config(components=["L0.head.1", "L2.head.3"])).eval()
    perturb(model)
    edited = logits(model)
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(AdapterError, match=message):
            merge(safe_merge=safe_merge)
    assert model.get_model_status().merged_adapters == []
    assert torch.equal(logits(model), edited)


def test_other_weights_may_be_of_any_kind():
    base = tiny_model("llama")
    of_two_tensors(last_layer(base))
    model = get_peft_model(base, SurgicalIA3Config(components=["L0.head.1"])).eval()
    perturb(model)
    edited = logits(model)
    model.merge_adapter()
    torch.testing.assert_close(logits(model), edited, atol=1e-5, rtol=1e-5)


class Deaf(torch.nn.Parameter):
    """A weight that hands out copies of itself."""

    @property
    def data(self):
        return self.detach().clone()


def test_a_weight_that_does_not_take_what_is_written_is_noticed():
    model = tiny_peft()
    layer = last_layer(model.base_model.model)
    layer.base_layer.weight = Deaf(layer.base_layer.weight.detach(), requires_grad=False)
    weights, edited = copy.deepcopy(model.state_dict()), logits(model)
    with pytest.raises(AdapterError, match="the weight of a Linear does not hold what is written into it"):
        model.merge_adapter()
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in weights.items())
    assert torch.equal(logits(model), edited)


def stopped(errors):
    if errors:
        raise errors.pop()


@pytest.mark.parametrize("error", [KeyboardInterrupt, torch.OutOfMemoryError, RuntimeError])
@pytest.mark.parametrize("before", [[], ["other"]])
def test_whatever_stops_a_merge_leaves_the_weights_and_the_layers(monkeypatch, error, before):
    model = tiny_peft()
    add(model, "other")
    if before:
        model.merge_adapter(before)
    weights, modules = copy.deepcopy(model.state_dict()), [name for name, _ in model.named_modules()]
    later = model.get_submodule("base_model.model.model.layers.1.mlp.down_proj")
    product = later.product
    for merge in (model.merge_adapter, model.merge_and_unload):
        left = [error]
        monkeypatch.setattr(later, "product", lambda names, left=left: stopped(left) or product(names))
        with pytest.raises(error):
            merge(adapter_names=["default"])
        assert model.get_model_status().merged_adapters == before
        assert [name for name, _ in model.named_modules()] == modules
        assert all(torch.equal(value, model.state_dict()[key]) for key, value in weights.items())


def test_merging_and_unloading_safely_is_the_same():
    adapters = [tiny_peft(), tiny_peft()]
    unsafe = adapters[0].merge_and_unload().state_dict()
    safe = adapters[1].merge_and_unload(safe_merge=True).state_dict()
    assert all(torch.equal(value, safe[key]) for key, value in unsafe.items())


def test_merging_an_unknown_adapter_is_refused():
    model = tiny_peft()
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(AdapterError, match="no adapter named 'typo'; the model has default"):
            merge(adapter_names=["typo"])


def test_adapters_to_merge_are_a_list_of_different_ones():
    model = tiny_peft()
    edited = logits(model)
    for merge in (model.merge_adapter, model.merge_and_unload):
        for name in ("default", ""):
            with pytest.raises(AdapterError, match=f"as a list of names, got {name!r}; give"):
                merge(adapter_names=name)
        with pytest.raises(AdapterError, match="'default' is named twice"):
            merge(adapter_names=["default", "default"])
    assert torch.equal(logits(model), edited)


def test_scales_over_another_methods_adapter_are_not_taken_off_with_it():
    base = tiny_model("llama")
    base.add_adapter(LoraConfig(target_modules=["down_proj"], init_lora_weights=False))
    model = get_peft_model(base.eval(), SurgicalIA3Config(components=["L1.mlp"], projections=["post"]))
    perturb(model)
    edited = logits(model)
    for take in (model.merge_adapter, model.merge_and_unload, model.unload):
        with pytest.raises(AdapterError, match=r"layers\.1\.mlp\.down_proj has an adapter of another method on it"):
            take()
    assert torch.equal(logits(model), edited)


class Tied(torch.nn.Module):
    """Two linear modules of one weight."""

    def __init__(self):
        super().__init__()
        self.a, self.b = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
        self.b.weight = self.a.weight


def test_what_is_tied_is_seen_in_memory_and_not_by_name():
    first = {"side": "input", "ranges": [[0, 2]]}
    model = get_peft_model(Tied(), SurgicalIA3Config(selections={"b": first}))
    with pytest.raises(AdapterError, match=r"b shares its weight with a\.weight"):
        model.merge_adapter()
    untied = tiny_model("qwen2")
    untied.lm_head.weight = torch.nn.Parameter(untied.lm_head.weight.detach().clone())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(untied, SurgicalIA3Config(selections={"lm_head": first}))
    perturb(model)
    edited = logits(model)
    model.merge_adapter()
    torch.testing.assert_close(logits(model), edited, atol=1e-5, rtol=1e-5)


def test_weights_that_are_offloaded_share_no_memory():
    weights = {name: torch.empty(2, 2, device="meta") for name in "ab"}
    assert shared_with(places_of(weights), "a", weights["a"]) is None


def test_a_tied_head_is_scaled_but_not_merged():
    config = SurgicalIA3Config(selections={"lm_head": {"side": "input", "ranges": [[0, 4]]}})
    with pytest.warns(UserWarning, match="tied"):
        model = get_peft_model(tiny_model("qwen2"), config)
    perturb(model)
    assert not torch.equal(logits(model), logits(tiny_model("qwen2")))
    with pytest.raises(AdapterError, match="shares its weight with the embeddings"):
        model.merge_adapter()


def test_add_weighted_adapter_is_the_weighted_product():
    model = tiny_peft()
    add(model, "other")
    for name in ("default", "other"):
        perturb(model, name, spread=0.25)
    activate(model, ["default", "other"], trainable=["default"])
    both = logits(model)
    model.add_weighted_adapter(["default", "other"], [1.0, 1.0], "product")
    assert trainable(model) == {"default"}
    model.set_adapter("product")
    assert torch.equal(logits(model), both)
    model.add_weighted_adapter(["default", "default"], torch.tensor([0.5, 0.5]), "same")
    model.set_adapter("same")
    first = logits(model)
    model.set_adapter("default")
    torch.testing.assert_close(logits(model), first)


def test_weights_of_one_half_keep_two_identities_an_identity():
    """PEFT's sum would make 0.5 * 1 + 0.5 * (missing = 0) of it."""
    model = tiny_peft(perturbed=False)
    model.add_adapter("other", SurgicalIA3Config(components=["L0.mlp"]))
    model.add_weighted_adapter(["default", "other"], [0.5, 0.5], "mean")
    model.set_adapter("mean")
    assert torch.equal(logits(model), logits(tiny_model("llama")))


@pytest.mark.parametrize(
    ("adapters", "weights", "name", "message"),
    [
        (["default"], [1.0], "default", "already"),
        (["nobody"], [1.0], "new", "no adapter named 'nobody'"),
        (["default"], [1.0, 2.0], "new", "1 adapters and 2 weights"),
        ([], [], "new", "0 adapters"),
    ],
)
def test_bad_weighted_products_are_refused(adapters, weights, name, message):
    with pytest.raises(AdapterError, match=message):
        tiny_peft().add_weighted_adapter(adapters, weights, name)


def test_a_weighted_product_does_not_ask_what_its_adapters_call_their_base():
    model = tiny_peft()
    add(model, "other")
    model.peft_config["default"].base_model_name_or_path = "org/base"
    model.peft_config["other"].base_model_name_or_path = "somewhere/base"
    model.add_weighted_adapter(["default", "other"], [1.0, 1.0], "new")
    assert model.peft_config["new"].base_model_name_or_path == "org/base"


class Twice(torch.nn.Module):
    """A block that runs twice, under two names."""

    def __init__(self):
        super().__init__()
        self.first = self.second = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh())

    def forward(self, x):
        return self.second(self.first(x))


def test_a_block_that_goes_by_two_names_is_merged_for_both():
    model = get_peft_model(Twice(), SurgicalIA3Config(selections={"first.0": {"side": "input", "ranges": [[0, 2]]}}))
    perturb(model)
    x = torch.ones(1, 4)
    edited = model(x)
    model.merge_adapter()
    torch.testing.assert_close(model(x), edited)


def test_a_module_that_another_name_calls_unscaled_is_not_merged():
    both = Tied()
    both.b = both.a
    model = get_peft_model(both, SurgicalIA3Config(selections={"a": {"side": "input", "ranges": [[0, 2]]}}))
    with pytest.raises(AdapterError, match=r"a shares its weight with b\.weight"):
        model.merge_adapter()
