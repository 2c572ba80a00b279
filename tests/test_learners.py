"""What holds of all that learn: what is measured reaches no training, the seed decides, and the base comes back."""

from dataclasses import replace

import pytest
import torch

from peft_surgical.errors import SelectionError
from peft_surgical.keyed_edit import edit_keyed
from peft_surgical.stages import learn

from . import test_by_subject, test_keyed, test_keyed_by_subject
from .adapters import logits
from .conftest import fingerprint
from .counterfacts import word_model
from .localizing import capital
from .staged import RECIPE, TOKENIZER, config, first_stage
from .tiny import tiny_ids, tiny_model

pytestmark = pytest.mark.usefixtures("few_carried_prompts")

IDS = tiny_ids() % len(TOKENIZER)

FACT = capital(
    held_out=["which city is the seat of government of france ?", "where is the government of france ?"],
    controls=[{"prompt": "where is rome ?", "answer": ["italy"]}],
    probes=[{"prompt": "is paris the capital of france ?", "kind": "contradiction"}],
    portability=[{"kind": "reversal", "prompt": "lyon is the capital of", "answer": ["france"]}],
)
UNMEASURED = replace(FACT, held_out=("where is lyon ?",), controls=(), probes=(), portability=())


def learned(fact, out):
    return learn(tiny_model("llama"), TOKENIZER, fact, config(), recipe=RECIPE, progress=False).model


def keyed_edit(fact, out):
    model = word_model()
    options = {"recipe": test_keyed.RECIPE, "retention_tokens": 0, "progress": False}
    edit_keyed(model, test_keyed.TOKENIZER, fact, out=out, **options)
    return model


LEARNERS = {
    "unlearn": lambda fact, out: first_stage(fact=fact).model,
    "learn": learned,
    "learn_by_subject": lambda fact, out: test_by_subject.taught(fact=fact).model,
    "learn_keyed": lambda fact, out: test_keyed.taught(fact=fact).model,
    "learn_keyed_by_subject": lambda fact, out: test_keyed_by_subject.taught(fact=fact).model,
    "edit_keyed": keyed_edit,
}


@pytest.mark.parametrize("learner", LEARNERS.values(), ids=LEARNERS)
def test_what_is_measured_decides_no_number_that_is_trained(learner, tmp_path):
    facts = {"whole": FACT, "unmeasured": UNMEASURED, "other": replace(UNMEASURED, prompts=FACT.prompts[:2])}
    found = {
        name: [parameter.detach().clone() for parameter in learner(fact, tmp_path / name).parameters()]
        for name, fact in facts.items()
    }

    def same(left, right):
        return all(torch.equal(*pair) for pair in zip(found[left], found[right], strict=True))

    assert same("whole", "unmeasured")
    assert not same("unmeasured", "other")


@pytest.fixture(params=[test_by_subject, test_keyed, test_keyed_by_subject], ids=lambda module: module.__name__[11:])
def taught(request):
    return request.param.taught


def test_the_base_is_untouched_and_comes_back_to_the_bit(taught):
    model = word_model()
    before, said, rng = fingerprint(model), logits(model, IDS), torch.get_rng_state()
    stage = taught(model=model)
    assert torch.equal(torch.get_rng_state(), rng)
    with stage.model.disable_adapter():
        assert torch.equal(logits(stage.model, IDS), said)
    assert not torch.equal(logits(stage.model, IDS), said)
    assert fingerprint(stage.model.unload()) == before


def test_the_same_seed_gives_the_same_values_and_another_does_not(taught):
    first, again, other = ([p.clone() for p in taught(seed=seed).model.parameters()] for seed in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_experts_in_the_place_of_an_mlp_are_refused(taught, experts):
    before = fingerprint(experts)
    with pytest.raises(SelectionError, match=r"no module named model\.layers\.[01]\.mlp\.down_proj"):
        taught(model=experts)
    assert fingerprint(experts) == before
