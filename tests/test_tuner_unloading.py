import copy

import pytest
import torch
from peft import AdaptionPromptConfig, IA3Config, LoHaConfig, LoraConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import peft_surgical as ps
from peft_surgical.errors import AdapterError

from .adapters import add, logits, prompted, saved, tiny_peft
from .conftest import fingerprint
from .localizing import capital, planted, word_tokenizer
from .tiny import tiny_model

RECIPE = ps.Recipe(steps=2, general=4, neighbours=2, variants=2)


def bare_again(model, found, before):
    assert fingerprint(found) == before
    assert not hasattr(found, "peft_config")
    assert torch.equal(logits(found), logits(tiny_model("llama")))


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(target_modules=["q_proj", "down_proj"], init_lora_weights=False),
        IA3Config(target_modules=["down_proj"], feedforward_modules=["down_proj"], init_ia3_weights=False),
        LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"], init_lora_weights=False),
        ps.SurgicalIA3Config(components=["L1.mlp", "L0.head.1"], init_weights=False),
    ],
    ids=["lora", "ia3", "whole", "surgical"],
)
@pytest.mark.parametrize("inside", [False, True])
def test_all_adapters_come_off(config, inside):
    model = tiny_model("llama")
    before = fingerprint(model)
    peft_model = get_peft_model(model, config)
    assert not torch.equal(logits(peft_model), logits(tiny_model("llama"))) or config.modules_to_save
    assert ps.unload(model if inside else peft_model) is model
    bare_again(model, model, before)
    get_peft_model(model, config)


@pytest.mark.parametrize("inside", [False, True])
def test_adapters_of_several_methods_come_off_together(inside):
    model = tiny_model("llama")
    before = fingerprint(model)
    mixed = get_peft_model(model, LoraConfig(target_modules=["q_proj"], init_lora_weights=False), mixed=True)
    mixed.add_adapter("b", LoHaConfig(target_modules=["q_proj", "down_proj"], init_weights=False))
    mixed.set_adapter(["default", "b"])
    assert ps.unload(model if inside else mixed) is model
    bare_again(model, model, before)


def test_what_stands_before_prompts_is_left_behind():
    model = tiny_model("llama")
    with torch.random.fork_rng(devices=[]):
        prompted = get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    assert ps.unload(prompted) is model


@pytest.mark.parametrize("whole", [None, ["lm_head"]])
@pytest.mark.parametrize("kind", ["before each row", "in attention"])
def test_what_learns_tokens_comes_off_with_what_it_saves_whole(kind, whole):
    for inside in (False, True):
        model = prompted(kind, modules_to_save=whole)
        assert not torch.equal(logits(model)[:, -3:], logits(tiny_model("llama"))[:, -3:])
        given = model.get_base_model() if inside else model
        bare_again(model, ps.unload(given), fingerprint(tiny_model("llama")))


def test_what_lies_below_learned_tokens_comes_off_too():
    base = tiny_model("llama")
    base.add_adapter(LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    model = get_peft_model(base, AdaptionPromptConfig(task_type="CAUSAL_LM", adapter_len=3, adapter_layers=2))
    bare_again(model, ps.unload(model), fingerprint(tiny_model("llama")))


def test_what_transformers_put_on_comes_off_too():
    model = tiny_model("llama")
    before = fingerprint(model)
    model.add_adapter(LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    bare_again(model, ps.unload(model), before)
    model.add_adapter(LoraConfig(target_modules=["q_proj"]))


@pytest.mark.parametrize("method", ["surgical", "lora"])
def test_what_an_adapter_has_trained_in_a_modules_place_goes_with_it(method):
    model = tiny_peft(modules_to_save=["lm_head"])
    if method == "lora":
        model = get_peft_model(tiny_model("llama"), LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"]))
    model.base_model.model.lm_head.modules_to_save["default"].weight.data.mul_(1.3)
    assert not torch.equal(logits(model), logits(tiny_model("llama")))
    for take_off in (ps.unload, unmerged) if method == "surgical" else (ps.unload,):
        found = take_off(copy.deepcopy(model))
        assert torch.equal(logits(found), logits(tiny_model("llama")))
        assert not any(parameter.requires_grad for parameter in found.parameters())


def test_a_model_that_transformers_put_an_adapter_on_is_saved_under_its_own_names(tmp_path):
    adapter = saved(tiny_peft(components=["L1.mlp"]), tmp_path / "adapter")
    model = tiny_model("llama")
    model.load_adapter(str(adapter))
    found = ps.unload(model)
    found.save_pretrained(tmp_path / "base")
    assert load_file(tmp_path / "base/model.safetensors").keys() == dict(tiny_model("llama").named_parameters()).keys()
    ps.merge(found, adapter, tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(logits(merged), logits(tiny_peft(components=["L1.mlp"])), atol=1e-5, rtol=1e-4)


LORA = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "down_proj"], init_lora_weights=False)
SURGICAL = ps.SurgicalIA3Config(task_type="CAUSAL_LM", components=["L1.mlp"], init_weights=False)
TOKENS = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
WHOLE = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], modules_to_save=["lm_head", "layers.1.mlp"])


