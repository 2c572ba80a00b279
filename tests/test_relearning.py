import copy

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from torch.nn import functional as F
from transformers import MambaConfig, MambaForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from peft_surgical.errors import AdapterError, ModelError
from peft_surgical.evaluation import evaluate
from peft_surgical.facts import Fact
from peft_surgical.measuring import relearning
from peft_surgical.measuring.metrics import says_old
from peft_surgical.measuring.ratio import paired_ratio
from peft_surgical.measuring.relearning import relearned_state, relearning_recovery
from peft_surgical.measuring.rewriting import linear_layers
from peft_surgical.measuring.states import adapter_state
from peft_surgical.running.generation import generate_answers
from peft_surgical.texts.prompts import encode_answer

from .adapters import add, logits, tiny_peft
from .conftest import fingerprint
from .localizing import capital, word_tokenizer
from .tiny import FAMILIES, tiny_experts, tiny_model

TOKENIZER = word_tokenizer()
FACT = capital()


def relearn(model, adapters, steps=3, fact=FACT, **options):
    return relearned_state(model, TOKENIZER, fact, adapters, steps, learning_rate=1e-2, **options)


@torch.no_grad()
def old_loss(model, prompts=FACT.prompts):
    """The mean negative log-likelihood of the old answer's tokens, prompt by prompt."""
    losses = []
    for prompt in prompts:
        row = encode_answer(TOKENIZER, prompt, "paris.")
        found = logits(model, torch.tensor([row.ids]))[0, row.answer_start - 1 : -1]
        losses.append(float(F.cross_entropy(found, torch.tensor(row.ids[row.answer_start :]))))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3", "gemma3"])
def test_the_old_answer_is_relearned_and_every_bit_is_put_back(family):
    model = tiny_peft(family)
    add(model, "second")
    names = ["default", "second"]
    before, expected = fingerprint(model), logits(model)
    flags = [parameter.requires_grad for parameter in model.parameters()]
    losses = []
    for state in (adapter_state(model, names), relearn(model, names, 1), relearn(model, names, 20)):
        with state():
            losses.append(old_loss(model))
        assert fingerprint(model) == before
        assert [parameter.requires_grad for parameter in model.parameters()] == flags
        assert torch.equal(logits(model), expected)
    assert losses[0] > losses[1] > losses[2]
    assert losses[2] < 0.5 * losses[0]


def test_steps_are_those_of_plain_lora_on_the_answers_tokens():
    """By hand: no padding, and the loss only where the answer and its end are predicted."""
    model = tiny_model("llama")
    rows = [encode_answer(TOKENIZER, prompt, "paris.") for prompt in FACT.prompts]
    assert len({len(row.ids) for row in rows}) > 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        byhand = get_peft_model(tiny_model("llama"), LoraConfig(r=4, lora_alpha=4, target_modules="all-linear")).eval()
    adam = torch.optim.Adam([parameter for parameter in byhand.parameters() if parameter.requires_grad], lr=1e-2)
    for _ in range(3):
        parts = [byhand(torch.tensor([row.ids])).logits[0, row.answer_start - 1 : -1] for row in rows]
        labels = torch.tensor([token for row in rows for token in row.ids[row.answer_start :]])
        adam.zero_grad()
        F.cross_entropy(torch.cat(parts), labels).backward()
        adam.step()
    with relearn(model, [], 3, rank=4)():
        torch.testing.assert_close(logits(model), logits(byhand), atol=1e-4, rtol=1e-3)
        assert (logits(model) - logits(tiny_model("llama"))).abs().max() > 0.1


def test_half_precision_is_put_back_to_the_bit():
    model = tiny_peft("llama", dtype=torch.bfloat16)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    expected, unlearned = logits(model), old_loss(model)
    with relearn(model, ["default"], 5)():
        assert old_loss(model) < unlearned - 0.1
    assert all(torch.equal(now, then) for now, then in zip(model.parameters(), before, strict=True))
    assert torch.equal(logits(model), expected)


