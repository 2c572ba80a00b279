import copy

import pytest
import torch
from peft import BOFTConfig, IA3Config, LoraConfig, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from peft_surgical.errors import AdapterError, ModelError
from peft_surgical.measuring.rounding import round_channels, rounded_state

from .adapters import add, logits, tiny_peft
from .conftest import fingerprint
from .tiny import tiny_experts, tiny_model, tiny_sighted


def test_rounding_worked_by_hand():
    weight = torch.tensor([[0.0, 0.4, -1.0, 0.6], [0.0, 0.0, 0.0, 0.0], [3.0, -2.4, 1.4, 0.0]])
    # Two bits: -m, 0, m. Three bits: seven values, here with steps of 1/3 and 1.
    assert round_channels(weight, 2).tolist() == [[0, 0, -1, 1], [0, 0, 0, 0], [3, -3, 0, 0]]
    expected = torch.tensor([[0, 1 / 3, -1, 2 / 3], [0, 0, 0, 0], [3, -2, 1, 0]])
    torch.testing.assert_close(round_channels(weight, 3), expected)
    assert round_channels(weight.bfloat16(), 8).dtype == torch.bfloat16
    eight = round_channels(torch.randn(5, 300, generator=torch.Generator().manual_seed(0)), 8)
    assert max(len(row.unique()) for row in eight) <= 255
    torch.testing.assert_close(round_channels(eight, 8), eight)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_so(value):
    rounded = round_channels(torch.tensor([[1.0, value], [0.0, 0.0], [1.0, 0.5]]), 8)
    assert [bool(row.isfinite().all()) for row in rounded] == [False, True, True]


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
def test_a_rounded_model_is_that_whose_merged_weights_were_rounded(family):
    model = tiny_peft(family)
    add(model, "second")
    before, names = fingerprint(model), ["default", "second"]
    with rounded_state(model, names, 4)():
        found = logits(model)
    assert fingerprint(model) == before
    model.base_model.set_adapter(names)
    merged = model.merge_and_unload()
    exact = logits(merged)
    head = merged.get_output_embeddings()
    with torch.no_grad():
        for module in merged.modules():
            if module is not head and isinstance(module, torch.nn.Linear | Conv1D):
                rows = module.weight.T if isinstance(module, Conv1D) else module.weight
                rows.copy_(round_channels(rows, 4))
    torch.testing.assert_close(found, logits(merged))
    assert (found - exact).abs().max() > 1e-3


def test_the_base_and_other_kinds_of_adapters_are_rounded_too():
    bare = tiny_model("llama")
    plain, before = logits(bare), fingerprint(bare)
    with rounded_state(bare, [], 8)():
        rounded = logits(bare)
    assert fingerprint(bare) == before
    assert not torch.equal(rounded, plain)
    torch.testing.assert_close(rounded, plain, atol=0.05, rtol=0.05)
    model = get_peft_model(tiny_model("llama"), LoraConfig(target_modules=["up_proj", "q_proj"])).eval()
    before = fingerprint(model)
    with rounded_state(model, [], 8)():
        assert torch.equal(logits(model), rounded)
    # An adapter that is still the identity.
    with rounded_state(model, ["default"], 8)():
        assert torch.equal(logits(model), rounded)
    assert fingerprint(model) == before


def test_an_interruption_leaves_every_bit_and_what_acted():
    model = tiny_peft("llama")
    before, expected = fingerprint(model), logits(model)
    with pytest.raises(KeyboardInterrupt), rounded_state(model, ["default"], 8)():
        raise KeyboardInterrupt
    assert fingerprint(model) == before
    assert torch.equal(logits(model), expected)


@pytest.mark.parametrize("bits", [1, 9, 4.0, True])
def test_other_numbers_of_bits_are_refused(bits):
    with pytest.raises(ModelError, match="2 to 8 bits"):
        rounded_state(tiny_model("llama"), [], bits)


