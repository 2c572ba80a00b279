"""Tiny random models of types whose layout the package does not know, and their module names."""

from typing import Any

import torch
from transformers import (
    FalconConfig,
    FalconForCausalLM,
    GPTBigCodeConfig,
    GPTBigCodeForCausalLM,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    MptConfig,
    MptForCausalLM,
    PreTrainedModel,
    XGLMConfig,
    XGLMForCausalLM,
)

from peft_surgical.architectures import _KNOWN, Architecture

from .tiny import VOCAB

_ENDS = {"vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "attention_dropout": 0.0}
_GPT2 = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 256}
_DROPS = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
_SEPARATE = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "attention_out": "out_proj"}

UNTOLD: dict[str, tuple[type, type, dict[str, Any], Architecture]] = {
    "gpt_bigcode": (
        GPTBigCodeConfig,
        GPTBigCodeForCausalLM,
        {**_GPT2, **_DROPS},
        Architecture(
            layers="transformer.h",
            attention_out="attn.c_proj",
            mlp_out="mlp.c_proj",
            qkv="attn.c_attn",
            up="mlp.c_fc",
        ),
    ),
    "falcon": (
        FalconConfig,
        FalconForCausalLM,
        _SIZES,
        Architecture(
            layers="transformer.h",
            attention_out="self_attention.dense",
            mlp_out="mlp.dense_4h_to_h",
            qkv="self_attention.query_key_value",
            up="mlp.dense_h_to_4h",
        ),
    ),
    "mpt": (
        MptConfig,
        MptForCausalLM,
        {"d_model": 32, "n_heads": 4, "n_layers": 3, "max_seq_len": 256},
        Architecture(
            layers="transformer.blocks",
            attention_out="attn.out_proj",
            mlp_out="ffn.down_proj",
            qkv="attn.Wqkv",
            up="ffn.up_proj",
        ),
    ),
    "gpt_neo": (
        GPTNeoConfig,
        GPTNeoForCausalLM,
        {"hidden_size": 32, "num_layers": 3, "num_heads": 4, "attention_types": [[["global"], 3]]},
        Architecture(
            layers="transformer.h",
            mlp_out="mlp.c_proj",
            up="mlp.c_fc",
            **{part: f"attn.attention.{name}" for part, name in _SEPARATE.items()},
        ),
    ),
    "xglm": (
        XGLMConfig,
        XGLMForCausalLM,
        {"d_model": 32, "num_layers": 3, "attention_heads": 4, "ffn_dim": 48, "dropout": 0.0},
        Architecture(
            layers="model.layers",
            mlp_out="fc2",
            up="fc1",
            **{part: f"self_attn.{name}" for part, name in _SEPARATE.items()},
        ),
    ),
}
"""Model type -> configuration class, model class, configuration values, module names."""


def untold_config(model_type: str, **overrides: Any) -> Any:
    """The configuration that `untold_model` uses, with `overrides` applied."""
    config_class, _, values, _ = UNTOLD[model_type]
    return config_class(**{**_ENDS, **values, **overrides})


def untold_model(model_type: str, **overrides: Any) -> PreTrainedModel:
    """A random model of one of these types, in eval mode; the global random state is left as it was."""
    _, model_class, _, _ = UNTOLD[model_type]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = model_class(untold_config(model_type, **overrides)).eval()
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.data.normal_(0.0, 0.15)
    return model


def teach(monkeypatch: Any, model_type: str) -> None:
    """Registers the module names of a type for the length of a test."""
    monkeypatch.setattr("peft_surgical.architectures._KNOWN", {**_KNOWN, model_type: UNTOLD[model_type][3]})
