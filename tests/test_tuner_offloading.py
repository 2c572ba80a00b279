"""An adapter on a model whose weights accelerate has offloaded before: its scales stay at hand."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from accelerate.hooks import add_hook_to_module
from peft import PeftModel, get_peft_model, load_peft_weights, set_peft_model_state_dict
from torch import nn
from transformers import AutoModelForCausalLM

from peft_surgical.errors import AdapterError
from peft_surgical.tuner import SurgicalIA3Config, activate
from peft_surgical.tuner.offloading import execution_device

from .adapters import COMPONENTS, add, deltas, logits, perturb, saved, tiny_peft
from .tiny import tiny_ids, tiny_model

MAP = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "disk"}
MAP |= {"model.layers.0": "cpu", "model.layers.1": "disk", "model.layers.2": "disk"}


def base(how, folder):
    model = tiny_model("llama")
    if how == "memory":
        cpu_offload(model, execution_device="cpu")
    elif how == "disk":
        disk_offload(model, folder / "offloaded", execution_device="cpu")
    elif how == "device_map":
        model.save_pretrained(folder / "base")
        model = AutoModelForCausalLM.from_pretrained(
            folder / "base", device_map=MAP, offload_folder=folder / "offloaded"
        )
    return model


def adapted(how, folder):
    model = get_peft_model(base(how, folder), SurgicalIA3Config(components=list(COMPONENTS))).eval()
    perturb(model)
    return model


@pytest.fixture(params=["memory", "disk", "device_map"])
def how(request):
    return request.param


def test_it_computes_trains_and_is_saved_as_on_weights_at_hand(how, tmp_path):
    model, plain = adapted(how, tmp_path), adapted(None, tmp_path)
    weight = model.get_base_model().model.layers[1].mlp.down_proj.base_layer.weight
    assert weight.is_meta
    for _ in range(3):
        assert torch.equal(logits(model), logits(plain))
        for one in (model, plain):
            trained = [p for p in one.parameters() if p.requires_grad]
            one(input_ids=tiny_ids(), labels=tiny_ids()).loss.backward()
            torch.optim.SGD(trained, lr=0.1).step()
            one.zero_grad()
    expected = deltas(plain)
    assert all(torch.equal(delta, expected[name]) for name, delta in deltas(model).items())
    assert weight.is_meta
    again = PeftModel.from_pretrained(tiny_model("llama"), saved(model, tmp_path / "adapter"))
    assert torch.equal(logits(again), logits(plain))


def test_a_second_adapter_is_at_hand_and_both_are_merged(how, tmp_path):
    model, plain = adapted(how, tmp_path), adapted(None, tmp_path)
    for one in (model, plain):
        add(one, "other")
        activate(one, ["default", "other"])
    said = logits(plain)
    assert torch.equal(logits(model), said)
    for one in (model, plain):
        one.merge_adapter()
    assert torch.equal(logits(model), logits(plain))
    for one in (model, plain):
        one.unmerge_adapter()
    assert torch.equal(logits(model), said)


def test_a_saved_adapter_is_put_on(tmp_path):
    folder = saved(tiny_peft(), tmp_path / "adapter")
    for low in (False, True):
        model = PeftModel.from_pretrained(base("memory", tmp_path), folder, low_cpu_mem_usage=low).eval()
        assert torch.equal(logits(model), logits(tiny_peft()))


def test_a_saved_adapter_is_put_on_a_base_that_a_device_map_spreads(tmp_path):
    folder = saved(tiny_peft(), tmp_path / "adapter")
    model = get_peft_model(base("device_map", tmp_path), SurgicalIA3Config.from_pretrained(folder)).eval()
    set_peft_model_state_dict(model, load_peft_weights(folder))
    assert torch.equal(logits(model), logits(tiny_peft()))


def test_where_weights_are_brought_to():
    module = nn.Linear(2, 2)
    assert execution_device(module) is None
    model = cpu_offload(nn.Sequential(module), execution_device="cpu")
    assert execution_device(module) == torch.device("cpu")
    add_hook_to_module(module, type(model._hf_hook)(), append=True)
    assert execution_device(module) == torch.device("cpu"), "the first of several hooks"
    assert execution_device(SimpleNamespace(_hf_hook=SimpleNamespace(execution_device="cpu"))) is None


def test_a_layer_is_not_merged_into_a_weight_that_is_elsewhere(tmp_path):
    layer = adapted("memory", tmp_path).base_model.surgical_layers()[0]
    assert layer.get_base_layer().weight.is_meta
    with pytest.raises(AdapterError, match="the weight of a Linear is offloaded; bring it to memory"):
        layer.merge()
    assert not layer.merged
