import pytest
import torch

from peft_surgical.errors import ModelError

from . import test_by_subject, test_keyed, test_keyed_by_subject
from .adapters import logits

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
