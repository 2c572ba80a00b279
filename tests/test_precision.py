"""Models as `Trainer(bf16=True)` leaves them: with accelerate's wrapper, which turns autocast on by itself."""

import threading
from contextlib import nullcontext
from types import MethodType

import pytest
import torch
from accelerate.utils.operations import convert_outputs_to_fp32
from torch import nn

import peft_surgical as ps
from peft_surgical.measuring.relearning import relearned_state
from peft_surgical.running.precision import exact_arithmetic, own_forwards, without_autocast

from . import test_keyed, test_sentence
from .adapters import deltas, logits, perturb, tiny_peft
from .localizing import capital, planted, word_tokenizer
from .staged import first_stage, second_stage
from .test_stages import same
from .test_trainer import trainer
from .tiny import tiny_ids, tiny_model

pytestmark = pytest.mark.usefixtures("few_carried_prompts")

TOKENIZER = word_tokenizer()


def trained_in_bf16(model, folder):
    """The model after a step of no length: its weights are what they were."""
    trainer(model, folder, learning_rate=0.0, max_steps=1, save_strategy="no", bf16=True).train()
    assert "forward" in vars(model)
    return model


def mixed(module, dtype=torch.float16):
    """Wraps a module as accelerate does it, which on a processor refuses float16."""
    cast = torch.autocast("cpu", dtype)
    bound = hasattr(module.forward, "__func__")
    wrapped = convert_outputs_to_fp32(cast(module.forward.__func__ if bound else module.forward))
    module._original_forward = module.forward
    module.forward = MethodType(wrapped, module) if bound else wrapped
    return module


def test_stages_are_those_of_the_weights(tmp_path):
    model = trained_in_bf16(tiny_model("llama"), tmp_path)
    wrapper = vars(model)["forward"]
    first, plain = first_stage(model=model), first_stage()
    assert same(deltas(first.model), deltas(plain.model))
    second, other = second_stage(first), second_stage(plain)
    assert (first.record.loss, second.record.loss) == (plain.record.loss, other.record.loss)
    assert same(deltas(second.model), deltas(other.model))
    assert vars(model)["forward"] is wrapper


def test_a_sentence_is_learned_as_by_the_weights(tmp_path):
    options = {"contexts": 5}
    found = test_sentence.taught(model=trained_in_bf16(planted(), tmp_path), **options)
    assert same(deltas(found.model), deltas(test_sentence.taught(**options).model))


def test_neurons_are_those_of_the_weights():
    model = mixed(test_keyed.word_model("llama"), torch.bfloat16)
    found, plain = test_keyed.taught(model=model).model, test_keyed.taught().model
    found_state, state = (m.state_dict() for m in (found, plain))
    assert all(torch.equal(found_state[name], value) for name, value in state.items() if "lora" in name)
    assert any("lora" in name for name in state)


@pytest.mark.parametrize("kind", ["bare", "with an adapter"])
def test_figures_and_answers_are_those_of_the_weights(kind, tmp_path):
    plain, model = (tiny_model("llama") if kind == "bare" else tiny_peft("llama") for _ in range(2))
    if kind != "bare":
        for each in (plain, model):
            perturb(each)
    wrapper = vars(trained_in_bf16(model, tmp_path))["forward"]
    fact, counts = capital(), {"retention_tokens": 40, "max_new_tokens": 6, "progress": False}
    found, expected = (ps.evaluate(each, TOKENIZER, fact, **counts) for each in (model, plain))
    assert (found.stages, found.answers, found.dtype) == (expected.stages, expected.answers, "float32")
    said, given = (ps.generate_answers(each, TOKENIZER, [*fact.prompts, *fact.held_out]) for each in (model, plain))
    assert said == given
    assert vars(model)["forward"] is wrapper


def test_answers_are_computed_by_the_weights_own_forward():
    model, seen = mixed(tiny_model("llama")), []
    model.lm_head.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    ps.generate_answers(model, TOKENIZER, capital().prompts, max_new_tokens=2)
    assert set(seen) == {torch.float32}


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_scores_are_those_of_the_weights(family, tmp_path):
    model = trained_in_bf16(tiny_model(family), tmp_path)
    wrapper = vars(model)["forward"]
    found, expected = (
        ps.localize(each, TOKENIZER, capital(), ["attribution"], progress=False)
        for each in (model, tiny_model(family))
    )
    assert found.scores == expected.scores
    assert vars(model)["forward"] is wrapper


