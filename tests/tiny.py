"""Tiny random causal language models, built from configs: the mechanics of every supported family without a download.

>>> model = tiny_model("llama")
>>> model(torch.tensor([[1, 2, 3]])).logits.shape
torch.Size([1, 3, 128])
"""

import copy
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from transformers import (
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCAB = 128

_COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GROUPED = {**_COMMON, "num_key_value_heads": 2, "intermediate_size": 48, "tie_word_embeddings": False}

FAMILIES: dict[str, tuple[type, type, dict[str, Any]]] = {
    "llama": (LlamaConfig, LlamaForCausalLM, _GROUPED),
    "mistral": (MistralConfig, MistralForCausalLM, {**_GROUPED, "sliding_window": 64}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {**_GROUPED, "tie_word_embeddings": True}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {**_GROUPED, "head_dim": 16}),
    "phi3": (Phi3Config, Phi3ForCausalLM, {**_GROUPED, "original_max_position_embeddings": 256}),
    "gemma3": (
        Gemma3TextConfig,
        Gemma3ForCausalLM,
        {**_GROUPED, "head_dim": 16, "sliding_window": 64, "tie_word_embeddings": True},
    ),
    "gpt2": (
        GPT2Config,
        GPT2LMHeadModel,
        {
            "vocab_size": VOCAB,
            "n_embd": 32,
            "n_layer": 3,
            "n_head": 4,
            "n_positions": 256,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
        },
    ),
    "gpt_neox": (GPTNeoXConfig, GPTNeoXForCausalLM, {**_COMMON, "intermediate_size": 48}),
    "opt": (
        OPTConfig,
        OPTForCausalLM,
        {**_COMMON, "ffn_dim": 48, "word_embed_proj_dim": 32, "do_layer_norm_before": True},
    ),
}
"""Family name -> configuration class, model class, configuration values. `hidden_act` is each family's own."""

NO_DROPOUT = {
    "attn_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "resid_pdrop": 0.0,
    "attention_dropout": 0.0,
    "hidden_dropout": 0.0,
    "dropout": 0.0,
    "activation_dropout": 0.0,
}


def tiny_config(family: str, **overrides: Any) -> Any:
    """Returns the configuration that `tiny_model` uses, with `overrides` applied."""
    config_class, _, values = FAMILIES[family]
    known = {name: value for name, value in NO_DROPOUT.items() if hasattr(config_class(), name)}
    return config_class(**{**known, **values, **overrides})


def tiny_model(family: str, seed: int = 0, dtype: torch.dtype = torch.float32, **overrides: Any) -> PreTrainedModel:
    """Builds a random model of one family, in eval mode; the global random state is left as it was.

    Args:
        family: A key of `FAMILIES`.
        seed: Decides the weights.
        dtype: Of the weights.
        **overrides: Values of the configuration to change, in the family's own words.

    Returns:
        A model with a vocabulary of 128, 3 layers, hidden size 32, 4 heads and, where the family has them, 2 key-value
        heads. Biases and norm weights are random too, so that a test sees an error in how they are handled.
    """
    return copy.deepcopy(_built(family, seed, dtype, tuple(sorted(overrides.items()))))


@cache
def _built(family: str, seed: int, dtype: torch.dtype, overrides: tuple[tuple[str, Any], ...]) -> PreTrainedModel:
    _, model_class, _ = FAMILIES[family]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        build: Callable[..., PreTrainedModel] = model_class
        model = build(tiny_config(family, **dict(overrides)))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim >= 2:
                    parameter.normal_(0.0, 0.15)
                elif name.endswith("bias"):
                    parameter.normal_(0.0, 0.3)
                else:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
        # As `from_pretrained` does: buffers such as the rotary frequencies keep their dtype.
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype)
    return model.eval()


def tiny_ids(batch: int = 2, length: int = 9, seed: int = 0) -> torch.Tensor:
    """Returns random token ids `[batch, length]` without padding, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCAB, (batch, length), generator=generator)


def tiny_experts() -> PreTrainedModel:
    """A random model whose layers have experts in the place of an MLP, its attention laid out as Llama's."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MixtralForCausalLM(MixtralConfig(**_GROUPED, num_local_experts=4)).eval()


def tiny_granite(factor: float, of_embeddings: float = 1.0) -> PreTrainedModel:
    """A random model that multiplies by factors what it adds to the residual stream, and its embeddings."""
    factors = {"residual_multiplier": factor, "embedding_multiplier": of_embeddings}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return GraniteForCausalLM(GraniteConfig(**_GROUPED, **factors)).eval()


def tiny_sighted(**text: Any) -> PreTrainedModel:
    """A random Gemma 3 that reads images, too, so that its configuration keeps what is about text in a part.

    Args:
        **text: Values of that part to change.
    """
    seeing = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    parts = {
        "text_config": {**FAMILIES["gemma3"][2], **text},
        "vision_config": {**seeing, "image_size": 28, "patch_size": 14},
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Gemma3ForConditionalGeneration(Gemma3Config(**parts, mm_tokens_per_image=4)).eval()


def tiny_longrope(short: int) -> PreTrainedModel:
    """A random Phi-3 that turns the positions of a pass otherwise where its longest row has more tokens than these."""
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = tiny_config("phi3", rope_parameters=rope, original_max_position_embeddings=short)
        model = Phi3ForCausalLM(config).eval()
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.data.normal_(0.0, 0.15)
    return model


def packed(model: PreTrainedModel) -> Any:
    """A copy of a model whose linear layers torch.ao has quantized: their weights are neither parameters nor
    buffers."""
    with warnings.catch_warnings():
        # That it is about to leave torch.
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
