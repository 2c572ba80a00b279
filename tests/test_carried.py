"""What a selection carries together, on the model in which one head and one MLP carry the fact."""

import math
import warnings

import pytest
import torch
from peft import IA3Config, get_peft_model

import peft_surgical as ps
from peft_surgical.errors import ArchitectureError, ModelError, ScorerError, SelectionError
from peft_surgical.selection import Selection
from peft_surgical.sites import ModelShape, components

from .localizing import HEAD, MLP, OTHER, capital, localized, planted, word_tokenizer
from .tiny import tiny_model


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer()


@pytest.fixture(scope="module")
def model():
    return planted()


def measured(model, tokenizer, *names, fact=None, **options):
    options = {"draws": 0, "least": 1e-3, "progress": False, **options}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return ps.faithfulness(model, tokenizer, fact or capital(), Selection.from_components(*names), **options)


def values(found):
    return found.faithfulness.own.value, found.necessity.own.value


def test_the_planted_components_carry_it_all(model, tokenizer):
    found = measured(model, tokenizer, HEAD, MLP, OTHER, draws=20)
    assert values(found) == (pytest.approx(1, abs=0.02), pytest.approx(1, abs=0.02))
    assert found.n == 3
    assert found.left_out == ()
    for carried in (found.faithfulness, found.necessity):
        assert len(carried.draws) == 20
        assert carried.random.value == pytest.approx(sum(carried.draws) / 20)
        assert carried.random.value < 0.6
    # The others carry nothing, alone or together.
    shape = ModelShape.from_config(model.config)
    rest = [str(component) for component in components(shape) if str(component) not in (HEAD, MLP, OTHER)]
    assert values(measured(model, tokenizer, *rest)) == (pytest.approx(0, abs=0.02), pytest.approx(0, abs=0.02))


def test_of_a_chain_both_are_needed_and_neither_suffices(model, tokenizer):
    whole = values(measured(model, tokenizer, HEAD, MLP))
    # What the head moves reaches the answer through the MLP alone.
    for name in (HEAD, MLP):
        alone, gone = values(measured(model, tokenizer, name))
        assert alone == pytest.approx(0, abs=0.05)
        assert gone == pytest.approx(whole[1], abs=0.05)
    # Neither score nor sum of scores tells so: each drop is the whole of what the two carry.
    loc = localized(model, tokenizer, "logit_drop")
    assert loc.scores["logit_drop"][HEAD] + loc.scores["logit_drop"][MLP] > 1.9 * loc.scores["logit_drop"][MLP]


def test_one_component_is_its_exact_drop(model, tokenizer):
    loc = localized(model, tokenizer, "logit_drop", prompts=1)
    [record] = loc.corruption
    total = record["clean"] - record["corrupted"]
    for name in (HEAD, MLP, OTHER, "L0.mlp"):
        found = measured(model, tokenizer, name, prompts=1)
        assert found.n == 1
        # The record has four decimals.
        assert values(found)[1] * total == pytest.approx(loc.scores["logit_drop"][name], rel=1e-3, abs=1e-5)


def test_prompts_that_the_corruption_hardly_touches_are_left_out_and_named(model, tokenizer):
    totals = {}
    for record in localized(model, tokenizer, "random").corruption:
        totals[record["prompt"]] = record["clean"] - record["corrupted"]
    least = sorted(totals.values())[1] - 1e-3
    found = measured(model, tokenizer, HEAD, MLP, least=least)
    assert found.left_out == tuple(prompt for prompt, total in totals.items() if total < least)
    assert (found.n, len(found.left_out), found.least) == (2, 1, least)
    none = measured(model, tokenizer, HEAD, MLP, least=1e6, draws=3)
    assert none.n == 0
    assert none.left_out == capital().prompts
    assert none.necessity == ps.Carried(None, None, ())