@pytest.mark.parametrize(
    "configs",
    [(SURGICAL, LORA), (LORA, LORA), (WHOLE, LORA), (LORA, TOKENS), (TOKENS, WHOLE), (SURGICAL, LORA, TOKENS)],
    ids=["surgical lora", "lora lora", "whole lora", "lora tokens", "tokens whole", "surgical lora tokens"],
)
@pytest.mark.filterwarnings("ignore:You are trying to modify a model with PEFT for a second time")
@pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute")
def test_all_that_is_around_a_model_comes_off(configs):
    base = model = tiny_model("llama")
    before = fingerprint(base)
    for config in configs:
        with torch.random.fork_rng(devices=[]):
            model = get_peft_model(model, copy.deepcopy(config))
    assert ps.unload(model) is base
    bare_again(model, base, before)


def unmerged(model):
    return model.unload()


def merged(model):
    return model.merge_and_unload()


@pytest.mark.parametrize("take_off", [ps.unload, unmerged, merged])
def test_a_module_with_submodules_that_is_saved_whole_comes_off(take_off):
    model = tiny_peft(modules_to_save=["layers.2.mlp"])
    whole = model.get_base_model().model.layers[2].mlp.modules_to_save["default"]
    whole.down_proj.weight.data.mul_(1.3)
    kept, base = logits(model), tiny_model("llama")
    found = take_off(model)
    torch.testing.assert_close(logits(found), kept if take_off is merged else logits(base), rtol=1e-4, atol=1e-5)
    assert found.state_dict().keys() == base.state_dict().keys()
    assert (found.model.layers[2].mlp is whole) == (take_off is merged)


def test_adapters_of_two_methods_come_off_together():
    model = tiny_model("llama")
    before = fingerprint(model)
    model.add_adapter(LoraConfig(target_modules=["down_proj"], init_lora_weights=False))
    get_peft_model(model, ps.SurgicalIA3Config(components=["L1.mlp"], init_weights=False))
    bare_again(model, ps.unload(model), before)


def test_a_model_without_adapters_is_given_back():
    model = tiny_model("llama")
    assert ps.unload(model) is model


def test_what_is_merged_is_not_left_in_the_weights():
    model = tiny_peft()
    add(model, "other")
    model.merge_adapter(["other"])
    for given in (model, model.get_base_model()):
        with pytest.raises(AdapterError, match="has an adapter merged into its weights; unmerge it first"):
            ps.unload(given)
    model.unmerge_adapter()
    assert torch.equal(logits(ps.unload(model)), logits(tiny_model("llama")))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_unloading_a_peft_model_takes_merged_scales_out_of_the_weights(dtype):
    base = tiny_model("llama", dtype=dtype)
    model = tiny_peft(dtype=dtype)
    add(model, "other")
    model.merge_adapter(["default", "other"])
    found = model.unload().state_dict()
    assert found.keys() == base.state_dict().keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in base.state_dict().items())


def test_unloading_does_not_leave_what_another_method_merged():
    base = tiny_model("llama")
    base.add_adapter(LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    model = get_peft_model(base, ps.SurgicalIA3Config(components=["L1.mlp"], init_weights=False))
    model.merge_adapter()
    merged = logits(model)
    with pytest.raises(AdapterError, match="q_proj has an adapter merged into its weights; unmerge it first"):
        model.unload()
    assert torch.equal(logits(model), merged)
    model.unmerge_adapter()
    torch.testing.assert_close(logits(model.unload()), logits(tiny_model("llama")))


@pytest.mark.parametrize("edit", [ps.edit, ps.edit_keyed])
def test_a_model_is_edited_once_more(edit, tmp_path):
    model, tokenizer = planted(), word_tokenizer()
    options = {"retention_tokens": 0, "progress": False}
    if edit is ps.edit:
        options |= {"recipe": RECIPE, "selection": ps.Selection.from_components("L1.mlp")}
    else:
        options |= {"recipe": ps.KeyedRecipe(steps=2, general=4, neighbours=2, variants=2), "layers": [1]}
    before = fingerprint(model)
    first = edit(model, tokenizer, capital(), out=tmp_path / "first", **options)
    with pytest.raises(AdapterError, match=r"peft_surgical\.unload\(model\)"):
        edit(model, tokenizer, capital(), out=tmp_path / "second", **options)
    assert fingerprint(ps.unload(model)) == before
    second = edit(model, tokenizer, capital(), out=tmp_path / "second", **options)
    assert second.stages == first.stages
