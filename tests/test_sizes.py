"""Sizes in the words of configurations that have words of their own."""

import pytest

from peft_surgical.errors import ArchitectureError
from peft_surgical.sites import ModelShape

from .tiny import tiny_config
from .untold import UNTOLD, teach, untold_config


@pytest.mark.parametrize("model_type", UNTOLD)
def test_sizes_are_read_by_whatever_names_a_class_gives_them(model_type, monkeypatch):
    teach(monkeypatch, model_type)
    config = untold_config(model_type)
    shape = ModelShape.from_config(config)
    assert (shape.n_layers, shape.n_heads, shape.d_head, shape.d_model) == (3, 4, 8, 32)
    assert shape == ModelShape.from_config(config.to_dict())
    assert shape == ModelShape.from_config({"model_type": model_type, "text_config": config.to_dict()})


@pytest.mark.parametrize(
    ("model_type", "change", "count"),
    [
        ("falcon", {"multi_query": True}, 1),
        ("falcon", {"multi_query": True, "num_kv_heads": 2}, 1),
        ("falcon", {"multi_query": False}, 4),
        ("gpt_bigcode", {"multi_query": True}, 1),
        ("gpt_bigcode", {"multi_query": False}, 4),
    ],
)
def test_heads_that_share_one_key_and_value_head_are_told(model_type, change, count, monkeypatch):
    teach(monkeypatch, model_type)
    config = untold_config(model_type, **change)
    assert ModelShape.from_config(config).n_kv_heads == ModelShape.from_config(config.to_dict()).n_kv_heads == count


def test_key_and_value_heads_are_counted_by_another_name(monkeypatch):
    teach(monkeypatch, "falcon")
    values = {**untold_config("falcon", num_kv_heads=2).to_dict(), "multi_query": None}
    assert ModelShape.from_config(values).n_kv_heads == 2


def test_queries_that_stand_before_each_key_head_are_refused(monkeypatch):
    teach(monkeypatch, "falcon")
    with pytest.raises(ArchitectureError, match="the falcon configuration has new_decoder_architecture, whose fused"):
        ModelShape.from_config(untold_config("falcon", new_decoder_architecture=True, num_kv_heads=2))


def test_only_in_a_fused_projection_does_their_order_matter():
    values = tiny_config("llama").to_dict()
    order = {"new_decoder_architecture": True, "multi_query": True, "num_key_value_heads": None, "num_kv_heads": 2}
    assert ModelShape.from_config({**values, **order}) == ModelShape.from_config(values)


def test_neurons_are_counted_by_another_name(monkeypatch):
    teach(monkeypatch, "falcon")
    assert ModelShape.from_config(untold_config("falcon", ffn_hidden_size=48)).d_mlp == 48
