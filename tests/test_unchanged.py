import warnings
from contextlib import contextmanager

import pytest
import torch
from peft import LoraConfig, get_peft_model

import peft_surgical as ps
from peft_surgical import stages
from peft_surgical.errors import AdapterError
from peft_surgical.keying import keyed, keyed_by_subject
from peft_surgical.staging import by_subject
from peft_surgical.tuner import SurgicalIA3Layer, SurgicalIA3Model
from peft_surgical.tuner.unchanged import unchanged_on_failure

from . import test_by_subject, test_keyed, test_keyed_by_subject, test_sentence, test_stages
from .adapters import add, deltas, logits, tiny_peft
from .conftest import fingerprint
from .localizing import word_tokenizer
from .tiny import tiny_model

pytestmark = pytest.mark.usefixtures("few_carried_prompts")

TOKENIZER = word_tokenizer()


def stage(model, how=ps.unlearn, components=("L1.mlp",), **options):
    config = ps.SurgicalIA3Config(components=list(components), task_type="CAUSAL_LM", **options)
    return how(model, TOKENIZER, test_stages.FACT, config, recipe=test_stages.RECIPE, progress=False)


IDS = ["unlearn", "learn", "by subject", "sentence", "keyed", "keyed by subject"]
TRAINED = [
    (stages, "train", stage),
    (stages, "train", lambda model: stage(model, ps.learn)),
    (by_subject, "_train", lambda model: test_by_subject.taught(model=model)),
    (by_subject, "_train", test_sentence.taught),
    (keyed, "train", lambda model: test_keyed.taught(model=model, layers=[1])),
    (keyed_by_subject, "train", lambda model: test_keyed_by_subject.taught(model=model)),
]


def mixed():
    """A bare model, modules of which are in either mode, and weights of which train or do not."""
    model = tiny_model("llama").train()
    model.model.layers[0].eval()
    model.lm_head.requires_grad_(False)
    return model


def state(model):
    """All that shall be as it was: fingerprints hold modules, their modes and all numbers."""
    layers = [module for module in model.modules() if isinstance(module, SurgicalIA3Layer)]
    return (
        fingerprint(model),
        {name: parameter.requires_grad for name, parameter in model.named_parameters()},
        [(layer.active_adapters, layer.disable_adapters, set(layer.coordinates)) for layer in layers],
        set(getattr(model, "peft_config", ())),
        list(model.base_model.active_adapters) if layers else None,
        getattr(model, "active_adapter", None) if layers else None,
    )


@contextmanager
def interrupted_after(monkeypatch, module, name):
    """The block is left by an interrupt, which comes when a function has done its work."""
    plain = getattr(module, name)

    def interrupted(*args, **kwargs):
        plain(*args, **kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        yield
    monkeypatch.setattr(module, name, plain)


@pytest.mark.parametrize(("module", "name", "train"), TRAINED, ids=IDS)
def test_an_interrupt_leaves_a_bare_model_as_it_was(module, name, train, monkeypatch):
    model = mixed()
    before = state(model)
    with interrupted_after(monkeypatch, module, name):
        train(model)
    assert state(model) == before
    assert not hasattr(model, "peft_config")
    # As if it had not been tried.
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        again = train(model).model
    assert torch.equal(logits(again), logits(train(mixed()).model))


@pytest.mark.parametrize(
    ("module", "train"), [(module, train) for module, _, train in TRAINED if module in (keyed, keyed_by_subject)]
)
def test_an_interrupt_at_the_very_end_of_a_keyed_stage_leaves_the_model_as_it_was(module, train, monkeypatch):
    model = mixed()
    before = state(model)
    with interrupted_after(monkeypatch, module, "KeyedStage"):
        train(model)
    assert state(model) == before


@pytest.mark.parametrize(("module", "name", "train"), TRAINED, ids=IDS)
def test_an_interrupt_leaves_no_hooks_for_gradient_checkpointing(module, name, train, monkeypatch):
    model = mixed()
    model.gradient_checkpointing_enable()
    embeddings = model.get_input_embeddings()
    before = dict(embeddings._forward_hooks)
    with interrupted_after(monkeypatch, module, name):
        train(model)
    assert dict(embeddings._forward_hooks) == before
    # What transformers put there itself can still be taken off.
    model.disable_input_require_grads()
    assert not embeddings._forward_hooks


@pytest.mark.parametrize(("module", "name", "train"), TRAINED, ids=IDS)
def test_what_is_trained_and_taken_off_leaves_no_hooks_for_gradient_checkpointing(module, name, train):
    model = mixed()
    model.gradient_checkpointing_enable()
    embeddings = model.get_input_embeddings()
    before = dict(embeddings._forward_hooks)
    ps.unload(train(model).model)
    assert dict(embeddings._forward_hooks) == before
    model.disable_input_require_grads()
    assert not embeddings._forward_hooks


def test_another_selection_after_an_interrupt_is_trained_alone(monkeypatch):
    model = tiny_model("llama")
    with interrupted_after(monkeypatch, stages, "train"):
        stage(model)
    found, expected = (deltas(stage(base, components=["L2.mlp"]).model) for base in (model, tiny_model("llama")))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], delta) for name, delta in expected.items())


