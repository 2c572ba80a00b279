"""A mixture of experts learns in those of its layers that have a plain MLP."""

import pytest
import torch

from peft_surgical import architectures
from peft_surgical.stages import learn, unlearn
from peft_surgical.staging.by_subject import learn_by_subject

from . import test_by_subject
from .adapters import deltas, logits, loss
from .conftest import fingerprint
from .staged import FACT, RECIPE, TOKENIZER, config
from .test_relearning import dense_and_experts

pytestmark = pytest.mark.usefixtures("few_carried_prompts")

DENSE = ["L0.mlp"]


@pytest.fixture
def model(monkeypatch):
    monkeypatch.setitem(architectures._KNOWN, "qwen3_moe", architectures.architecture_of("llama"))
    return dense_and_experts()


def first_loss(model, fact, answer):
    return loss(model, TOKENIZER, fact.prompts[0], answer.split()[0])


def test_it_learns_by_subject(model):
    fact, before = test_by_subject.FACT, fingerprint(model)
    untrained, said = first_loss(model, fact, fact.answer), logits(model)
    options = {"recipe": test_by_subject.RECIPE, "progress": False}
    stage = learn_by_subject(model, TOKENIZER, fact, test_by_subject.config(components=DENSE), **options)
    assert first_loss(stage.model, fact, fact.answer) < untrained
    with stage.model.disable_adapter():
        assert torch.equal(logits(stage.model), said)
    assert fingerprint(stage.model.unload()) == before


def test_it_unlearns_and_learns(model):
    before, untrained = fingerprint(model), first_loss(model, FACT, FACT.refusal)
    options = {"recipe": RECIPE, "progress": False}
    first = unlearn(model, TOKENIZER, FACT, config(DENSE), **options)
    assert first_loss(first.model, FACT, FACT.refusal) < untrained
    untrained = first_loss(first.model, FACT, FACT.answer)
    second = learn(first.model, TOKENIZER, FACT, retained=first.retained, **options)
    assert first_loss(second.model, FACT, FACT.answer) < untrained
    assert {name.split(".layers.")[1].split(".")[0] for name in deltas(second.model)} == {"0"}
    assert fingerprint(second.model.unload()) == before
