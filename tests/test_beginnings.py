import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from peft_surgical import architectures
from peft_surgical.architectures import Architecture
from peft_surgical.keying.keys import Marked, marked_neurons
from peft_surgical.running.beginnings import goes_on_from_keys, shared_prefix
from peft_surgical.running.suffix import SuffixRunner
from peft_surgical.running.tails import TailRunner
from peft_surgical.texts.prompts import EncodedAnswer

from .test_suffix import PREFIX, plain, rows, spans_of
from .tiny import FAMILIES, tiny_model

SIZES = {
    "vocab_size": 128,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "pad_token_id": 0,
}
HALVES = {"vocab_size": 128, "n_embd": 32, "n_layer": 4, "n_head": 4}
# Models whose layers keep a state of their own, alone or beside keys and values, or nothing.
STATEFUL = {
    "lfm2": {
        **SIZES,
        "layer_types": ["conv", "full_attention"] * 2,
        "num_hidden_layers": 4,
        "block_ff_dim": 48,
        "block_multiple_of": 8,
    },
    "falcon_h1": {**SIZES, "num_hidden_layers": 2, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8},
    "recurrent_gemma": {**SIZES, "num_hidden_layers": 3, "lru_width": 32},
    "minimax": {
        **SIZES,
        "num_hidden_layers": 4,
        "num_local_experts": 2,
        "layer_types": ["linear_attention", "full_attention"] * 2,
    },
    "rwkv": {"vocab_size": 128, "hidden_size": 32, "num_hidden_layers": 4},
    "openai-gpt": HALVES,
}
# In Gemma's newer models the last layers read the keys and values of others, and those of Gemma 3n hand on several
# states a token.
SHARED_KEYS = {
    **SIZES,
    "num_hidden_layers": 4,
    "num_kv_shared_layers": 2,
    "vocab_size_per_layer_input": 128,
    "hidden_size_per_layer_input": 8,
}
OF_KEYS = {
    "gptj": {**HALVES, "rotary_dim": 4},
    "gemma4_text": {
        **SHARED_KEYS,
        "layer_types": ["full_attention"] * 4,
        "global_head_dim": 8,
    },
    "gemma3n_text": {
        **SHARED_KEYS,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "activation_sparsity_pattern": [0.0] * 4,
        "laurel_rank": 4,
    },
    "cohere2": {**SIZES, "num_hidden_layers": 4},
}
LAYERS = {"rwkv": "rwkv.blocks", "openai-gpt": "transformer.h", "gptj": "transformer.h"}


def built(family, **options):
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(family, **{**{**STATEFUL, **OF_KEYS}[family], **options})
        )
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.15)
    return model.eval()


@pytest.mark.parametrize("family", [*FAMILIES, *OF_KEYS, *STATEFUL])
def test_what_keeps_more_than_keys_and_values_is_told_apart(family):
    model = tiny_model(family) if family in FAMILIES else built(family)
    model.register_forward_pre_hook(lambda *_: pytest.fail("it is not run"))
    assert goes_on_from_keys(model) == (family not in STATEFUL)


def test_layers_of_a_kind_that_is_not_known_may_keep_anything():
    model = tiny_model("llama")
    model.config.layer_types = ["of_its_own"] * 3
    assert not goes_on_from_keys(model)


def test_a_model_that_says_that_it_keeps_a_state_does_not_go_on_from_keys():
    model = tiny_model("llama")
    assert goes_on_from_keys(model)
    model._is_stateful = True
    assert not goes_on_from_keys(model)


