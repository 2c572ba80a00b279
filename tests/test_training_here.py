import copy
import threading
from dataclasses import replace

import pytest
import torch
from torch._dynamo import eval_frame

from peft_surgical.errors import AdapterError, ModelError
from peft_surgical.staging.training_here import training_here
from peft_surgical.tuner import SurgicalIA3Layer
from peft_surgical.tuner.unchanged import base_of

from . import test_by_subject, test_keyed, test_keyed_by_subject, test_sentence
from .adapters import deltas, logits
from .localizing import planted
from .staged import RECIPE, first_stage, second_stage
from .test_stages import same
from .tiny import tiny_model

pytestmark = pytest.mark.usefixtures("few_carried_prompts")

IDS = torch.tensor([[3, 7, 5, 9, 4, 8]])
LEARNERS = [test_by_subject, test_keyed, test_keyed_by_subject]


@pytest.mark.parametrize("learner", LEARNERS, ids=lambda module: module.__name__.rpartition(".")[2])
def test_what_is_around_changes_nothing_of_what_is_learned(learner):
    said = logits(learner.taught().model, IDS)
    for around in (torch.no_grad, lambda: torch.autocast("cpu", dtype=torch.bfloat16)):
        with around():
            model = learner.taught().model
        assert torch.equal(logits(model, IDS), said)
    with torch.inference_mode(), pytest.raises(ModelError, match=r"under torch\.inference_mode"):
        learner.taught()


def test_what_is_around_changes_no_beginning_that_a_sentence_is_put_behind():
    expected = test_sentence.taught(model=tiny_model("llama"), contexts=20)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = test_sentence.taught(model=tiny_model("llama"), contexts=20)
    assert same(deltas(found.model), deltas(expected.model))
    model = tiny_model("llama")
    model.forward = None
    with torch.inference_mode(), pytest.raises(ModelError, match=r"under torch\.inference_mode"):
        test_sentence.taught(model=model)


@pytest.mark.parametrize("around", [torch.no_grad, lambda: torch.autocast("cpu", dtype=torch.bfloat16)])
def test_what_is_around_a_stage_changes_nothing_of_it(around):
    first = first_stage()
    second = second_stage(first)
    with around():
        again = first_stage()
        both = second_stage(again)
        assert torch.is_grad_enabled() == (around is not torch.no_grad)
        assert torch.is_autocast_enabled("cpu") == (around is not torch.no_grad)
    assert both.record.loss == second.record.loss
    assert same(deltas(both.model), deltas(second.model))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_callers_default_dtype_changes_nothing_of_what_is_learned(dtype):
    learners = [*LEARNERS, test_sentence]
    expected = [learner.taught().model for learner in learners]
    second = second_stage(first_stage())
    bare = [tiny_model("llama"), test_keyed.word_model("llama"), tiny_model("llama"), planted()]
    staged = tiny_model("llama")
    torch.set_default_dtype(dtype)
    try:
        found = [learner.taught(model=model).model for learner, model in zip(learners, bare, strict=True)]
        again = second_stage(first_stage(model=staged))
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(logits(f, IDS), logits(e, IDS)) for f, e in zip(found, expected, strict=True))
    assert again.record.loss == second.record.loss
    assert same(deltas(again.model), deltas(second.model))


def test_a_model_that_is_compiled_in_place_is_trained_as_it_is():
    model = tiny_model("llama")
    model.compile(backend="eager")
    first = first_stage(model=model)
    second, plain = second_stage(first), second_stage(first_stage())
    assert same(deltas(second.model), deltas(plain.model))
    assert torch.equal(logits(second.model), logits(plain.model))


def test_stages_of_several_threads_leave_the_compiler_as_it_was():
    stance, inside, go_on = (lambda: eval_frame._stance.stance), threading.Event(), threading.Event()
    found = []

    def other():
        with training_here(tiny_model("gpt2")):
            inside.set()
            go_on.wait(timeout=30)
            found.append(stance())

    thread, before = threading.Thread(target=other), stance()
    with training_here(tiny_model("llama")):
        thread.start()
        inside.wait(timeout=30)
    assert stance() == "force_eager"
    go_on.set()
    thread.join()
    assert found == ["force_eager"]
    assert stance() == before != "force_eager"


def test_a_model_that_is_wrapped_by_compile_is_refused():
    message = r"wrapped by torch\.compile; put the adapter on the model before compiling it"
    with pytest.raises(ModelError, match=message):
        first_stage(model=torch.compile(tiny_model("llama"), backend="eager"))
    first = first_stage()
    with pytest.raises(ModelError, match=message):
        second_stage(replace(first, model=torch.compile(first.model, backend="eager")))


def test_inference_mode_is_refused():
    model = tiny_model("llama")
    with torch.inference_mode(), pytest.raises(ModelError, match=r"under torch\.inference_mode"):
        first_stage(model=model)
    assert not any(isinstance(module, SurgicalIA3Layer) for module in model.modules())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_that_was_loaded_in_inference_mode_is_refused(dtype):
    with torch.inference_mode():
        model = copy.deepcopy(tiny_model("llama"))
    message = r"loaded under torch\.inference_mode, .*; load it outside of that"
    with pytest.raises(ModelError, match=message):
        first_stage(model=model, recipe=replace(RECIPE, compute_dtype=dtype))
    with pytest.raises(ModelError, match=message):
        test_keyed.taught(model=model)
    assert not any(isinstance(module, SurgicalIA3Layer) for module in model.modules())


def test_adapters_that_are_switched_off_are_refused():
    first = first_stage()
    with first.model.disable_adapter(), pytest.raises(AdapterError, match="adapters are switched off"):
        second_stage(first)
    first.model.base_model.disable_adapter_layers()
    with pytest.raises(AdapterError, match=r"enable_adapter_layers\(\), or leave disable_adapter\(\), first"):
        second_stage(first)
    with base_of(first.model):
        pass
    assert all(layer.disable_adapters for layer in first.model.base_model.surgical_layers())
    first.model.base_model.enable_adapter_layers()
    assert second_stage(first).model.active_adapters == ["unlearn", "learn"]
