"""Adapters that are read from disk, and the states of a model that has them."""

import copy
import json
import os
import warnings
from contextlib import nullcontext

import pytest
import torch
from peft import IA3Config, LoHaConfig, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

import peft_surgical as ps
from peft_surgical.adapters.lineage import identities
from peft_surgical.adapters.scale_files import digest_of
from peft_surgical.errors import AdapterError
from peft_surgical.measuring.attached import attach, attach_dials, check_together

from .adapters import OTHER_COMPONENTS, logits, saved, tiny_peft
from .tiny import tiny_model

PLAIN = IA3Config(target_modules=["v_proj", "down_proj"], feedforward_modules=["down_proj"])


def stock(config, folder, family="llama"):
    """A stock adapter that changes what the model computes."""
    model = get_peft_model(tiny_model(family), config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "ia3_l" in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    return folder


def in_state(model, state):
    with state():
        return logits(model)


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(target_modules=["q_proj", "down_proj"], r=2),
        PLAIN,
    ],
    ids=["lora", "ia3"],
)
def test_stock_adapters_act_in_their_states(config, tmp_path):
    folders = [stock(config, tmp_path / name) for name in ("first", "second", "third")]
    base = logits(tiny_model("llama"))
    one = logits(PeftModel.from_pretrained(tiny_model("llama"), folders[0]).eval())
    model, states = attach(tiny_model("llama"), folders)
    assert list(states) == ["base", "after 1", "after 2", "edited"]
    seen = {name: in_state(model, state) for name, state in states.items()}
    assert torch.equal(seen["base"], base)
    torch.testing.assert_close(seen["after 1"], one)
    assert not torch.allclose(one, base)
    for before, after in (("after 1", "after 2"), ("after 2", "edited")):
        assert not torch.allclose(seen[before], seen[after])
    # However often a state was visited before, the base comes back bit for bit.
    assert torch.equal(in_state(model, states["base"]), base)


def test_ours_and_plain_together_are_their_product(tmp_path):
    folders = [saved(tiny_peft(), tmp_path / "ours"), stock(PLAIN, tmp_path / "plain")]
    model, states = attach(tiny_model("llama"), folders)
    assert list(states) == ["base", "after 1", "edited"]
    ps.stack(folders, tmp_path / "product")
    both, first = (in_state(model, states[name]) for name in ("edited", "after 1"))
    assert not torch.allclose(both, first)
    product = PeftModel.from_pretrained(tiny_model("llama"), tmp_path / "product").eval()
    torch.testing.assert_close(both, logits(product))


def test_a_dial_goes_from_the_base_to_the_edit(tmp_path):
    folders = [saved(tiny_peft(), tmp_path / "one"), saved(tiny_peft("llama", OTHER_COMPONENTS), tmp_path / "two")]
    model, states = attach(tiny_model("llama"), folders)
    edited = in_state(model, states["edited"])
    model, states = attach_dials(tiny_model("llama"), folders, [0, 0.5, 1, 0.5])
    assert list(states) == ["base", "dial 0", "dial 0.5", "dial 1"]
    assert len(model.peft_config) == 3
    seen = {name: in_state(model, state) for name, state in states.items()}
    assert torch.equal(seen["base"], logits(tiny_model("llama")))
    assert torch.equal(seen["dial 0"], seen["base"])
    torch.testing.assert_close(seen["dial 1"], edited)
    assert not torch.allclose(seen["dial 0.5"], seen["base"])
    assert not torch.allclose(seen["dial 0.5"], edited)


def test_a_dial_turns_lora_adapters_each_by_itself(tmp_path):
    config = LoraConfig(target_modules=["q_proj", "down_proj"], r=2, lora_alpha=3)
    folders = [stock(config, tmp_path / "one"), stock(config, tmp_path / "two")]
    for given in (folders[:1], folders):
        model, states = attach(tiny_model("llama"), given)
        edited = in_state(model, states["edited"])
        model, states = attach_dials(tiny_model("llama"), given, [0, 0.5, 1, 0.5])
        assert list(states) == ["base", "dial 0", "dial 0.5", "dial 1"]
        seen = {name: in_state(model, state) for name, state in states.items()}
        assert torch.equal(seen["base"], logits(tiny_model("llama")))
        assert torch.equal(seen["dial 0"], seen["base"])
        assert torch.equal(seen["dial 1"], edited)
        distances = [(seen[name] - seen["base"]).norm() for name in ("dial 0", "dial 0.5", "dial 1")]
        assert distances == sorted(distances)
        assert not torch.equal(seen["dial 0.5"], edited)


