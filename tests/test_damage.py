import json
import os

import pytest

from peft_surgical.errors import ModelError
from peft_surgical.loading.damage import INDEX, damaged
from peft_surgical.models import load_model

from .localizing import word_tokenizer
from .tiny import tiny_model


@pytest.fixture
def folder(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("config.json", b"[]", "it holds no JSON object"),
        ("config.json", b"{", r"it is not JSON, or only a part of it \(.*\)"),
        ("config.json", b"[" * 100_000, "it is nested too deeply"),
        ("generation_config.json", b"[]", "it holds no JSON object"),
        ("tokenizer.json", b'{"version": "1.0", "added_tok', r"it is not JSON, or only a part of it \(.*\)"),
        ("chat_template.jinja", b"\xff\xfe{{", "it is not UTF-8 text"),
        ("model.safetensors", b"\x10\x00\x00\x00", ".*header.*"),
    ],
)
def test_a_damaged_file_is_named(name, content, reason, folder):
    (folder / name).write_bytes(content)
    refused(folder, rf"its {name} cannot be read: {reason}\.")


def refused(folder, reason):
    with pytest.raises(ModelError, match=rf"^cannot load the model '.*': {reason}$"):
        load_model(folder)


def test_weights_that_are_cut_off_are_named(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-40])
    refused(folder, r"its model\.safetensors cannot be read: .*incomplete.*\.")


def test_an_index_without_a_map_or_a_file_that_it_names(folder):
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    (folder / INDEX).write_text("{}")
    refused(folder, rf"its {INDEX} holds no weight_map, which says in what file each weight is\.")
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": {"lm_head.weight": "b.safetensors"}}))
    refused(folder, r"its b\.safetensors cannot be read: No such file or directory\.")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_weights_that_nobody_may_read(folder):
    (folder / "model.safetensors").chmod(0)
    refused(folder, r"its model\.safetensors cannot be read: Permission denied\.")


def test_nothing_is_said_of_what_is_whole_or_no_part_of_a_checkpoint(folder):
    (folder / "trainer_state.json").write_text("[")
    (folder / "other.safetensors").write_bytes(b"")
    (folder / "generation_config.json").write_text('{"eos')
    (folder / INDEX).write_text(json.dumps({"weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}))
    assert damaged(folder) is None
    load_model(folder)
