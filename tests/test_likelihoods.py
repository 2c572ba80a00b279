"""Log-likelihoods of given answers, beside a plain loop of one forward pass each."""

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from transformers import RwkvConfig, RwkvForCausalLM

from peft_surgical.errors import ModelError
from peft_surgical.running.likelihoods import _of_read, _read_once, log_likelihoods
from peft_surgical.texts.prompts import EncodedAnswer, span

from .conftest import fingerprint
from .threads import threads
from .tiny import tiny_ids, tiny_longrope, tiny_model

START = tuple(range(3, 15))


def rows_of(begin=START):
    """Rows of several lengths behind one beginning, with answers of one, two and four tokens."""
    rows = []
    for number, (asked, answer) in enumerate([(2, 1), (7, 2), (3, 4), (5, 1), (5, 2)]):
        prompt = (*begin, *tiny_ids(1, asked, seed=number)[0].tolist())
        for other in range(2):
            said = tiny_ids(1, answer + other, seed=50 + 2 * number + other)[0].tolist()
            rows.append(EncodedAnswer((*prompt, *said), len(prompt)))
    return rows


@torch.no_grad()
def one_by_one(model, rows):
    found = []
    for row in rows:
        log_probs = model(input_ids=torch.tensor([row.ids])).logits[0, -len(row.ids) :].float().log_softmax(-1)
        own = [float(log_probs[place - 1, row.ids[place]]) for place in range(row.answer_start, len(row.ids))]
        found.append(sum(own) / len(own))
    return found


@pytest.mark.parametrize("begin", [START, ()], ids=["shared", "apart"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "qwen2", "opt", "phi3"])
def test_likelihoods_are_those_of_one_forward_each(family, begin):
    model, rows = tiny_model(family), rows_of(begin)
    expected = one_by_one(model, rows)
    for size in (64, 3, 1):
        assert log_likelihoods(model, rows, batch_size=size) == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("count", [1, 2])
def test_adapters_act_and_replicas_share_the_rows(count):
    lora = LoraConfig(target_modules=["down_proj"], r=2, lora_dropout=0.5)
    model, rows = get_peft_model(tiny_model("llama"), lora), rows_of()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, 0, 0.3)
    model.train()
    before = fingerprint(model)
    with threads(count):
        edited = log_likelihoods(model, rows, batch_size=2)
        with model.disable_adapter():
            base = log_likelihoods(model, rows, batch_size=2)
    assert model.training
    assert fingerprint(model) == before
    assert edited == pytest.approx(one_by_one(model.eval(), rows), abs=2e-5)
    assert base == pytest.approx(one_by_one(tiny_model("llama"), rows), abs=2e-5)
    assert base != pytest.approx(edited, abs=1e-2)


@pytest.mark.parametrize("config", [PromptTuningConfig, PrefixTuningConfig])
def test_learned_prompts_stand_before_each_row(config):
    model = get_peft_model(tiny_model("llama"), config(task_type="CAUSAL_LM", num_virtual_tokens=4)).eval()
    rows = rows_of()
    assert log_likelihoods(model, rows) == pytest.approx(one_by_one(model, rows), abs=2e-5)


def test_longrope_turns_each_row_as_alone():
    model = tiny_longrope(16)
    rows = rows_of()
    assert min(len(row.read) for row in rows) < 16 < max(len(row.read) for row in rows)
    assert log_likelihoods(model, rows) == pytest.approx(one_by_one(model, rows), abs=2e-5)


def test_rows_that_change_one_another_once_they_go_on_do_not_where_they_are_read():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = RwkvConfig(vocab_size=128, hidden_size=32, num_hidden_layers=2, bos_token_id=1, eos_token_id=2)
        model = RwkvForCausalLM(config).eval()
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.data.normal_(0, 0.3)
    for begin in (START, ()):
        rows = rows_of(begin)
        assert log_likelihoods(model, rows) == pytest.approx(one_by_one(model, rows), abs=2e-5)


def test_half_precision_ends_at_the_logits():
    row = EncodedAnswer((*START, 50, 51), len(START))
    logits = torch.randn(2, 128, generator=torch.Generator().manual_seed(0)).bfloat16()
    [found] = _of_read([row], [0], span(row), logits).values()
    exact = logits.double().log_softmax(-1)
    assert found == pytest.approx(float(exact[0, 50] + exact[1, 51]) / 2, abs=1e-6)


def test_nothing_is_read_twice_and_only_what_is_asked_reaches_the_head():
    prompt = (*START, 40, 41)
    short, other, longer = (EncodedAnswer((*prompt, *said), len(prompt)) for said in ((50,), (51,), (51, 52)))
    elsewhere = EncodedAnswer((*START, 42, 50), len(START) + 1)
    rows = [short, other, longer, elsewhere, short]
    reads = {read: sorted(places) for read, places in _read_once(rows)}
    assert reads == {longer.read: [0, 1, 2, 4], elsewhere.read: [3]}
    model, tokens, read = tiny_model("llama"), [], []
    model.model.embed_tokens.register_forward_hook(lambda _, args, __: tokens.append(args[0].numel()))
    model.lm_head.register_forward_hook(lambda _, __, out: read.append(out[0].shape[0]))
    found = log_likelihoods(model, rows)
    # What both begin with once, the rest of both, padded, and of their positions two and one.
    assert tokens == [len(START), 2 * 3]
    assert read == [0, 3]
    assert found == pytest.approx(one_by_one(tiny_model("llama"), rows), abs=2e-5)
    assert found[0] == found[4]
    assert span(longer) == (len(prompt) - 1, len(prompt) + 1)


def test_a_model_that_hides_a_token_or_breaks_is_refused():
    model = tiny_model("llama")
    assert log_likelihoods(model, []) == []
    model.lm_head.weight.data[50] = float("nan")
    with pytest.raises(ModelError, match="logits are not finite, or hide a token"):
        log_likelihoods(model, [EncodedAnswer((*START, 51), len(START))])
    with pytest.raises(ModelError, match="batch_size must be a whole number of 1 or more"):
        log_likelihoods(model, rows_of(), batch_size=0)
