"""Causal traces on the model in which one head and one MLP carry the fact."""

import math
import warnings

import numpy as np
import pytest
import torch
from peft import IA3Config, get_peft_model

import peft_surgical as ps
from peft_surgical.errors import FactError, ModelError, ScorerError

from .localizing import capital, fact_pairs, localized, planted, runs_of, word_tokenizer
from .small_tokenizers import CHATML, small_tokenizer
from .tiny import tiny_model

BOTH = ("noising", "denoising")
ODD = "what is the capital of italy ?"


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer()


@pytest.fixture(scope="module")
def model():
    return planted()


def measured(model, tokenizer, fact=None, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return ps.causal_trace(model, tokenizer, fact or capital(), **{"least": 1e-3, "progress": False, **options})


def at(trace, stream, layer, name):
    return trace.figure(stream, layer, name).value


@pytest.mark.parametrize("direction", BOTH)
def test_the_planted_way_is_found(direction, model, tokenizer):
    trace = measured(model, tokenizer, direction=direction, prompts=2)
    # The country is at its own token until head 2 of layer 1 moves it to the last, where the MLP of layer 2 reads it.
    for layer, subject, last in ((0, 1, 0), (1, 1, 0), (2, 0, 1)):
        assert at(trace, "resid_pre", layer, "subject_last") == pytest.approx(subject, abs=0.05)
        assert at(trace, "resid_pre", layer, "last") == pytest.approx(last, abs=0.05)
    assert at(trace, "attn_out", 1, "last") == pytest.approx(1, abs=0.05)
    assert at(trace, "mlp_out", 2, "last") > 0.5
    for stream, layer, name in (("attn_out", 0, "last"), ("mlp_out", 1, "last"), ("mlp_out", 0, "subject_last")):
        assert at(trace, stream, layer, name) == pytest.approx(0, abs=0.05)
    # Nothing reads this, and a zero has no sign.
    unread = trace.values[:, trace.streams.index("mlp_out"), 2, trace.classes.index("subject_last")]
    assert not unread.any()
    assert not np.signbit(unread).any()
    assert trace.shape.n_layers == 3
    assert trace.mean.shape == (3, 3, 8)


def test_classes_that_a_prompt_has_not_are_left_out_of_the_mean(model, tokenizer):
    trace = measured(model, tokenizer)
    # "tell me the town : france" has nothing behind the subject, and its token is the last.
    assert dict(zip(trace.classes, trace.n.tolist(), strict=True)) == {
        "before": 3,
        "subject_first": 0,
        "subject_middle": 0,
        "subject_last": 2,
        "subsequent": 0,
        "further": 0,
        "template": 0,
        "last": 3,
    }
    assert np.isnan(trace.values[2, :, :, trace.classes.index("subject_last")]).all()
    assert trace.figure("mlp_out", 0, "subsequent") is None
    assert not trace.values[:, :, :, 0].any()


def test_a_longer_prompt_has_them(model, tokenizer):
    fact = capital(prompts=["what is the capital of france ? tell me please .", ODD], contrast=["spain"])
    trace = measured(model, tokenizer, fact)
    assert trace.n.tolist() == [1, 0, 0, 1, 1, 1, 0, 1]
    assert trace.unnamed == (ODD,)
    assert trace.prompts == fact.prompts[:1]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("direction", BOTH)
def test_all_classes_together_and_one_by_one_are_by_hand(family, direction, tokenizer):
    from peft_surgical.localizing.streams import traced

    prompt = "france ? what is the capital of france and the seat of government ?"
    fact = capital(prompts=[prompt])
    options = {"direction": direction, "least": 1e-2}
    # Of random models only some hold the old answer up.
    models = (tiny_model(family, seed) for seed in range(10))
    model = next(model for model in models if measured(model, tokenizer, fact, **options).prompts)
    trace, single = (measured(model, tokenizer, fact, together=together, **options) for together in (True, False))
    assert trace.together
    assert not single.together
    runs, shape = runs_of(model, precise=True)
    [pair] = fact_pairs(runs, fact, tokenizer)
    ids = pair.clean.tolist()
    words = tokenizer.convert_ids_to_tokens(ids)
    places = [place for place, word in enumerate(words) if word == "france"]
    assert len(places) == 2
    held = {
        "subject_last": places,
        "subsequent": [place + 1 for place in places],
        "further": [p for p in range(places[0] + 2, len(ids) - 1) if p not in (places[1], places[1] + 1)],
        "last": [len(ids) - 1],
    }
    for name, group in held.items():
        number = trace.classes.index(name)
        expected = traced(runs, shape, pair, [group, *([place] for place in group)], direction, 1, 10_000).numpy()
        np.testing.assert_allclose(trace.values[0, ..., number], expected[..., 0], atol=1e-3, rtol=1e-3)
        np.testing.assert_allclose(single.values[0, ..., number], expected[..., 1:].mean(-1), atol=1e-3, rtol=1e-3)


def test_of_a_chat_template_s_tokens_too():
    fact = capital(
        subject="France",
        old=["Paris"],
        new=["Lyon"],
        answer="The capital of France is Lyon.",
        prompts=["What is the capital of France?"],
        held_out=["Name the capital of France."],
        contrast=["Italy"],
    )
    tokenizer = small_tokenizer("byte_level", CHATML)
    models = (tiny_model("llama", seed, vocab_size=len(tokenizer)) for seed in range(10))
    traces = (measured(model, tokenizer, fact, least=1e-2) for model in models)
    trace = next(trace for trace in traces if trace.prompts)
    assert trace.n.tolist() == [1, 0, 0, 1, 1, 1, 1, 1]
    assert np.abs(trace.mean[..., trace.classes.index("template")]).max() > 1e-3


def test_a_template_s_tokens_stand_before_the_beginning_of_the_answer(model):
    tokenizer = word_tokenizer()
    tokenizer.chat_template = "what is . {{ messages[0]['content'] }} please ?"
    fact = capital(prompts=["name the capital of france ."], answer="the capital of france is lyon")
    trace = measured(model, tokenizer, fact, together=False)
    assert dict(zip(trace.classes, trace.n.tolist(), strict=True)) == {
        "before": 1,
        "subject_first": 0,
        "subject_middle": 0,
        "subject_last": 1,
        "subsequent": 1,
        "further": 1,
        "template": 1,
        "last": 1,
    }


def test_prompts_that_the_corruption_hardly_touches_are_left_out_and_named(model, tokenizer):
    totals = {}
    for record in localized(model, tokenizer, "random").corruption:
        totals[record["prompt"]] = record["clean"] - record["corrupted"]
    least = sorted(totals.values())[1] - 1e-3
    trace = measured(model, tokenizer, least=least)
    assert trace.left_out == tuple(prompt for prompt, total in totals.items() if total < least)
    assert (len(trace.prompts), len(trace.left_out), trace.least) == (2, 1, least)
    none = measured(model, tokenizer, least=1e6)
    assert (none.prompts, none.left_out, none.n.sum()) == ((), capital().prompts, 0)
    assert np.isnan(none.mean).all()


def test_what_is_held_out_is_never_read(model, tokenizer):
    other = capital(held_out=["where is france ?"], controls=[{"prompt": "who is lyon ?", "answer": ["town"]}])
    expected = measured(model, tokenizer)
    assert measured(model, tokenizer, other) == expected
    assert measured(model, tokenizer, capital().training) == expected


def test_only_the_first_prompts_and_the_seed_of_the_corruption(model, tokenizer):
    first = measured(model, tokenizer, prompts=1)
    assert first.prompts == capital().prompts[:1]
    np.testing.assert_array_equal(first.values[0], measured(model, tokenizer).values[0])
    noise = capital(contrast=["new zealand"])
    options = {"fact": noise, "least": 1e-6}
    assert measured(model, tokenizer, **options) == measured(model, tokenizer, **options)
    one, two = (measured(model, tokenizer, seed=seed, **options) for seed in (0, 1))
    assert not np.array_equal(one.values, two.values, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_model_is_left_as_it_was_and_effects_are_of_float32(dtype, tokenizer):
    model = planted().to(dtype).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        found = measured(model, tokenizer)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert found.dtype == str(dtype).removeprefix("torch.")
    np.testing.assert_array_equal(found.values, measured(model.float(), tokenizer).values)
    assert not any(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"direction": "rome"}, ScorerError, "direction must be noising or denoising, not 'rome'"),
        ({"direction": ["noising"]}, ScorerError, r"direction must be noising or denoising, not \['noising'\]"),
        ({"window": 0}, ScorerError, "window must be a whole number of 1 or more; got 0"),
        ({"window": 2.0}, ScorerError, "window must be a whole number of 1 or more; got 2.0"),
        ({"seed": 1.5}, ScorerError, r"seed must be a whole number \(int\)"),
        ({"least": 0}, ModelError, "least must be a finite number above 0; got 0"),
        ({"least": math.nan}, ModelError, "least must be a finite number above 0; got nan"),
        ({"max_tokens": 0}, ScorerError, "max_tokens must be a whole number of 1 or more; got 0"),
        ({"prompts": 0}, FactError, "prompts must be a whole number of 1 or more; got 0"),
        ({"fact": capital(prompts=[ODD])}, FactError, "no prompt names the subject 'france', so that none of its"),
        ({"fact": capital(prompts=[ODD], old=["france paris"])}, FactError, "no prompt names the subject 'france'"),
    ],
)
def test_what_cannot_be_traced_is_refused_before_anything_is_run(options, error, told, model, tokenizer, monkeypatch):
    monkeypatch.delattr("peft_surgical.localizing.asked.wrap")
    with pytest.raises(error, match=told):
        measured(model, tokenizer, **options)


def test_a_model_with_an_adapter_is_refused(tokenizer):
    carrying = get_peft_model(planted(), IA3Config(task_type="CAUSAL_LM"))
    with pytest.raises(ModelError, match="adapter"):
        measured(carrying.base_model.model, tokenizer)


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_a_trace_is_made_under_inference_mode_too(family, tokenizer):
    model = tiny_model(family, seed=2)
    outside = measured(model, tokenizer)
    assert outside.prompts
    with torch.inference_mode():
        assert np.array_equal(measured(model, tokenizer).values, outside.values, equal_nan=True)