def test_the_model_trains_on_in_mixed_precision(tmp_path):
    model, other = (trained_in_bf16(tiny_model("llama"), tmp_path) for _ in range(2))
    ps.evaluate(model, TOKENIZER, capital(), retention_tokens=40, max_new_tokens=2, progress=False)
    for each in (model, other):
        trainer(each, tmp_path, max_steps=2, save_strategy="no", bf16=True).train()
    assert torch.equal(logits(model), logits(other))
    assert not torch.equal(logits(model), logits(trained_in_bf16(tiny_model("llama"), tmp_path)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("times", [1, 2])
def test_wrappers_are_off_in_a_block_and_back_behind_it(dtype, times):
    model, plain = tiny_model("llama"), tiny_model("llama")
    for _ in range(times):
        mixed(model, dtype)
    outer = nn.Sequential(model)
    wrapper = vars(model)["forward"]
    rounded = logits(model)
    assert not torch.equal(rounded, logits(plain))
    for given in (model, outer):
        with torch.autocast("cpu", dtype), without_autocast(given):
            assert "forward" not in vars(model)
            with own_forwards(model):
                assert torch.equal(logits(model), logits(plain))
            assert "forward" not in vars(model)
        assert vars(model)["forward"] is wrapper
    with pytest.raises(RuntimeError, match="broken"), without_autocast(model):
        raise RuntimeError("broken")
    assert vars(model)["forward"] is wrapper
    assert torch.equal(logits(model), rounded)


def test_blocks_of_several_threads_that_overlap():
    model, inside, go_on, seen = mixed(tiny_model("llama")), threading.Event(), threading.Event(), []
    wrapper = vars(model)["forward"]

    def other():
        with own_forwards(model):
            inside.set()
            go_on.wait(timeout=30)
            seen.append("forward" in vars(model))

    thread = threading.Thread(target=other)
    with own_forwards(model):
        thread.start()
        inside.wait(timeout=30)
    assert "forward" not in vars(model)
    go_on.set()
    thread.join()
    assert seen == [False]
    assert vars(model)["forward"] is wrapper


def test_what_somebody_else_put_there_stays():
    layer, x = nn.Linear(2, 2), torch.ones(1, 2)
    own = layer.forward
    doubled = layer.forward = lambda x: 2 * own(x)
    for given in (doubled, convert_outputs_to_fp32(doubled), torch.autocast("cpu", torch.bfloat16)(doubled)):
        layer.forward = given
        with own_forwards(layer):
            assert vars(layer)["forward"] is given
    layer.forward = doubled
    wrapper = vars(mixed(layer))["forward"]
    with own_forwards(layer):
        assert vars(layer)["forward"] is doubled
        assert torch.equal(layer(x), 2 * own(x))
    assert vars(layer)["forward"] is wrapper


def test_a_method_that_somebody_else_put_there_stays_below():
    layer, x = nn.Linear(2, 2), tiny_ids().float()[:1, :2]
    layer.forward = MethodType(lambda self, x: 2 * nn.Linear.forward(self, x), layer)
    expected, wrapper = layer(x), vars(mixed(layer))["forward"]
    assert not torch.equal(layer(x), expected)
    with own_forwards(layer):
        assert torch.equal(layer(x), expected)
    assert vars(layer)["forward"] is wrapper


@pytest.mark.parametrize("wrap", [False, True], ids=["callers", "accelerates"])
def test_nobodys_autocast_is_relearned_in(wrap):
    model, other = tiny_model("llama"), tiny_model("llama")
    state, expected = (
        relearned_state(each, TOKENIZER, capital(), [], 3, learning_rate=1e-2) for each in (model, other)
    )
    with expected():
        plain = logits(other)
    if wrap:
        mixed(model, torch.bfloat16)
    with nullcontext() if wrap else torch.autocast("cpu", torch.bfloat16), state():
        pass
    with own_forwards(model), state():
        assert torch.equal(logits(model), plain)


@pytest.mark.parametrize(
    ("dtype", "advice"), [(torch.float32, "give a smaller learning_rate"), (torch.bfloat16, "use float32")], ids=str
)
def test_what_may_make_a_loss_finite_is_said(dtype, advice):
    model = tiny_model("llama", dtype=dtype)
    model.lm_head.weight.data.fill_(torch.inf)
    state = relearned_state(model, TOKENIZER, capital(), [], 1)
    with pytest.raises(ps.ModelError, match=f"not finite in {dtype}; {advice}"), state():
        pass


def test_half_precision_is_computed_with_in_float32():
    half = torch.tensor([1.0, 2.0**-9], dtype=torch.bfloat16)
    with exact_arithmetic(half.dtype):
        found = [half.sum(), torch.stack([half, half]), torch.cat((half, half)), half.to(half.dtype)]
    assert {own.dtype for own in found} == {torch.float32}
    assert found[0] == 1 + 2.0**-9
    assert half.sum() == 1


def test_autocast_is_set_aside_on_the_processor_wherever_the_model_is():
    one = torch.ones(1, 1)
    with torch.autocast("cpu", torch.bfloat16), torch.device("meta"):
        away = nn.Linear(1, 1)
        with without_autocast(away):
            found = one @ one
    assert found.dtype == torch.float32
