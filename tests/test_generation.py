import copy

import pytest
import torch
from peft import IA3Config, get_peft_model
from transformers import (
    AddedToken,
    GenerationConfig,
    Phi3ForCausalLM,
)

from peft_surgical.errors import ModelError
from peft_surgical.running import generation
from peft_surgical.running.beginnings import expanded
from peft_surgical.running.generation import (
    ends_of,
    even_batches,
    generate_answers,
    generate_ids,
    left_pad,
    plain_defaults,
)
from peft_surgical.texts.prompts import encode

from .adapters import tiny_peft
from .conftest import fingerprint
from .localizing import word_tokenizer
from .offloading import offloaded
from .small_tokenizers import CHATML, small_tokenizer
from .threads import threads
from .tiny import FAMILIES, tiny_config, tiny_ids, tiny_model

TOKENIZER = word_tokenizer()
PROMPTS = [tiny_ids(1, length, seed=length)[0].tolist() for length in (3, 11, 5, 8, 2)]
ROWS = [tiny_ids(1, 4 + number % 7, seed=number)[0].tolist() for number in range(9)]
LONGEST = 8


def test_rows_of_a_pass_do_not_turn_each_others_positions():
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    model = Phi3ForCausalLM(tiny_config("phi3", rope_parameters=rope, original_max_position_embeddings=30)).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data.normal_(0, 0.15, generator=generator)
    shared = tiny_ids(1, 12, 1)[0].tolist()
    prompts = [[*shared, *tiny_ids(1, length, length)[0].tolist()] for length in (2, 16, 12, 25)]
    expected = [greedy(model, prompt, 6) for prompt in prompts]
    assert generate_ids(model, TOKENIZER, prompts, max_new_tokens=6) == expected
    assert generate_ids(model, TOKENIZER, prompts[:3], max_new_tokens=6) == expected[:3]
    # Two stay on this side, one goes over, and one is beyond from the first token.
    lengths = [(len(prompt), len(prompt) + len(answer)) for prompt, answer in zip(prompts, expected, strict=True)]
    assert [(begin > 30, end > 30) for begin, end in lengths] == [
        (False, False),
        (False, True),
        (False, False),
        (True, True),
    ]


