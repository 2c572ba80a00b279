"""Answers of models that keep more than keys and values, count their positions in their own way, or cannot be
run."""

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    DynamicCache,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MptConfig,
    MptForCausalLM,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
)

from peft_surgical import architectures
from peft_surgical.architectures import Architecture
from peft_surgical.errors import ModelError
from peft_surgical.keying.keys import Marked, marked_neurons
from peft_surgical.measuring.retention import measure_retention
from peft_surgical.measuring.states import adapter_state
from peft_surgical.running.generation import _shared_start, generate_ids
from peft_surgical.running.suffix import SuffixRunner
from peft_surgical.running.tails import TailRunner
from peft_surgical.sentence import sample_contexts
from peft_surgical.staging.displacement import measure_displacement
from peft_surgical.texts.prompts import EncodedAnswer
from peft_surgical.tuner import SurgicalIA3Config

from .localizing import word_tokenizer
from .test_beginnings import built
from .test_generation import BEGIN_ALIKE, BEGINNING, ROWS, greedy, stopping_tokenizer
from .test_suffix import PREFIX, rows, spans_of
from .tiny import VOCAB, tiny_ids, tiny_model

# They count their positions on from the padding token's id, where nobody tells them any.
COUNTING = {"roberta": "roberta", "xlm-roberta": "roberta", "camembert": "roberta", "data2vec-text": "data2vec_text"}


@pytest.mark.parametrize("family", ["falcon_h1", "minimax"])
@torch.no_grad()
def test_rows_stay_where_more_is_kept_of_them_than_keys_and_values(family):
    model, words = built(family), len(word_tokenizer())
    free = [greedy(model, prompt, 9, stop=None) for prompt in ROWS]
    # A token that ends some answers in the first round, and not all.
    counts = {token: sum(token in answer[:4] for answer in free) for answer in free for token in answer[:4]}
    end = next(token for token, count in counts.items() if count < len(free) and token < words)
    expected = [greedy(model, prompt, 9, stop=end) for prompt in ROWS]
    assert generate_ids(model, stopping_tokenizer(end), ROWS, max_new_tokens=9) == expected
    [alone] = generate_ids(model, stopping_tokenizer(end), ROWS[:1], max_new_tokens=9)
    assert alone == expected[0]


@pytest.mark.parametrize("family", ["falcon_h1", "minimax"])
@torch.no_grad()
def test_a_beginning_that_leaves_more_than_keys_and_values_is_not_shared(family):
    model = built(family)
    expected = [greedy(model, prompt, 5) for prompt in BEGIN_ALIKE]
    assert generate_ids(model, word_tokenizer(), BEGIN_ALIKE, max_new_tokens=5) == expected


def only_answering(family):
    """A small model of a family that only answers, with weights large enough to answer variously."""
    sizes = {"vocab_size": VOCAB, "hidden_size": 32, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config, cls = {
        "mpt": (MptConfig(d_model=32, n_layers=3, n_heads=4, vocab_size=VOCAB, max_seq_len=64), MptForCausalLM),
        "gpt_neo": (
            GPTNeoConfig(
                num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]], window_size=4, **sizes
            ),
            GPTNeoForCausalLM,
        ),
        "mamba": (MambaConfig(num_hidden_layers=2, **sizes), MambaForCausalLM),
        "openai-gpt": (OpenAIGPTConfig(n_layer=2, n_head=4, n_embd=32, vocab_size=VOCAB), OpenAIGPTLMHeadModel),
    }[family]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = cls(config).eval()
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0, 0.3)
    return model


@pytest.mark.parametrize("family", ["mpt", "gpt_neo", "mamba", "openai-gpt"])
@torch.no_grad()
def test_a_shared_beginning_is_left_where_a_model_counts_places_or_keeps_no_keys(family):
    model = only_answering(family)
    expected = [greedy(model, prompt, 5) for prompt in BEGIN_ALIKE]
    assert len({tuple(answer) for answer in expected}) > 1
    assert generate_ids(model, word_tokenizer(), BEGIN_ALIKE, max_new_tokens=5) == expected


def test_a_beginning_of_which_a_model_keeps_nothing_is_not_shared():
    model = tiny_model("llama")
    length, cache = _shared_start(model, BEGIN_ALIKE)
    assert length == cache.get_seq_length() == len(BEGINNING)

    def forget(_, __, out):
        out.past_key_values = DynamicCache(config=model.config)

    with model.register_forward_hook(forget):
        assert _shared_start(model, BEGIN_ALIKE) == (0, None)


def counting(family):
    sizes = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = AutoConfig.for_model(family, **sizes, intermediate_size=48, pad_token_id=1, is_decoder=True)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.15)
    return model


def at_places(model, row):
    return model(torch.tensor([row]), position_ids=torch.arange(len(row))[None]).logits[0]


