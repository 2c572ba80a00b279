import threading
from types import SimpleNamespace

import pytest
import torch
import transformers
from torch import nn

from peft_surgical.running.generation import generate_ids
from peft_surgical.running.modes import _is_changed_by_padding, evaluating, needs_no_padding

from .adapters import tiny_peft
from .conftest import fingerprint
from .localizing import word_tokenizer
from .tiny import tiny_ids, tiny_model


@pytest.mark.parametrize("mode", [True, False])
def test_each_module_has_its_own_mode_again(mode):
    model = tiny_peft("gpt2").train(mode)
    for module in list(model.modules())[::3]:
        module.training = not mode
    before = fingerprint(model)
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    assert fingerprint(model) == before
    with pytest.raises(RuntimeError), evaluating(model):
        raise RuntimeError
    assert fingerprint(model) == before
    # What it was once is forgotten.
    model.train(not mode)
    with evaluating(model):
        pass
    assert {module.training for module in model.modules()} == {not mode}


def test_an_interrupt_on_the_way_in_leaves_each_module_its_own_mode(monkeypatch):
    model = tiny_peft("gpt2").train()
    before = fingerprint(model)

    def half_done():
        model.base_model.eval()
        raise KeyboardInterrupt

    monkeypatch.setattr(model, "eval", half_done)
    with pytest.raises(KeyboardInterrupt), evaluating(model):
        raise AssertionError
    assert fingerprint(model) == before


def test_blocks_of_several_threads_that_overlap():
    model = tiny_peft("gpt2").train()
    model.base_model.model.transformer.h[1].eval()
    before, inside, go_on, seen = fingerprint(model), threading.Event(), threading.Event(), []

    def other():
        with evaluating(model):
            inside.set()
            go_on.wait(timeout=30)
            seen.append(any(module.training for module in model.modules()))

    thread = threading.Thread(target=other)
    with evaluating(model):
        thread.start()
        inside.wait(timeout=30)
    assert not any(module.training for module in model.modules())
    go_on.set()
    thread.join()
    assert seen == [False]
    assert fingerprint(model) == before


@pytest.mark.parametrize("first", ["nested", "other"])
def test_blocks_inside_of_one_another_beside_those_of_another_thread(first):
    module = nn.Linear(2, 2).train()
    inside, go_on = threading.Event(), threading.Event()

    def other():
        with evaluating(module):
            inside.set()
            go_on.wait(timeout=30)

    thread = threading.Thread(target=other)
    if first == "other":
        thread.start()
        inside.wait(timeout=30)
    with evaluating(module):
        with evaluating(module):
            if first == "nested":
                thread.start()
                inside.wait(timeout=30)
            else:
                go_on.set()
                thread.join()
        assert not module.training
    assert module.training == (first == "other")
    go_on.set()
    thread.join()
    assert module.training


def test_a_block_gives_back_what_it_found_and_not_what_an_outer_one_did():
    model = tiny_peft("gpt2").train()
    before = fingerprint(model)
    with evaluating(model):
        model.train()
        with evaluating(model):
            assert not model.training
        assert model.training
    assert fingerprint(model) == before


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_double_precision_answers_as_single_beside_longer_prompts(attention):
    # Of one token transformers' own RecurrentGemma says something else with a cache than without.
    prompts = [tiny_ids(1, length, seed=length)[0].tolist() for length in (3, 11, 5)]
    model = tiny_model("llama")
    model.set_attn_implementation(attention)
    expected = generate_ids(model, word_tokenizer(), prompts, max_new_tokens=4)
    assert not needs_no_padding(model)
    assert generate_ids(model.double(), word_tokenizer(), prompts, max_new_tokens=4) == expected
    assert needs_no_padding(model) == (attention == "eager")
    assert model.dtype == torch.float64


SMALL = {"vocab_size": 128, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
ENDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
KINDS = {
    "rwkv": transformers.RwkvConfig(**SMALL, **ENDS),
    "recurrent_gemma": transformers.RecurrentGemmaConfig(
        **SMALL, **ENDS, num_key_value_heads=2, lru_width=32, intermediate_size=48, attention_window_size=8
    ),
    # Its positions are counted from the first token of the row, which padding is.
    "bart": transformers.BartConfig(
        vocab_size=128, d_model=32, decoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=48, **ENDS
    ),
    "mamba": transformers.MambaConfig(**SMALL, **ENDS, state_size=8),
    "bloom": transformers.BloomConfig(vocab_size=128, hidden_size=32, n_layer=3, n_head=4, **ENDS),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_reads_padding_answers_as_each_prompt_by_itself(kind):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(KINDS[kind]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.3)
    prompts = [tiny_ids(1, length, seed=length)[0].tolist() for length in (2, 5, 9, 14, 7, 30, 3, 40, 41)]
    prompts[-1] = prompts[-1][1:]
    alone = generate_ids(model, word_tokenizer(), prompts, max_new_tokens=6, batch_size=1)
    assert generate_ids(model, word_tokenizer(), prompts, max_new_tokens=6) == alone
    assert [needs_no_padding(model), needs_no_padding(model.bfloat16())] == 2 * [kind not in ("mamba", "bloom")]


class Hears(nn.Module):
    """Says the embedding of the last token and, by a share, the mean of all, masked or not."""

    dtype = torch.float32

    def __init__(self, share):
        super().__init__()
        self.share, self.embedding = share, nn.Embedding(16, 8)

    def get_input_embeddings(self):
        return self.embedding

    def forward(self, input_ids, attention_mask=None, use_cache=False):
        states = self.embedding(input_ids)
        return SimpleNamespace(logits=states + self.share * states.mean(1, keepdim=True))


@pytest.mark.parametrize(("share", "changed"), [(0.0, False), (1e-5, True), (1.0, True)])
def test_padding_that_is_hardly_heard_is_heard(share, changed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        assert _is_changed_by_padding(Hears(share)) == changed


def test_a_model_is_tried_once_and_one_that_is_told_positions_never():
    ran = []
    llama = tiny_model("llama")
    for model in (torch.compile(llama, backend="eager"), llama, transformers.MambaForCausalLM(KINDS["mamba"]).train()):
        model.register_forward_hook(lambda own, *_: ran.append((type(own).__name__, own.training)))
        assert [needs_no_padding(model) for _ in range(2)] == [False, False]
    assert ran == [("MambaForCausalLM", False)] * 3
    assert model.training