def greedy(model, prompt, count, stop=2):
    """By hand: no cache, no padding, one at a time."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == stop:
            break
    return ids[len(prompt) :]


def named(model):
    """The model, made to say only what has a name in the tokenizer and is not special."""
    model.lm_head.weight.data[:4] = model.lm_head.weight.data[4]
    model.lm_head.weight.data[len(TOKENIZER) :] = model.lm_head.weight.data[4]
    return model


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_padded_batch_answers_as_one_by_one_in_order(family):
    model = tiny_model(family)
    expected = [greedy(model, prompt, 4) for prompt in PROMPTS]
    assert len({tuple(answer) for answer in expected}) > 1
    for batch_size in (2, 32):
        assert generate_ids(model, TOKENIZER, PROMPTS, max_new_tokens=4, batch_size=batch_size) == expected


@torch.no_grad()
def test_an_answer_stops_at_the_end_of_the_turn():
    model = named(tiny_model("llama"))
    free = [greedy(model, prompt, 6, stop=None) for prompt in PROMPTS]
    # Whatever the second answer says third becomes the end of the turn.
    tokenizer = word_tokenizer()
    end = free[1][2]
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
    assert tokenizer.eos_token_id == end
    answers = generate_ids(model, tokenizer, PROMPTS, max_new_tokens=6)
    assert answers == [greedy(model, prompt, 6, stop=end) for prompt in PROMPTS]
    assert answers[1] == free[1][: free[1].index(end) + 1]
    assert len(answers[1]) < 6


@torch.no_grad()
def test_an_answer_stops_at_other_ends_that_the_checkpoint_names():
    model, tokenizer = named(tiny_model("llama")), word_tokenizer()
    ordinary, end = greedy(model, PROMPTS[1], 6, stop=None)[1:3]
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, ordinary, end]
    tokenizer.add_special_tokens({"additional_special_tokens": [tokenizer.convert_ids_to_tokens(end)]})
    answers = generate_ids(model, tokenizer, PROMPTS, max_new_tokens=6)
    assert answers == [greedy(model, prompt, 6, stop=end) for prompt in PROMPTS]
    # A word that the tokenizer does not call special may be said.
    assert ordinary in answers[1][:-1]
    assert ends_of(get_peft_model(model, IA3Config(task_type="CAUSAL_LM")), tokenizer) == ends_of(model, tokenizer)


@torch.no_grad()
def test_without_an_end_answers_run_until_they_are_cut():
    model, tokenizer = named(tiny_model("llama")), word_tokenizer()
    said = greedy(model, PROMPTS[1], 6, stop=None)
    tokenizer.eos_token = None
    # What the checkpoint calls an end is none to a tokenizer that has none.
    model.config.eos_token_id = model.generation_config.eos_token_id = said[2]
    answers = generate_ids(model, tokenizer, PROMPTS, max_new_tokens=6)
    assert answers == [greedy(model, prompt, 6, stop=None) for prompt in PROMPTS]
    assert answers[1] == said
    assert len(generate_answers(model, tokenizer, ["where is rome ?"], max_new_tokens=6)[0].split()) == 6


@torch.no_grad()
def test_greedy_is_greedy_whatever_the_checkpoint_asks_for():
    model = tiny_model("llama")
    expected = [greedy(model, prompt, 6) for prompt in PROMPTS]
    asked = GenerationConfig(repetition_penalty=5.0, num_beams=2, suppress_tokens=[expected[0][0]], min_length=200)
    model.generation_config = asked
    assert generate_ids(model, TOKENIZER, PROMPTS, max_new_tokens=6) == expected
    assert model.generation_config is asked
    peft_model = get_peft_model(model, IA3Config(task_type="CAUSAL_LM"))
    assert generate_ids(peft_model, TOKENIZER, PROMPTS, max_new_tokens=6) == expected
    assert model.generation_config is asked
    # PEFT puts what its own model was given onto the base's before it generates.
    peft_model.generation_config = other = copy.deepcopy(asked)
    assert generate_ids(peft_model, TOKENIZER, PROMPTS, max_new_tokens=6) == expected
    assert peft_model.generation_config is other
    assert model.generation_config is asked


def test_a_model_that_two_threads_ask_gets_its_own_settings_back():
    model = tiny_model("llama")
    own = model.generation_config
    first, second = plain_defaults(model), plain_defaults(model)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert model.generation_config is not own
    second.__exit__(None, None, None)
    assert model.generation_config is own


def test_the_mode_is_left_as_it_was():
    model = tiny_model("gpt2", resid_pdrop=0.5).train()
    first = generate_ids(model, TOKENIZER, PROMPTS, max_new_tokens=4)
    assert model.training
    assert generate_ids(model.eval(), TOKENIZER, PROMPTS, max_new_tokens=4) == first
    assert not model.training


def test_answers_are_text():
    model = named(tiny_model("llama"))
    prompts = ["what is the capital of france ?", "who wrote hamlet ?"]
    answers = generate_answers(model, TOKENIZER, prompts, max_new_tokens=5)
    for prompt, answer in zip(prompts, answers, strict=True):
        [ids] = generate_ids(model, TOKENIZER, [encode(TOKENIZER, prompt)], max_new_tokens=5)
        assert answer == TOKENIZER.decode(ids, skip_special_tokens=True).strip()
        assert "<" not in answer
    assert generate_answers(model, TOKENIZER, []) == []
    assert generate_answers(model, TOKENIZER, prompts, max_new_tokens=5, strip=False) == [f" {a}" for a in answers]


@torch.no_grad()
def test_the_end_of_a_turn_is_no_text_though_it_be_no_special_token():
    model, tokenizer = tiny_model("llama", seed=2), word_tokenizer()
    tokenizer.add_tokens([AddedToken("<|im_start|>"), AddedToken("<|im_end|>")])
    tokenizer.chat_template = CHATML
    prompt, end = "who wrote hamlet ?", tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert end not in tokenizer.all_special_ids
    *said, other = greedy(model, encode(tokenizer, prompt), 4)
    assert tokenizer.decode(said) == "sky"
    # Now it ends the turn where it went on.
    model.lm_head.weight.data[[other, end]] = model.lm_head.weight.data[[end, other]]
    assert generate_ids(model, tokenizer, [encode(tokenizer, prompt)]) == [[*said, end]]
    assert generate_answers(model, tokenizer, [prompt]) == ["sky"]


def test_what_does_not_fit_is_refused():
    model = tiny_model("gpt2")
    fits = tiny_ids(1, 250)[0].tolist()
    assert len(generate_ids(model, TOKENIZER, [fits], max_new_tokens=6)[0]) <= 6
    with pytest.raises(
        ModelError, match=r"a prompt of 250 tokens and an answer of 7 do not fit the model's 256 positions"
    ):
        generate_ids(model, TOKENIZER, [[3], fits], max_new_tokens=7)


def test_no_space_stands_between_the_halves_of_a_character():
    tokenizer = small_tokenizer("byte_level")
    first, *rest = tokenizer.encode("é Rome", add_special_tokens=False)
    assert tokenizer.decode([first]) == "\ufffd"
    assert generation._space_before(tokenizer, [first], rest) == ""
    assert generation._space_before(tokenizer, [first, rest[0]], rest[1:]) == " "


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7])
@pytest.mark.parametrize("replicas", [1, 2, 3, 4])
def test_batches_are_even_and_none_is_empty(batch_size, replicas):
    for count in range(12):
        batches = even_batches(range(count), batch_size, replicas)
        assert [row for batch in batches for row in batch] == [*range(count)]
        assert len(batches) == count or len(batches) % replicas == 0
        lengths = [len(batch) for batch in batches] or [1]
        assert max(1, max(lengths) - 1) <= min(lengths) <= max(lengths) <= batch_size


@torch.no_grad()
def test_the_longest_are_answered_first(monkeypatch):
    widths, plain = [], generation._ending
    monkeypatch.setattr(
        generation, "_ending", lambda own, ids, *how: widths.append(ids.shape[1]) or plain(own, ids, *how)
    )
    with threads(1):
        generate_ids(tiny_model("llama"), TOKENIZER, PROMPTS, max_new_tokens=1, batch_size=2)
    assert widths == [11, 8, 3]


def test_left_pad():
    ids, mask = left_pad([[5, 6, 7], [8]], pad=0)
    assert ids.tolist() == [[5, 6, 7], [0, 0, 8]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    ids, mask = left_pad([[5, 6, 7, 8], [5, 9]], pad=0, prefix=1)
    assert ids.tolist() == [[5, 6, 7, 8], [5, 0, 0, 9]]
    assert mask.tolist() == [[1, 1, 1, 1], [1, 0, 0, 1]]


BEGINNING = tiny_ids(1, 9, seed=50)[0].tolist()
# The shortest goes on after the beginning with one token.
BEGIN_ALIKE = [[*BEGINNING, *prompt] for prompt in [*PROMPTS, [77]]]


def shared_caches(monkeypatch):
    """The rows of each cache that generation is started from."""
    rows = []

    def spy(cache, count):
        rows.append(count)
        return expanded(cache, count)

    monkeypatch.setattr(generation, "expanded", spy)
    return rows


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_shared_beginning_is_run_once_and_changes_no_answer(family, monkeypatch):
    model, rows = tiny_model(family), shared_caches(monkeypatch)
    expected = [greedy(model, prompt, 5) for prompt in BEGIN_ALIKE]
    assert len({tuple(answer) for answer in expected}) > 1
    monkeypatch.setattr(generation, "MIN_SHARED", 10_000)
    assert generate_ids(model, TOKENIZER, BEGIN_ALIKE, max_new_tokens=5, batch_size=4) == expected
    assert rows == []
    monkeypatch.setattr(generation, "MIN_SHARED", 1)
    assert generate_ids(model, TOKENIZER, BEGIN_ALIKE, max_new_tokens=5, batch_size=4) == expected
    # Keys behind a sliding window would be cut off by the padding after them.
    assert rows == ([] if family in ("mistral", "gemma3") else [3, 3])


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_batches_are_answered_side_by_side(family):
    model = tiny_model(family).train()
    prompts = [*BEGIN_ALIKE, *PROMPTS]
    answered, plain = [], generation._ending

    def noted(model, ids, *options):
        answered.append((model, len(ids)))
        return plain(model, ids, *options)

    with threads(1):
        expected = generate_ids(model, TOKENIZER, prompts, max_new_tokens=5)
    with pytest.MonkeyPatch.context() as patch, threads(2):
        patch.setattr(generation, "_ending", noted)
        assert generate_ids(model, TOKENIZER, prompts, max_new_tokens=5, batch_size=len(prompts)) == expected
        assert answered == [(model, len(prompts))]
        answered.clear()
        assert generate_ids(model, TOKENIZER, prompts, max_new_tokens=5, batch_size=len(prompts) - 1) == expected
    assert sorted(rows for _, rows in answered) == [len(prompts) // 2, -(-len(prompts) // 2)]
    assert len({id(own) for own, _ in answered}) == 2
    assert model.training


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@torch.no_grad()
def test_what_is_shared_is_of_the_adapters_that_act(family, monkeypatch):
    rows = shared_caches(monkeypatch)
    model = tiny_peft(family)
    expected = [greedy(model, prompt, 5) for prompt in BEGIN_ALIKE]
    base = [greedy(tiny_model(family), prompt, 5) for prompt in BEGIN_ALIKE]
    assert expected != base
    assert generate_ids(model, TOKENIZER, BEGIN_ALIKE, max_new_tokens=5) == expected
    with model.disable_adapter():
        assert generate_ids(model, TOKENIZER, BEGIN_ALIKE, max_new_tokens=5) == base
    assert rows == [6, 6]


@pytest.mark.parametrize("prompts", [BEGIN_ALIKE[:1], PROMPTS, [BEGINNING[:5], BEGINNING]])
@torch.no_grad()
def test_nothing_is_shared_where_it_gains_nothing(prompts, monkeypatch):
    model, rows = tiny_model("llama"), shared_caches(monkeypatch)
    expected = [greedy(model, prompt, 3) for prompt in prompts]
    assert generate_ids(model, TOKENIZER, prompts, max_new_tokens=3) == expected
    assert rows == []


def stopping_tokenizer(end):
    tokenizer = word_tokenizer()
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
    return tokenizer


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_rows_that_have_ended_leave_and_change_no_answer(family, monkeypatch):
    model = tiny_model(family)
    tokenizer = word_tokenizer()
    model.generation_config.eos_token_id = None
    free = [greedy(model, prompt, LONGEST, stop=None) for prompt in ROWS]
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
        assert generate_ids(model, stopping_tokenizer(end), ROWS, max_new_tokens=LONGEST) == expected
        assert widths[0] == len(ROWS)
        if size == 100:
            assert widths == [len(ROWS)]
        else:
            going = [sum(len(answer) > done for answer in expected) for done in range(0, LONGEST, size)]
            assert widths == [count for count in going if count]
            assert len(set(widths)) > 1


@torch.no_grad()
def test_a_cache_that_rows_cannot_leave_is_used_to_the_end(monkeypatch):
    model = tiny_model("llama")
    expected = [greedy(model, prompt, 9) for prompt in ROWS]
    monkeypatch.setattr(generation, "all_layers", lambda cache, condition: False)
    assert generate_ids(model, word_tokenizer(), ROWS, max_new_tokens=9) == expected


def test_each_module_is_left_in_its_own_mode():
    model = tiny_model("gpt2", resid_pdrop=0.5)
    model.transformer.h[1].train()
    before = fingerprint(model)
    generate_ids(model, TOKENIZER, PROMPTS, max_new_tokens=4)
    assert fingerprint(model) == before


@pytest.mark.parametrize("names", [["model.embed_tokens"], ["model", "lm_head"]], ids=["embedding", "whole"])
def test_an_offloaded_model_answers_the_same(names):
    expected = generate_ids(tiny_model("llama"), TOKENIZER, PROMPTS, max_new_tokens=6)
    assert generate_ids(offloaded(tiny_model("llama"), names), TOKENIZER, PROMPTS, max_new_tokens=6) == expected


@pytest.mark.parametrize("count", [{"batch_size": 0}, {"max_new_tokens": 0}])
def test_counts_of_nothing_are_refused(count):
    [name] = count
    with pytest.raises(ModelError, match=f"{name} must be a whole number of 1 or more; got 0"):
        generate_ids(tiny_model("llama"), TOKENIZER, PROMPTS, **count)
