"""Needs the plugin installed: it is found through its entry point, as any user's would be."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedTokenizerFast,
)

import peft_surgical as ps
from peft_surgical.plugins import load_scorers

WORDS = ["<unk>", "<eos>", "what", "is", "the", "capital", "of", "france", "italy", "?", "paris", "lyon", "where", "."]
FACT = ps.Fact.from_dict(
    {
        "subject": "france",
        "old": ["paris"],
        "new": ["lyon"],
        "prompts": ["what is the capital of france ?"],
        "held_out": ["where is france ?"],
        "contrast": ["italy"],
    }
)
SUBJECTS = ("france", "italy")
SIZES = {"vocab_size": 32, "bos_token_id": 1, "eos_token_id": 1}
GROUPED = {
    **SIZES,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
}


def tokenizer():
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="<eos>")


def build(kind, config):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(config).eval()
        for parameter in model.parameters():
            parameter.data.normal_(0, 0.2)
    return model


def localize(model):
    return ps.localize(model, tokenizer(), FACT, ["direct_logit"], progress=False)


def at_the_end(model, norm):
    """By hand: the logit difference's gradient at the final residual stream, that stream, and the prompt's tokens."""
    ids, other = (torch.tensor(tokenizer()(FACT.prompts[0].replace("france", name))["input_ids"]) for name in SUBJECTS)
    final = []
    handle = norm.register_forward_pre_hook(lambda module, args: final.append(args[0]))
    logits = model(ids[None]).logits[0, -1]
    handle.remove()
    swapped = model(other[None]).logits[0, -1].detach()
    swapped[WORDS.index("paris")] = -torch.inf
    difference = logits[WORDS.index("paris")] - logits[int(swapped.argmax())]
    slope = torch.autograd.grad(difference, final)[0][0, -1]
    return slope, final[0][0, -1].detach(), ids


def test_it_is_listed_with_its_distribution():
    assert load_scorers()["direct_logit"].distribution.startswith("peft-surgical-direct-logit ")


def test_the_scores_and_the_embedding_add_up_to_the_final_residual_stream():
    model = build(LlamaForCausalLM, LlamaConfig(**GROUPED))
    loc = localize(model)
    slope, final, ids = at_the_end(model, model.model.norm)
    embedding = model.model.embed_tokens.weight[ids[-1]].detach()
    total = sum(loc.scores["direct_logit"].values()) + float(slope @ embedding)
    assert total == pytest.approx(float(slope @ final), abs=1e-4)
    assert max(map(abs, loc.scores["direct_logit"].values())) > 1e-3
    neurons = loc.tables["direct_logit"].neurons["L1.mlp"]
    assert float(neurons.sum()) == pytest.approx(loc.scores["direct_logit"]["L1.mlp"], abs=1e-5)


def test_what_a_model_multiplies_its_blocks_output_by_is_in_the_scores():
    factors = {"residual_multiplier": 0.3, "embedding_multiplier": 2.0, "logits_scaling": 3.0}
    model = build(GraniteForCausalLM, GraniteConfig(**GROUPED, **factors))
    loc = localize(model)
    slope, final, ids = at_the_end(model, model.model.norm)
    embedding = 2.0 * model.model.embed_tokens.weight[ids[-1]].detach()
    total = sum(loc.scores["direct_logit"].values()) + float(slope @ embedding)
    assert total == pytest.approx(float(slope @ final), abs=1e-4)
    assert max(map(abs, loc.scores["direct_logit"].values())) > 1e-3


def test_it_reads_transposed_weights_too():
    """GPT-2 stores its weights the other way round, and its blocks add biases, which are nobody's."""
    config = GPT2Config(**SIZES, n_embd=16, n_layer=2, n_head=4, attn_pdrop=0, embd_pdrop=0, resid_pdrop=0)
    model = build(GPT2LMHeadModel, config)
    found = localize(model)
    slope, final, ids = at_the_end(model, model.transformer.ln_f)
    others = [model.transformer.wte.weight[ids[-1]], model.transformer.wpe.weight[len(ids) - 1]]
    others += [module.c_proj.bias for block in model.transformer.h for module in (block.attn, block.mlp)]
    assert len(found.scores["direct_logit"]) == 2 * 5
    total = sum(found.scores["direct_logit"].values()) + sum(float(slope @ each.detach()) for each in others)
    assert total == pytest.approx(float(slope @ final), abs=1e-4)
    assert abs(found.scores["direct_logit"]["L0.head.1"]) > 1e-3


def test_a_model_with_norms_after_its_blocks_is_refused():
    config = Gemma3TextConfig(**GROUPED, head_dim=4, tie_word_embeddings=True)
    behind = OPTConfig(
        **SIZES,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        ffn_dim=24,
        word_embed_proj_dim=8,
        max_position_embeddings=32,
        do_layer_norm_before=False,
    )
    for model in (build(Gemma3ForCausalLM, config), build(OPTForCausalLM, behind)):
        with pytest.raises(ps.ScorerError, match=r"direct-logit .*without a norm"):
            localize(model)