# RWKV's layers give more than what enters the next one, so that none is passed over.
@pytest.mark.parametrize(
    ("family", "first"),
    [(family, first) for family in (*OF_KEYS, *STATEFUL) for first in (0, 1) if not (first and family == "rwkv")],
)
def test_rows_that_begin_alike_give_the_logits_of_a_plain_forward(family, first):
    model, sequences = built(family), rows(PREFIX)
    layers = model.get_submodule(LAYERS.get(family, "model.layers"))
    spans = spans_of(sequences, len(PREFIX))
    runner, tails = SuffixRunner(model, layers, first, PREFIX), TailRunner(model, layers, first)
    runner.add(sequences)
    tails.add(sequences, starts=[len(PREFIX)] * 4)
    alone = family in STATEFUL
    assert (runner.prefix, tails.starts) == (() if alone else PREFIX, [0 if alone else len(PREFIX)] * 4)
    expected = plain(model, sequences, spans)
    for one in (runner, tails):
        torch.testing.assert_close(one.logits(range(4), spans), expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("room", [2**30, 0])
@pytest.mark.parametrize("first", [1, 3])
@pytest.mark.parametrize(("family", "shared"), [("gemma4_text", 2), ("gemma3n_text", 2), ("gemma3n_text", 0)])
def test_all_layers_run_where_what_leaves_the_frozen_ones_is_not_all_that_is_read(family, shared, first, room):
    model, sequences = built(family, num_kv_shared_layers=shared), rows(PREFIX)
    spans = spans_of(sequences, len(PREFIX))
    expected = plain(model, sequences, spans)
    for prefix in ((), PREFIX):
        runner = SuffixRunner(model, model.model.layers, first, prefix, room=room)
        tails = TailRunner(model, model.model.layers, first, room=room)
        for one, options in ((runner, {}), (tails, {"starts": [len(prefix)] * 2})):
            # The second time it is known, if there was room to compute anything.
            indices = [*one.add(sequences[:2], **options), *one.add(sequences[2:], **options)]
            torch.testing.assert_close(one.logits(indices, spans), expected, atol=2e-5, rtol=1e-4)
            assert one.first == 0
            assert one.entering(indices) is None
        torch.testing.assert_close(runner.unshared().logits(range(4), spans), expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("layer", [1, 3])
@pytest.mark.parametrize("family", ["gemma4_text", "gemma3n_text"])
@torch.no_grad()
def test_neurons_of_layers_that_read_keys_of_others_are_those_of_a_plain_forward(family, layer, monkeypatch):
    monkeypatch.setitem(architectures._KNOWN, family, architectures.architecture_of("llama"))
    model, name = built(family), f"model.layers.{layer}.mlp.down_proj"
    assert_read_alike(model, name, layer)


def test_neurons_of_texts_that_begin_alike_are_read_whatever_a_model_keeps(monkeypatch):
    lfm2 = Architecture(
        layers="model.layers",
        attention_out="self_attn.out_proj",
        mlp_out="feed_forward.w2",
        qkv="none",
        gate="feed_forward.w1",
        up="feed_forward.w3",
    )
    monkeypatch.setitem(architectures._KNOWN, "lfm2", lfm2)
    model, name = built("lfm2"), "model.layers.1.feed_forward.w2"
    assert_read_alike(model, name, 1)


def assert_read_alike(model, name, layer):
    texts = [EncodedAnswer((*range(20, 30), *row), 1) for row in ([3, 4], [5, 6], [7, 8])]
    marks = Marked(texts, [[10, 11]] * 3)
    # As many batches as there are threads.
    found = torch.cat([batch[name] for batch in marked_neurons(model, {name: layer}, marks)])
    seen = []
    model.get_submodule(name).register_forward_pre_hook(lambda _, args: seen.append(args[0][0, 10:]))
    for text in texts:
        model(torch.tensor([text.ids]))
    torch.testing.assert_close(found, torch.cat(seen), atol=1e-5, rtol=1e-4)


def test_shared_prefix():
    a, b, c = (1, 2, 3, 4), (1, 2, 3, 5, 6), (1, 2, 9)
    assert shared_prefix([a, b], [3, 4]) == 3
    assert shared_prefix([a, b, c], [3, 4, 2]) == 2
    assert shared_prefix([a, b], [1, 4]) == 1  # what is read stays out
    assert shared_prefix([a, a], [9, 9]) == 3  # a row goes on after it
    assert shared_prefix([a, (7, 8)], [9, 9]) == 0
    assert shared_prefix([a], [0]) == 0
    assert shared_prefix([], []) == 0
