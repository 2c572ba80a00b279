import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from peft_surgical.adapters.edits import Edit
from peft_surgical.adapters.export import to_ia3
from peft_surgical.adapters.lineage import Lineage
from peft_surgical.adapters.saving import digest_to_save, save_adapter
from peft_surgical.errors import AdapterError, OutputError
from tests.adapters import add, logits, tiny_peft
from tests.staged import first_stage
from tests.tiny import FAMILIES, tiny_model

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


@pytest.mark.parametrize("adapter", ["default", "unlearn"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_adapter_loads_from_the_folder_itself(family, adapter, tmp_path):
    model = tiny_peft(family, adapter=adapter)
    expected = logits(model)
    assert not torch.equal(expected, logits(tiny_model(family)))
    save_adapter(model, adapter, tmp_path / "out")
    assert {WEIGHTS, CONFIG} <= {path.name for path in (tmp_path / "out").iterdir()} <= {WEIGHTS, CONFIG, "README.md"}
    assert torch.equal(logits(PeftModel.from_pretrained(tiny_model(family), tmp_path / "out")), expected)
    assert torch.equal(logits(model), expected)


@pytest.mark.parametrize("adapter", ["default", "unlearn"])
def test_without_a_card_the_readme_is_pefts_own(adapter, tmp_path):
    model = tiny_peft(adapter=adapter)
    save_adapter(model, adapter, tmp_path / "out")
    model.save_pretrained(tmp_path / "by PEFT")
    assert (tmp_path / "out/README.md").read_text() == (tmp_path / "by PEFT/README.md").read_text()
    save_adapter(model, adapter, tmp_path / "own", card="# Mine")
    assert (tmp_path / "own/README.md").read_text() == "# Mine"


@pytest.mark.parametrize("adapter", ["default", "learn"])
def test_one_of_several_is_saved_alone(adapter, tmp_path):
    model = tiny_peft()
    add(model, "learn")
    save_adapter(model, adapter, tmp_path / "out")
    model.set_adapter(adapter)
    expected = logits(model)
    assert torch.equal(logits(PeftModel.from_pretrained(tiny_model("llama"), tmp_path / "out")), expected)
    model.set_adapter("learn" if adapter == "default" else "default")
    assert not torch.equal(logits(model), expected)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_only_scales_are_saved_even_where_the_embeddings_were_enlarged(tmp_path):
    # PEFT would add whole embedding matrices when the vocabulary is not that of the base's checkpoint.
    tiny_model("llama").save_pretrained(tmp_path / "base")
    model = tiny_peft()
    model.get_base_model().resize_token_embeddings(140)
    model.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    save_adapter(model, "default", tmp_path / "out")
    names = load_file(tmp_path / "out" / WEIGHTS)
    assert names
    assert all("surgical_ia3_delta" in name for name in names)


def test_a_folder_that_is_not_empty_is_replaced_only_on_demand(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    model = tiny_peft()
    with pytest.raises(OutputError, match="is not empty"):
        save_adapter(model, "default", out)
    assert [path.name for path in out.iterdir()] == ["notes.txt"]
    edit = model.base_model.edit("default")
    with pytest.raises(OutputError, match="out holds no adapter, so it is not replaced"):
        edit.save(out, overwrite=True)
    assert [path.name for path in out.iterdir()] == ["notes.txt"]
    (out / CONFIG).write_text("{}")
    edit.save(out, overwrite=True)
    assert not (out / "notes.txt").exists()
    assert json.loads((out / CONFIG).read_text())["peft_type"] == "SURGICAL_IA3"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_would_not_be_read_back_does_not_take_the_place_of_what_is(value, tmp_path):
    model = tiny_peft()
    save_adapter(model, "default", tmp_path / "out")
    before = Edit.load(tmp_path / "out")
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if "surgical_ia3_delta" in name)[0] = value
    with pytest.raises(AdapterError, match="has a value that is not finite, so the adapter is not written"):
        save_adapter(model, "default", tmp_path / "new")
    assert not (tmp_path / "new").exists()
    name, module = next(iter(before.modules.items()))
    broken = Edit({name: replace(module, scale=module.scale * value)})
    for write in (broken.save, lambda path, **options: to_ia3(broken, path, **options)):
        with pytest.raises(AdapterError, match="is not finite"):
            write(tmp_path / "out", overwrite=True)
        with pytest.raises(AdapterError, match="is not finite"):
            write(tmp_path / "another")
    assert Edit.load(tmp_path / "out").modules.keys() == before.modules.keys()
    assert {path.name for path in tmp_path.iterdir()} == {"out"}


def test_an_unknown_adapter_is_refused(tmp_path):
    model = tiny_peft(adapter="unlearn")
    with pytest.raises(AdapterError, match="there is no adapter named 'learn'; the model has unlearn"):
        save_adapter(model, "learn", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_failure_leaves_nothing(tmp_path, monkeypatch):
    model = tiny_peft()
    save = model.save_pretrained

    def fail(*args, **kwargs):
        save(*args, **kwargs)
        raise OSError("the disk is full")

    monkeypatch.setattr(model, "save_pretrained", fail)
    with pytest.raises(OSError, match="the disk is full"):
        save_adapter(model, "default", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_stage_that_was_unloaded_is_not_saved_as_nothing(tmp_path):
    first = first_stage()
    first.model.merge_and_unload()
    with pytest.raises(AdapterError, match="holds nothing of 'unlearn' any more"):
        first.save(tmp_path / "unlearn")
    assert not (tmp_path / "unlearn").exists()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="this system does not tell which files are mapped")
def test_no_file_is_removed_while_its_tensors_are_in_use(tmp_path, monkeypatch):
    unlink, removed = os.unlink, []

    def unlink_unmapped(path, *args, **kwargs):
        removed.append(os.path.basename(path))
        mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if f"{tmp_path}{os.sep}" in line]
        assert not any(line.endswith(f"{os.sep}{removed[-1]}") for line in mapped)
        unlink(path, *args, **kwargs)

    model = tiny_peft(adapter="unlearn")
    monkeypatch.setattr(os, "unlink", unlink_unmapped)
    save_adapter(model, "unlearn", tmp_path / "out")
    assert WEIGHTS in removed


def test_targets_are_saved_in_order(tmp_path):
    names = ["up_proj", "down_proj", "gate_proj", "q_proj", "k_proj", "v_proj", "o_proj"]
    model = get_peft_model(tiny_model("llama"), LoraConfig(r=1, target_modules=names))
    save_adapter(model, "default", tmp_path / "out")
    assert json.loads((tmp_path / "out" / CONFIG).read_text())["target_modules"] == sorted(names)


def test_an_adapter_of_layers_that_were_compiled_later_is_saved_by_their_own_names(tmp_path):
    model = tiny_peft()
    expected, layers = logits(model), model.base_model.model.model.layers
    for i, layer in enumerate(layers):
        layers[i] = torch.compile(layer, backend="eager")
    save_adapter(model, "default", tmp_path / "out")
    assert torch.equal(logits(PeftModel.from_pretrained(tiny_model("llama"), tmp_path / "out")), expected)
    assert sorted(model.base_model.edit("default").modules) == sorted(tiny_peft().peft_config["default"].selections)


@pytest.mark.parametrize("compiled", [False, True])
def test_an_adapter_that_another_method_was_put_over_is_saved_by_its_own_names(compiled, tmp_path):
    model = tiny_peft(adapter="unlearn")
    expected, before = logits(model), model.base_model.edit("unlearn")
    digest = digest_to_save(model, "unlearn")
    inside = model.get_base_model()
    inside.add_adapter(LoraConfig(target_modules=["down_proj"]), "lora")
    if compiled:
        for i, layer in enumerate(inside.model.layers):
            inside.model.layers[i] = torch.compile(layer, backend="eager")
    assert model.base_model.edit("unlearn") == before
    assert digest_to_save(model, "unlearn") == digest
    save_adapter(model, "unlearn", tmp_path / "out")
    model.base_model.edit("unlearn").save(tmp_path / "edit")
    for folder in (tmp_path / "out", tmp_path / "edit"):
        assert torch.equal(logits(PeftModel.from_pretrained(tiny_model("llama"), folder)), expected)


def test_below_another_method_adapters_are_multiplied_and_saved_too(tmp_path):
    model = tiny_peft(adapter="unlearn")
    model.add_weighted_adapter(["unlearn"], [0.5], "half_of_it")
    model.base_model.set_adapter(["half_of_it"])
    expected = logits(model)
    model.delete_adapter("half_of_it")
    model.get_base_model().add_adapter(LoraConfig(target_modules=["down_proj"]), "lora")
    layers = len(model.base_model.surgical_layers())
    model.add_weighted_adapter(["unlearn"], [0.5], "again")
    assert len(model.base_model.surgical_layers()) == layers
    model.base_model.set_adapter(["again"])
    assert torch.equal(logits(model), expected)
    save_adapter(model, "again", tmp_path / "out")
    assert torch.equal(logits(PeftModel.from_pretrained(tiny_model("llama"), tmp_path / "out")), expected)


def test_of_numbers_that_half_precision_holds_only_pefts_own_kinds_are_saved_in_it(tmp_path):
    surgical = tiny_peft(perturbed=False)
    save_adapter(surgical, "default", tmp_path / "surgical")
    assert Lineage.of(tmp_path / "surgical").digest == digest_to_save(surgical, "default")
    assert digest_to_save(surgical, "another") is None
    lora = get_peft_model(tiny_model("llama"), LoraConfig(r=1, target_modules=["q_proj"]))
    for name, parameter in lora.named_parameters():
        if "lora_" in name:
            parameter.data.fill_(0.5)
    save_adapter(lora, "default", tmp_path / "lora")
    for kind, dtype in (("surgical", torch.float32), ("lora", torch.float16)):
        assert {tensor.dtype for tensor in load_file(tmp_path / kind / WEIGHTS).values()} == {dtype}