def test_an_interrupt_leaves_other_adapters_as_they_were(monkeypatch):
    model = tiny_peft(components=["L1.mlp", "L1.head.0"]).train()
    add(model, "idle", ["L0.mlp"])
    model.base_model.model.model.layers[0].eval()
    before = state(model)
    with warnings.catch_warnings(), interrupted_after(monkeypatch, stages, "train"):
        warnings.simplefilter("error", UserWarning)
        stage(model, components=["L1.mlp", "L2.mlp"])
    assert state(model) == before
    model.set_adapter("idle")
    assert {name.rsplit(".", 1)[-1] for name, p in model.named_parameters() if p.requires_grad} == {"idle"}


def test_an_interrupt_leaves_what_was_merged_merged(monkeypatch):
    model = tiny_peft(components=["L1.mlp", "L1.head.0"])
    model.merge_adapter()
    before, weights = logits(model), {name: value.clone() for name, value in model.state_dict().items()}
    with interrupted_after(monkeypatch, stages, "train"):
        stage(model, components=["L1.mlp", "L2.mlp"])
    assert model.get_model_status().merged_adapters == ["default"]
    assert torch.equal(logits(model), before)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in weights.items())
    model.unmerge_adapter()
    assert torch.equal(logits(model), logits(tiny_peft(components=["L1.mlp", "L1.head.0"])))


def test_an_adapter_that_transformers_put_in_is_left_when_it_is_refused():
    model = tiny_model("llama")
    model.add_adapter(LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    before, configs = logits(model), dict(model.peft_config)
    with pytest.raises(AdapterError, match="put there by transformers or by a PEFT model"):
        stage(model)
    assert model.peft_config == configs
    assert torch.equal(logits(model), before)
    assert not any(isinstance(module, SurgicalIA3Layer) for module in model.modules())


def test_an_interrupt_while_layers_are_put_in_leaves_none(monkeypatch):
    model = mixed()
    before = state(model)
    with interrupted_after(monkeypatch, SurgicalIA3Model, "_replace_module"):
        stage(model)
    assert state(model) == before


def test_an_adapter_of_the_name_stays_when_it_is_refused():
    model = stage(tiny_model("llama")).model
    before = state(model)
    with pytest.raises(AdapterError, match="already has an adapter named 'unlearn'"):
        stage(model)
    assert state(model) == before


def test_what_comes_to_its_end_stays():
    model = mixed()
    with unchanged_on_failure(model):
        adapted = get_peft_model(model, ps.SurgicalIA3Config(components=["L1.mlp"])).eval()
    assert list(adapted.peft_config) == ["default"]
    assert not model.training