@pytest.mark.parametrize("family", COUNTING)
@torch.no_grad()
def test_a_shared_beginning_stands_where_generation_puts_it(family):
    model = counting(family)
    alone = [generate_ids(model, word_tokenizer(), [prompt], max_new_tokens=5)[0] for prompt in BEGIN_ALIKE]
    assert [answer[0] for answer in alone] == [int(at_places(model, prompt)[-1].argmax()) for prompt in BEGIN_ALIKE]
    assert generate_ids(model, word_tokenizer(), BEGIN_ALIKE, max_new_tokens=5) == alone


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("family", COUNTING)
@torch.no_grad()
def test_rows_are_trained_at_the_places_of_answers(family, first):
    model, sequences = counting(family), rows(PREFIX)
    layers = model.get_submodule(f"{COUNTING[family]}.encoder.layer")
    spans = spans_of(sequences, len(PREFIX))
    expected = torch.cat([at_places(model, row)[a:b] for row, (a, b) in zip(sequences, spans, strict=True)])
    runners = [SuffixRunner(model, layers, first, prefix) for prefix in ((), PREFIX)]
    for runner in runners:
        runner.add(sequences)
    for starts in ([0] * 4, [len(PREFIX)] * 4, [0, 3, len(PREFIX), 0]):
        runners.append(TailRunner(model, layers, first))
        runners[-1].add(sequences, starts=starts)
    for runner in runners:
        torch.testing.assert_close(runner.logits(range(4), spans), expected, atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_neurons_are_read_at_the_places_of_answers(monkeypatch):
    roberta = Architecture(
        layers="roberta.encoder.layer",
        attention_out="attention.output.dense",
        mlp_out="output.dense",
        q="attention.self.query",
        k="attention.self.key",
        v="attention.self.value",
        up="intermediate.dense",
    )
    monkeypatch.setitem(architectures._KNOWN, "roberta", roberta)
    model, name = counting("roberta"), "roberta.encoder.layer.1.output.dense"
    texts = [EncodedAnswer((*range(20, 30), *row), 1) for row in ([3, 4], [5, 6], [7, 8])]
    found = torch.cat([batch[name] for batch in marked_neurons(model, {name: 1}, Marked(texts, [[9, 11]] * 3))])
    seen = []
    model.get_submodule(name).register_forward_pre_hook(lambda _, args: seen.append(args[0][0, [9, 11]]))
    for text in texts:
        at_places(model, text.ids)
    torch.testing.assert_close(found, torch.cat(seen), atol=1e-5, rtol=1e-4)
    config = SurgicalIA3Config(selections={name: {"side": "input", "ranges": [[0, 4]]}})
    adapted, given = get_peft_model(counting("roberta"), config).get_base_model(), []
    adapted.register_forward_pre_hook(lambda _, args, kwargs: given.append(kwargs["position_ids"]), with_kwargs=True)
    measure_displacement(adapted, {name: 1}, "default", [[20, 21, 22]])
    assert [places.tolist() for places in given] == [[[0, 1, 2]]]


@torch.no_grad()
def test_unrelated_text_and_beginnings_that_are_made_up_are_read_at_the_places_of_answers():
    model, tokenizer = counting("roberta"), word_tokenizer()
    given = []
    model.register_forward_pre_hook(lambda _, args, kwargs: given.append(kwargs["position_ids"]), with_kwargs=True)
    text = "the capital of france is paris . " * 4
    measure_retention(model, tokenizer, {"base": adapter_state(model, [])}, text=text, tokens=16)
    of_text = len(given)
    sample_contexts(model, tokenizer, 2, 0)
    assert 0 < of_text < len(given)
    assert all(places.tolist() == [[*range(places.shape[1])]] for places in given)


@pytest.mark.parametrize("count", [1, 3])
def test_a_model_that_cannot_be_run_is_told_and_want_of_memory_goes_through(count, monkeypatch):
    model = tiny_model("llama")
    prompts = [[3, *range(4, 9 + place)] for place in range(count)]
    monkeypatch.setattr(model.model.layers[1].mlp, "down_proj", nn.Linear(7, 32))
    for given in (model, get_peft_model(model, LoraConfig(target_modules=["q_proj"]))):
        match = r"^the model, a LlamaForCausalLM, cannot be run: mat1 and mat2 shapes cannot be multiplied .*\.$"
        with pytest.raises(ModelError, match=match):
            generate_ids(given, word_tokenizer(), prompts)
    model = tiny_model("llama")
    with model.model.layers[1].register_forward_pre_hook(without_memory):
        with pytest.raises(torch.OutOfMemoryError):
            generate_ids(model, word_tokenizer(), prompts)


def test_want_of_memory_where_the_model_is_tried_says_nothing_of_it(monkeypatch):
    model = tiny_model("llama")
    monkeypatch.setattr(model, "generate", None)
    with model.register_forward_pre_hook(without_memory), pytest.raises(TypeError):
        generate_ids(model, word_tokenizer(), [[3, 4, 5]])


def without_memory(*_):
    raise torch.OutOfMemoryError("CUDA out of memory.")


def test_what_fails_though_the_model_runs_is_no_fault_of_the_model(monkeypatch):
    monkeypatch.setattr(tiny := tiny_model("llama"), "generate", None)
    with pytest.raises(TypeError):
        generate_ids(tiny, word_tokenizer(), [[3, 4, 5]])


@torch.no_grad()
def test_learned_prompts_stand_before_every_row():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
        model = get_peft_model(tiny_model("llama"), config).eval()
    beginning = tiny_ids(1, 9, seed=50)[0].tolist()
    # Of one length: PEFT counts no positions behind padding.
    prompts = [[*beginning, *ROWS[number]] for number in (0, 7)]
    expected = [greedy(model, prompt, 9) for prompt in prompts]
    assert expected != [greedy(tiny_model("llama"), prompt, 9) for prompt in prompts]
    assert generate_ids(model, word_tokenizer(), prompts, max_new_tokens=9) == expected