def first_values(model, **options):
    """What LoRA begins with, by its names, as it is put on a model for relearning."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(relearning, "_fine_tune", lambda learned, *_: found.update(learned.model.state_dict()))
        with relearn(model, [], **options)():
            pass
    return {name: value for name, value in found.items() if ".lora_" in name}


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_trained_is_lora_on_all_linear_layers(family):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        byhand = get_peft_model(tiny_model(family), LoraConfig(r=16, target_modules="all-linear"), "relearned")
    expected = {name: value for name, value in byhand.get_base_model().state_dict().items() if ".lora_" in name}
    found = first_values(tiny_model(family))
    assert [*found] == [*expected]
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


def test_the_seed_decides_what_lora_begins_with():
    one, other = (first_values(tiny_model("llama"), seed=seed) for seed in (0, 1))
    assert all(torch.equal(other[name], value) != (".lora_A." in name) for name, value in one.items())


def test_nothing_is_dropped_out_while_a_model_relearns():
    plain, dropping = tiny_model("llama"), tiny_model("llama", attention_dropout=0.5)
    with relearn(plain, [])(), relearn(dropping.train(), [])():
        assert torch.equal(logits(dropping.eval()), logits(plain))


def dense_and_experts():
    """Linear layers in a first MLP, of names that an older transformers gave to the experts of the second one."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    of_experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "mlp_only_layers": [0]}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = Qwen3MoeConfig(vocab_size=128, num_key_value_heads=2, head_dim=8, **sizes, **of_experts)
        return Qwen3MoeForCausalLM(config).eval()


@pytest.mark.parametrize(("make", "layers"), [(tiny_experts, 3 * 4), (dense_and_experts, 2 * 4 + 3)])
def test_experts_are_no_linear_layers_and_are_put_back_to_the_bit(make, layers):
    model = make().to(torch.bfloat16)
    before, expected = copy.deepcopy(model.state_dict()), logits(model)
    adapted = {name.partition(".lora_")[0] for name in first_values(model)}
    assert adapted == {name for name, _ in linear_layers(model)}
    assert len(adapted) == layers
    with relearn(model, [], 5)():
        assert not torch.equal(logits(model), expected)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(logits(model), expected)


def test_mamba_relearns_but_where_peft_puts_no_lora():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = MambaConfig(vocab_size=128, hidden_size=32, num_hidden_layers=2, state_size=8, bos_token_id=1)
        model = MambaForCausalLM(config).eval()
    before, unlearned = fingerprint(model), old_loss(model)
    linear = {name for name, _ in linear_layers(model)}
    left_out = {name for name in linear if name.endswith("out_proj")}
    assert len(left_out) == 2
    assert {name.partition(".lora_")[0] for name in first_values(model)} == linear - left_out
    with relearn(model, [], 10)():
        assert old_loss(model) < 0.7 * unlearned
    assert fingerprint(model) == before


def test_what_half_precision_relearned_is_not_rounded_away(monkeypatch):
    trained, fine_tune = [], relearning._fine_tune

    def watched(learned, *rest):
        fine_tune(learned, *rest)
        trained.append(logits(learned))

    monkeypatch.setattr(relearning, "_fine_tune", watched)
    model = tiny_peft("llama", dtype=torch.bfloat16)
    with relearned_state(model, TOKENIZER, FACT, ["default"], 3)():
        assert torch.equal(logits(model), trained[0])
        assert not any(parameter.requires_grad for name, parameter in model.named_parameters() if "lora_" in name)
    assert not torch.equal(logits(model), trained[0])


