import pytest
import torch
from peft import PromptTuningConfig, get_peft_model

from peft_surgical import generation
from peft_surgical.generation import generate_ids

from .localizing import word_tokenizer
from .test_generation import greedy
from .tiny import FAMILIES, tiny_ids, tiny_model

PROMPTS = [tiny_ids(1, 4 + number % 7, seed=number)[0].tolist() for number in range(9)]
LONGEST = 8


def stopping_tokenizer(end):
    tokenizer = word_tokenizer()
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
    return tokenizer


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_rows_that_have_ended_leave_and_change_no_answer(family, monkeypatch):
    model = tiny_model(family)
    tokenizer = word_tokenizer()
    free = [greedy(model, prompt, LONGEST, stop=None) for prompt in PROMPTS]
    # The end of the turn becomes a token that some answers come to, sooner or later, and others do not.
    ends = {t: [a.index(t) for a in free if t in a] for a in free for t in a if t < len(tokenizer)}
    end = max(ends, key=lambda t: (len(set(ends[t])) * (len(ends[t]) < len(free)), -t))
    expected = [answer[: answer.index(end) + 1] if end in answer else answer for answer in free]
    widths, run = [], model.generate

    def spy(**kwargs):
        widths.append(len(kwargs["input_ids"]))
        return run(**kwargs)

    monkeypatch.setattr(model, "generate", spy)
    for size in (2, 3, 100):
        widths.clear()
        monkeypatch.setattr(generation, "ROUND", size)
        assert generate_ids(model, stopping_tokenizer(end), PROMPTS, max_new_tokens=LONGEST) == expected
        assert widths[0] == len(PROMPTS)
        if size == 100:
            assert widths == [len(PROMPTS)]
        else:
            going = [sum(len(answer) > done for answer in expected) for done in range(0, LONGEST, size)]
            assert widths == [count for count in going if count]
            assert len(set(widths)) > 1


@torch.no_grad()
def test_a_cache_that_rows_cannot_leave_is_used_to_the_end(monkeypatch):
    model = tiny_model("llama")
    expected = [greedy(model, prompt, 9) for prompt in PROMPTS]
    monkeypatch.setattr(generation, "_all_layers", lambda cache, condition: False)
    assert generate_ids(model, word_tokenizer(), PROMPTS, max_new_tokens=9) == expected


@torch.no_grad()
def test_learned_prompts_stand_before_every_row():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
        model = get_peft_model(tiny_model("llama"), config).eval()
    beginning = tiny_ids(1, 9, seed=50)[0].tolist()
    # Of one length: PEFT counts no positions behind padding.
    prompts = [[*beginning, *PROMPTS[number]] for number in (0, 7)]
    expected = [greedy_after_learned(model, prompt, 9) for prompt in prompts]
    assert expected != [greedy(tiny_model("llama"), prompt, 9) for prompt in prompts]
    assert generate_ids(model, word_tokenizer(), prompts, max_new_tokens=9) == expected


def greedy_after_learned(model, prompt, count, stop=2):
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == stop:
            break
    return ids[len(prompt) :]
