"""What is no edited checkpoint of a base."""

from contextlib import nullcontext

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

import peft_surgical as ps
from peft_surgical.errors import ModelError
from peft_surgical.loading.stored import stored_tensors
from peft_surgical.measuring.checkpoints import check_edited, edited_checkpoint

from .localizing import capital
from .test_checkpoints import DOWN, LOOSE, TOKENIZER, checkpoint, edited_model
from .tiny import tiny_model


def tensors(folder, **changes):
    file = folder / "model.safetensors"
    held = {**load_file(file), **changes}
    save_file({key: value for key, value in held.items() if value is not None}, file, {"format": "pt"})


def test_tensors_that_are_no_edit_of_the_bases(tmp_path):
    folder, _, _ = checkpoint(tmp_path / "edited")
    TOKENIZER.save_pretrained(folder)
    base = tiny_model("llama")
    tensors(folder, **{DOWN: torch.zeros(32, 40)})
    with pytest.raises(ModelError, match=rf"{DOWN} has the shape \(32, 40\) there and \(32, 48\) in the base"):
        edited_checkpoint(base, TOKENIZER, folder)
    tensors(folder, **{DOWN: torch.zeros(32, 48, dtype=torch.int8)})
    with pytest.raises(ModelError, match=f"holds {DOWN} as int8 and the base as float32"):
        edited_checkpoint(base, TOKENIZER, folder)
    tensors(folder, **{DOWN: None})
    with pytest.raises(ModelError, match=f"its files lack {DOWN}"):
        edited_checkpoint(base, TOKENIZER, folder)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"edited cannot be read: its model.safetensors cannot be read"):
        edited_checkpoint(base, TOKENIZER, folder)
    assert stored_tensors(tmp_path) is None
    # A head of its own where the base has one tensor for both.
    tied, _ = edited_model("qwen2")
    tied.save_pretrained(tmp_path / "tied")
    tensors(tmp_path / "tied", **{"lm_head.weight": torch.ones(128, 32)})
    with pytest.raises(ModelError, match=r"has two tensors, .*, where the base has one for both"):
        edited_checkpoint(tiny_model("qwen2"), TOKENIZER, tmp_path / "tied")


def test_what_is_no_edited_checkpoint_is_refused(tmp_path):
    adapted = get_peft_model(tiny_model("llama"), LoraConfig(target_modules=["q_proj"]))
    adapted.save_pretrained(tmp_path / "adapter")
    (tmp_path / "empty").mkdir()
    for given, words in (
        (tmp_path / "adapter", "holds an adapter and no edited checkpoint; give it as an adapter"),
        (tmp_path / "empty", "holds no config.json"),
        (str(tmp_path / "none"), "there is no model folder"),
        (adapted, r"of a PEFT model give what merge_and_unload\(\) returns"),
        (3, "not 3"),
    ):
        with pytest.raises(ModelError, match=words):
            check_edited(given)
        with pytest.raises(ModelError, match=words):
            ps.evaluate(tiny_model("llama"), TOKENIZER, capital(), edited=given, **LOOSE)
    base, (other, _) = tiny_model("llama"), edited_model()
    with pytest.raises(ModelError, match="an edited checkpoint beside its base needs the unedited base model"):
        ps.evaluate(adapted, TOKENIZER, capital(), edited=other, **LOOSE)
    # What is left of a deleted adapter, and of one that is on it.
    left = tiny_model("llama")
    left.add_adapter(LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ModelError, match=r"has adapters on it; an edited checkpoint beside its base needs"):
        edited_checkpoint(left, TOKENIZER, other)
    left.delete_adapter("default")
    with pytest.raises(ModelError, match=r"has layers of a deleted adapter on it"):
        edited_checkpoint(left, TOKENIZER, other)
    offloaded = tiny_model("llama").to("meta")
    with pytest.raises(ModelError, match="offloaded; load it whole to measure an edited checkpoint beside it"):
        edited_checkpoint(offloaded, TOKENIZER, other)
    with pytest.raises(ModelError, match="states and edited exclude each other"):
        ps.evaluate(base, TOKENIZER, capital(), edited=other, states={"base": nullcontext}, **LOOSE)
    other.add_adapter(LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ModelError, match="the edited model has adapters on it"):
        edited_checkpoint(base, TOKENIZER, other)