def test_what_cannot_be_rounded_is_refused():
    with pytest.raises(AdapterError, match="no adapter named 'other'"):
        rounded_state(tiny_peft("llama"), ["other"], 8)
    with torch.device("meta"):
        model = type(tiny_model("llama"))(tiny_model("llama").config)
    with pytest.raises(ModelError, match="q_proj has no weights at hand"):
        rounded_state(model, [], 8)


def test_it_says_nothing_of_inexact_unmerging(recwarn):
    model = get_peft_model(tiny_model("llama"), IA3Config(target_modules=["up_proj"], feedforward_modules=["up_proj"]))
    before = fingerprint(model)
    with rounded_state(model, ["default"], 8)():
        assert fingerprint(model) != before
    assert fingerprint(model) == before
    assert not [warning for warning in recwarn if "Unmerge" in str(warning.message)]


def test_a_model_most_of_whose_weights_would_stay_is_refused():
    with pytest.raises(ModelError, match=r"experts\.\w+ holds the weights of many experts in one tensor"):
        rounded_state(tiny_experts(), [], 4)
    config = LoraConfig(target_modules=["q_proj"], target_parameters=["experts.gate_up_proj", "experts.down_proj"])
    with pytest.raises(ModelError, match=r"experts\..*\w+ holds the weights of many experts in one tensor"):
        rounded_state(get_peft_model(tiny_experts(), config), [], 4)


def test_convolutions_and_whole_numbers_are_not_experts():
    model = tiny_model("llama")
    model.conv = nn.Conv1d(2, 2, 3)
    model.table = nn.Parameter(torch.ones(2, 2, 2, dtype=torch.int8), requires_grad=False)
    before = model.conv.weight.clone()
    with rounded_state(model, [], 4)():
        assert torch.equal(model.conv.weight, before)


def test_a_vector_with_dimensions_of_one_is_no_experts():
    model = tiny_model("llama")
    model.mix = nn.Parameter(torch.ones(1, 1, 32))
    for made in (model, tiny_sighted()):
        before = copy.deepcopy(made.state_dict())
        with rounded_state(made, [], 4)():
            kept = [key for key, value in made.state_dict().items() if value.ndim > 2]
            assert kept
            assert all(torch.equal(made.state_dict()[key], before[key]) for key in kept)
            assert any(not torch.equal(value, before[key]) for key, value in made.state_dict().items())


def test_matrices_side_by_side_that_are_no_experts_are_refused_as_such():
    model = tiny_model("llama")
    model.gates = nn.Parameter(torch.ones(2, 4, 4))
    with pytest.raises(ModelError, match=r"gates holds .* or other matrices side by side"):
        rounded_state(model, [], 4)


def test_a_head_that_an_adapter_saves_whole_is_not_rounded():
    model = get_peft_model(tiny_model("llama"), LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"]))
    heads = [module for name, module in model.named_modules() if "lm_head" in name and isinstance(module, nn.Linear)]
    assert len(heads) == 2
    before = [head.weight.clone() for head in heads]
    for adapters in ([], ["default"]):
        with rounded_state(model, adapters, 3)():
            assert all(torch.equal(head.weight, weight) for head, weight in zip(heads, before, strict=True))


@torch.no_grad()
def test_what_an_adapter_consists_of_is_taken_for_no_experts():
    config = BOFTConfig(boft_block_size=8, target_modules=["q_proj"], init_weights=False)
    model = get_peft_model(tiny_model("llama"), config).eval()
    with rounded_state(model, [], 4)():
        base = logits(model)
    with rounded_state(model, ["default"], 4)():
        assert not torch.allclose(logits(model), base)
    bare = tiny_model("llama")
    with rounded_state(bare, [], 4)():
        assert torch.equal(logits(bare), base)


def test_an_adapter_that_cannot_be_merged_is_refused_in_a_sentence():
    model = get_peft_model(tiny_model("llama"), LoraConfig(target_modules=["q_proj"], lora_bias=True)).eval()
    before = fingerprint(model)
    with pytest.raises(AdapterError, match=r"cannot merge default into the weights: .* has no bias\.$"):
        rounded_state(model, ["default"], 8)().__enter__()
    assert fingerprint(model) == before