def test_without_adapters_there_is_the_base(tmp_path):
    bare = tiny_model("llama")
    model, states = attach(bare, [])
    assert model is bare
    assert list(states) == ["base"]


def test_what_was_measured_is_known_by_its_weights(tmp_path):
    folder = saved(tiny_peft(), tmp_path)
    digest = digest_of(load_file(folder / "adapter_model.safetensors"))
    name = "/".join(folder.parts[-2:])
    assert identities([folder]) == [{"folder": str(folder), "name": name, "sha256": digest}]
    # The same in what a merged checkpoint says of it.
    ps.merge(tiny_model("llama"), folder, tmp_path / "merged")
    [merged] = json.loads((tmp_path / "merged" / "peft_surgical.json").read_text())["edits"]
    assert merged["adapters"] == [{"name": name, "sha256": digest}]


def test_adapters_that_cannot_be_used(tmp_path):
    ours = saved(tiny_peft(), tmp_path / "ours")
    whole = LoraConfig(target_modules=["q_proj"], r=2, modules_to_save=["lm_head"])
    folders = [stock(whole, tmp_path / name) for name in ("one", "two")]
    with pytest.raises(ps.AdapterError, match="the adapters adapter_1, adapter_2 cannot act at once"):
        attach(tiny_model("llama"), folders)
    lora = stock(LoraConfig(target_modules=["q_proj"], r=2), tmp_path / "lora")
    with pytest.raises(ps.AdapterError, match="LORA and SURGICAL_IA3 cannot be active at once"):
        check_together([lora, ours])
    products = stock(LoHaConfig(target_modules=["q_proj"], r=2), tmp_path / "products")
    with pytest.raises(ps.AdapterError, match="LOHA and SURGICAL_IA3 cannot be active at once"):
        check_together([ours, products])
    pickled = stock(LoraConfig(target_modules=["q_proj"], r=2), tmp_path / "pickled")
    os.rename(pickled / "adapter_model.safetensors", pickled / "adapter_model.bin")
    with pytest.raises(ps.AdapterError, match="only a pickle"):
        check_together([pickled])
    cut = stock(LoraConfig(target_modules=["q_proj"], r=2), tmp_path / "cut")
    weights = cut / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    with pytest.raises(ps.AdapterError, match="cannot be put on this model"):
        attach(tiny_model("llama"), [cut])
    with pytest.raises(ps.AdapterError, match=r"cannot be put on this model: size mismatch for .*lora_A"):
        attach(tiny_model("llama", hidden_size=64), [lora])
    config = json.loads((lora / "adapter_config.json").read_text())
    config["target_modules"] = ["q_proj", "k_proj"]
    (lora / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ps.AdapterError, match="missing adapter keys"):
        attach(tiny_model("llama"), [lora])
    (lora / "adapter_config.json").write_text("{}")
    with pytest.raises(ps.AdapterError, match=r"an adapter of the kind None, which PEFT [\d.]+ does not know\."):
        check_together([lora])
    (lora / "adapter_config.json").write_text('{"peft_type": "OF_TOMORROW"}')
    with pytest.raises(ps.AdapterError, match="an adapter of the kind 'OF_TOMORROW', which PEFT"):
        check_together([lora])
    (lora / "adapter_config.json").write_text("[]")
    with pytest.raises(ps.AdapterError, match=r"must hold a JSON object\."):
        check_together([lora])


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_a_file_that_holds_other_values_of_a_tied_head_or_its_own_is_refused(family, tmp_path):
    folder = stock(LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"), tmp_path / "lora", family)
    tensors = load_file(folder / "adapter_model.safetensors")
    head = tiny_model(family).lm_head.weight.detach().clone()
    for factor in (1.0, 1.5):
        save_file({**tensors, "base_model.model.lm_head.weight": factor * head}, folder / "adapter_model.safetensors")
        with nullcontext() if factor == 1 else pytest.raises(AdapterError, match=r"holds lm_head\.weight of the base"):
            attach(tiny_model(family), [folder])


def test_an_output_head_that_is_not_the_models_is_refused(tmp_path):
    head = IA3Config(target_modules=["lm_head"], feedforward_modules=[], task_type="CAUSAL_LM")
    folder = stock(head, tmp_path / "head")
    other = tiny_model("llama")
    other.lm_head.weight.data.mul_(1.5)
    for put_on in (attach, lambda model, folders: attach_dials(model, folders, [2])):
        with pytest.raises(AdapterError, match=r"lm_head\.weight"):
            put_on(copy.deepcopy(other), [folder])
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            put_on(tiny_model("llama"), [folder])
        assert not [each for each in told if "left out" in str(each.message)]