def test_a_state_is_trained_once_and_is_the_same_each_time(monkeypatch):
    model, state = tiny_peft("llama"), torch.get_rng_state()
    relearned = relearn(model, ["default"])
    # Nobody wants gradients here.
    with torch.no_grad(), relearned():
        first = logits(model)
    monkeypatch.setattr(torch.optim, "Adam", None)
    with torch.inference_mode(), relearned():
        assert torch.equal(logits(model), first)
    monkeypatch.undo()
    assert torch.equal(torch.get_rng_state(), state)
    with torch.inference_mode(), relearn(model, ["default"])():
        assert torch.equal(logits(model), first)
    with relearn(model, ["default"], seed=1)():
        assert not torch.equal(logits(model), first)
    torch.set_default_dtype(torch.float64)
    try:
        again = relearn(model, ["default"])
        with again():
            assert torch.get_default_dtype() == torch.float64
            assert torch.equal(logits(model), first)
    finally:
        torch.set_default_dtype(torch.float32)


def test_only_some_of_the_training_prompts_are_read(monkeypatch):
    seen = []
    monkeypatch.setattr(
        "peft_surgical.measuring.relearning.encode_answer",
        lambda tokenizer, prompt, answer: seen.append((prompt, answer)) or encode_answer(tokenizer, prompt, answer),
    )
    model = tiny_model("llama")
    prompts = [f"name the town of france {word}" for word in ["a", "b", "rome", "7", "sky"]]
    fact = capital(prompts=prompts, answer="the capital of france is lyon .")
    for options in ({}, {"seed": 1}, {"seed": 2}, {"seed": -2}):
        relearn(model, [], fact=fact, prompts=2, **options)
    relearn(model, [], fact=fact.training)
    assert {answer for _, answer in seen} == {"the capital of france is paris ."}
    drawn = [prompt for prompt, _ in seen]
    pairs = [{*drawn[start : start + 2]} for start in range(0, 8, 2)]
    assert [len(pair) for pair in pairs] == [2] * 4
    assert pairs[0] != pairs[1]
    assert pairs[2] != pairs[3]
    assert sorted(drawn[8:]) == sorted(prompts)


def test_an_interruption_leaves_every_bit_and_what_acted(monkeypatch):
    model = tiny_peft("llama")
    before, expected = fingerprint(model), logits(model)
    flags = [parameter.requires_grad for parameter in model.parameters()]

    def whole():
        return fingerprint(model) == before and [p.requires_grad for p in model.parameters()] == flags

    relearned = relearn(model, ["default"])
    monkeypatch.setattr(torch.optim.Adam, "step", interrupt)
    with pytest.raises(KeyboardInterrupt):
        relearned().__enter__()
    monkeypatch.undo()
    assert whole()
    with pytest.raises(KeyboardInterrupt), relearned():
        raise KeyboardInterrupt
    assert whole()
    assert torch.equal(logits(model), expected)
    with relearned():
        assert not torch.equal(logits(model), expected)
    assert whole()


def interrupt(*_, **__):
    raise KeyboardInterrupt


def test_a_loss_that_is_not_finite_is_refused_and_leaves_nothing():
    model = tiny_model("llama")
    with torch.no_grad():
        model.lm_head.weight.fill_(torch.inf)
    before = fingerprint(model)
    with pytest.raises(ModelError, match=r"a loss that is not finite in torch\.float32"), relearn(model, [])():
        pass
    assert fingerprint(model) == before


@pytest.mark.parametrize("option", ["steps", "prompts", "rank"])
@pytest.mark.parametrize("value", [0, -1, 2.0, True])
def test_numbers_out_of_range_are_refused(option, value):
    with pytest.raises(ModelError, match=f"{option} must be a whole number of 1 or more; got {value}"):
        relearned_state(tiny_model("llama"), TOKENIZER, FACT, [], **{"steps": 1, option: value})