def test_what_is_held_out_is_never_read(model, tokenizer):
    other = capital(held_out=["where is france ?"], controls=[{"prompt": "who is lyon ?", "answer": ["town"]}])
    expected = measured(model, tokenizer, HEAD, MLP, draws=3)
    assert measured(model, tokenizer, HEAD, MLP, draws=3, fact=other) == expected
    assert measured(model, tokenizer, HEAD, MLP, draws=3, fact=capital().training) == expected


def test_the_seed_decides_the_draws(model, tokenizer):
    first = measured(model, tokenizer, HEAD, draws=4)
    assert measured(model, tokenizer, HEAD, draws=4) == first
    assert measured(model, tokenizer, HEAD, draws=4, seed=1).faithfulness.draws != first.faithfulness.draws


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_model_is_left_as_it_was_and_effects_are_of_float32(dtype, tokenizer):
    model = planted().to(dtype).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    grad = torch.is_grad_enabled()
    with torch.autocast("cpu", torch.bfloat16):
        found = measured(model, tokenizer, HEAD, MLP, OTHER)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.is_grad_enabled() == grad
    assert values(found) == values(measured(model.float(), tokenizer, HEAD, MLP, OTHER))
    assert not any(parameter.grad is not None for parameter in model.parameters())


def test_it_needs_no_gradient(model, tokenizer):
    expected = measured(model, tokenizer, HEAD, draws=2)
    with torch.inference_mode():
        assert measured(model, tokenizer, HEAD, draws=2) == expected


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"draws": -1}, ScorerError, "draws must be a whole number of 0 or more; got -1"),
        ({"draws": 2.0}, ScorerError, "draws must be a whole number of 0 or more; got 2.0"),
        ({"seed": 1.5}, ScorerError, r"seed must be a whole number \(int\)"),
        ({"least": 0}, ModelError, "least must be a finite number above 0; got 0"),
        ({"least": math.nan}, ModelError, "least must be a finite number above 0; got nan"),
        ({"max_tokens": 0}, ScorerError, "max_tokens must be a whole number of 1 or more; got 0"),
        ({"prompts": 0}, ps.FactError, "prompts must be a whole number of 1 or more; got 0"),
    ],
)
def test_a_bad_number_is_refused_before_anything_is_run(options, error, told, model, tokenizer, monkeypatch):
    monkeypatch.delattr("peft_surgical.localizing.asked.wrap")
    with pytest.raises(error, match=told):
        measured(model, tokenizer, HEAD, **options)


@pytest.mark.parametrize("selection", [("L1.mlp",), "L1.mlp", None])
def test_what_is_no_selection_is_refused(selection, model, tokenizer):
    with pytest.raises(SelectionError, match=r"a selection must be a Selection, such as loc\.top\(10\) or"):
        ps.faithfulness(model, tokenizer, capital(), selection)


def test_a_selection_of_another_model_is_refused(model, tokenizer, monkeypatch):
    monkeypatch.delattr("peft_surgical.localizing.asked.wrap")
    with pytest.raises(SelectionError, match="L9"):
        measured(model, tokenizer, "L9.mlp")


def test_a_model_that_looks_both_ways_is_refused_before_it_runs(tokenizer, monkeypatch):
    monkeypatch.delattr("peft_surgical.localizing.asked.wrap")
    model = planted()
    model.config.use_bidirectional_attention = True
    with pytest.raises(ArchitectureError, match="looks both ways"):
        measured(model, tokenizer, HEAD)


def test_a_model_with_an_adapter_is_refused(tokenizer):
    carrying = get_peft_model(planted(), IA3Config(task_type="CAUSAL_LM"))
    with pytest.raises(ModelError, match="adapter"):
        measured(carrying.base_model.model, tokenizer, HEAD)


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_it_is_measured_under_inference_mode_too(family, tokenizer):
    model = tiny_model(family, seed=2)
    outside = measured(model, tokenizer, HEAD, MLP)
    with torch.inference_mode():
        assert values(measured(model, tokenizer, HEAD, MLP)) == values(outside)
