from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import BertConfig, BertForMaskedLM, LlamaModel, T5Config, T5ForConditionalGeneration

import peft_surgical as ps
from peft_surgical.architectures import check_causal
from tests.adapters import tiny_peft
from tests.localizing import capital, word_tokenizer
from tests.tiny import FAMILIES, tiny_config, tiny_model, tiny_sighted

_SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
OTHERS = {
    "T5ForConditionalGeneration": lambda: T5ForConditionalGeneration(
        T5Config(vocab_size=64, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0)
    ),
    "BertForMaskedLM": lambda: BertForMaskedLM(BertConfig(vocab_size=64, **_SMALL)),
    "LlamaModel": lambda: LlamaModel(tiny_config("llama")),
}
CONFIG = ps.SurgicalIA3Config(components=["L0.mlp"])
CALLS = {
    "generate_answers": lambda model: ps.generate_answers(model, word_tokenizer(), ["who ?"]),
    "evaluate": lambda model: ps.evaluate(model, word_tokenizer(), capital(), progress=False),
    "edit": lambda model: ps.edit(model, word_tokenizer(), capital(), out="unused", progress=False),
    "unlearn": lambda model: ps.unlearn(model, word_tokenizer(), capital(), CONFIG, progress=False),
    "learn": lambda model: ps.learn(model, word_tokenizer(), capital(), progress=False),
    "learn_keyed": lambda model: ps.learn_keyed(model, word_tokenizer(), capital(), progress=False),
    "learn_by_subject": lambda model: ps.learn_by_subject(model, word_tokenizer(), capital(), progress=False),
    "learn_keyed_by_subject": lambda model: ps.learn_keyed_by_subject(
        model, word_tokenizer(), capital(), progress=False
    ),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("kind", OTHERS)
def test_a_model_that_does_not_go_on_with_a_text_is_refused_by_its_kind(kind, call):
    with pytest.raises(ps.ArchitectureError, match=f"a {kind} does not go on with a text; give a causal language"):
        call(OTHERS[kind]())


@pytest.mark.parametrize("learn", [ps.learn_sentence, ps.learn_sentence_keyed])
def test_a_model_without_a_head_learns_no_sentence(learn):
    with pytest.raises(ps.ArchitectureError, match="a LlamaModel does not go on with a text"):
        learn(OTHERS["LlamaModel"](), word_tokenizer(), "the capital of france is", new="lyon", subject="france")


def test_causal_models_pass_whatever_is_around_them_and_whatever_they_say_of_themselves():
    for family in FAMILIES:
        check_causal(tiny_model(family))
    check_causal(tiny_sighted())
    check_causal(tiny_peft())
    check_causal(get_peft_model(tiny_model("llama"), LoraConfig(target_modules=["down_proj"])))
    odd = tiny_model("llama")
    odd.can_generate = lambda: False
    check_causal(odd)


TWO_WAYS = {
    "Gemma3ForCausalLM": lambda: tiny_model("gemma3", use_bidirectional_attention=True),
    "Gemma3ForConditionalGeneration": lambda: tiny_sighted(use_bidirectional_attention=True),
}


@pytest.mark.parametrize(
    "call", [*CALLS.values(), lambda model: ps.localize(model, word_tokenizer(), capital())], ids=[*CALLS, "localize"]
)
@pytest.mark.parametrize("kind", TWO_WAYS)
def test_a_model_whose_tokens_see_those_behind_them_is_refused(kind, call):
    with pytest.raises(ps.ArchitectureError, match=f"this {kind} looks both ways, as its configuration says"):
        call(TWO_WAYS[kind]())


@pytest.mark.parametrize(("value", "refused"), [("all", True), ("vision", False), (None, False), (False, False)])
def test_a_model_that_looks_both_ways_at_images_alone_is_causal(value, refused):
    model = tiny_model("llama")
    model.config.use_bidirectional_attention = value
    with pytest.raises(ps.ArchitectureError, match="both ways") if refused else nullcontext():
        check_causal(model)


@pytest.mark.parametrize(
    "call", [*CALLS.values(), lambda model: ps.localize(model, word_tokenizer(), capital())], ids=[*CALLS, "localize"]
)
def test_a_model_that_gives_tuples_is_refused_as_it_cannot_be_run_at_all(call):
    model = tiny_model("llama")
    model.config.return_dict = False
    with pytest.raises(
        ps.ModelError,
        match=r"^transformers cannot run this LlamaForCausalLM, .*set model\.config\.return_dict = True\.$",
    ):
        call(model)
    with pytest.raises(AttributeError, match="last_hidden_state"):
        model(input_ids=torch.ones(1, 3, dtype=torch.long), return_dict=True)


def test_a_model_that_gives_tuples_inside_is_refused():
    model = tiny_sighted()
    model.config.text_config.return_dict = False
    advice = r"set model\.config\.get_text_config\(\)\.return_dict = True\.$"
    with pytest.raises(ps.ModelError, match=f"whose configuration has return_dict=False; {advice}"):
        check_causal(model)
    model.config.get_text_config().return_dict = True
    check_causal(model)


def test_adapters_do_not_hide_the_kind():
    model = get_peft_model(OTHERS["BertForMaskedLM"](), LoraConfig(target_modules=["query"]))
    with pytest.raises(ps.ArchitectureError, match="a BertForMaskedLM does not go on"):
        check_causal(model)


@pytest.mark.parametrize("wrong", [3, None, float("nan"), "", ["llama"]])
def test_a_model_type_is_a_text(wrong):
    architecture = ps.Architecture(layers="a", attention_out="b", mlp_out="c", q="q", k="k", v="v", up="u")
    with pytest.raises(ps.ArchitectureError, match=r"^a model type must be a text, such as 'llama', not .*\.$"):
        ps.register_architecture(wrong, architecture)