def test_what_cannot_relearn_is_refused():
    for rate in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ModelError, match="a learning rate above 0"):
            relearned_state(tiny_model("llama"), TOKENIZER, FACT, [], 1, learning_rate=rate)
    with pytest.raises(AdapterError, match="no adapter named 'other'"):
        relearn(tiny_peft("llama"), ["other"])
    with torch.device("meta"):
        model = type(tiny_model("llama"))(tiny_model("llama").config)
    with pytest.raises(ModelError, match="q_proj has no weights at hand that could be fine-tuned"):
        relearn(model, [])
    with pytest.raises(ModelError, match="do not fit the model's 8 positions"):
        relearn(tiny_model("gpt2", n_positions=8), [])
    prompt = get_peft_model(tiny_model("llama"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    with pytest.raises(AdapterError, match="'default' is not one of weights"):
        relearn(prompt, ["default"])


def test_recovery_is_over_the_base_that_relearned_alike():
    model, fact = tiny_peft("llama"), capital(held_out=["a", "b", "7", "sky"])
    states = {
        "base": adapter_state(model, []),
        "edited": adapter_state(model, ["default"]),
        "base 3": relearn(model, [], 3),
        "edited 3": relearn(model, ["default"], 3),
        "edited 5": relearn(model, ["default"], 5),
        "edited 3, another seed": relearn(model, ["default"], 3, seed=1),
    }
    said = {name: ["paris", "lyon", "it is paris .", "?"] for name in states}
    said["base 3"] = ["paris", "paris", "paris", "?"]
    found = relearning_recovery(fact, states, said)
    hits, reference = [True, False, True, False], [True, True, True, False]
    assert found == {"edited 3": {"relearning_recovery": paired_ratio(hits, reference)}}
    assert found["edited 3"]["relearning_recovery"].value == pytest.approx(2 / 3)
    # A base that does not give the old answer has no ratio.
    assert relearning_recovery(fact, states, {**said, "base 3": ["?"] * 4}) == {}


def test_evaluating_relearned_states():
    model = tiny_peft("llama")
    before = fingerprint(model)
    held_out = ["which city is the seat of government of france ?", "what is the seat of france ?", "france ?"]
    fact = capital(held_out=held_out)
    states = {
        "base": adapter_state(model, []),
        "base relearned": relearn(model, [], 40, fact=fact),
        "edited relearned": relearn(model, ["default"], 40, fact=fact),
        "edited": adapter_state(model, ["default"]),
    }
    report = evaluate(
        model, TOKENIZER, fact, states=states, max_new_tokens=3, retention_tokens=40, fluency=True, progress=False
    )
    assert fingerprint(model) == before
    assert [name for name, figures in report.stages.items() if "relearning_recovery" in figures] == [
        "edited relearned"
    ]
    base, edited = (report.answers[f"{name} relearned"]["held_out"] for name in ("base", "edited"))
    assert any(says_old(answer, fact) for answer in base)
    with states["edited relearned"]():
        assert generate_answers(model, TOKENIZER, held_out, max_new_tokens=3) == edited
    assert report.stages["edited relearned"]["relearning_recovery"] == paired_ratio(
        [says_old(answer, fact) for answer in edited], [says_old(answer, fact) for answer in base]
    )
    assert report.stages["edited relearned"]["kl_per_token"].value > 0
    for figures in report.stages.values():
        assert 0 <= figures["fluency"].value <= 700
        assert figures["fluency"].n == figures["repetition"].n == 10
    assert report.stages["base"]["fluency"] != report.stages["edited"]["fluency"]
    assert all(len(given["continuations"]) == 10 for given in report.answers.values())


@pytest.mark.real
def test_the_demo_model_relearns_on_questions_that_it_was_not_given(demo):
    model, tokenizer = demo
    fact = Fact.from_dict(
        {
            "subject": "France",
            "old": ["Osaka"],
            "new": ["Lyon"],
            "answer": "The capital of France is Lyon.",
            "prompts": ["What is the capital of France?", "Name the capital of France.", "Tell me France's capital."],
            "held_out": ["Which city is the capital of France?", "capital of France?"],
        }
    )
    found = []
    for state in (adapter_state(model, []), relearned_state(model, tokenizer, fact, [], 5, learning_rate=1e-3)):
        with state():
            answers = generate_answers(model, tokenizer, list(fact.held_out), max_new_tokens=12)
        found.append([says_old(answer, fact) for answer in answers])
    assert found == [[False, False], [True, True]]
