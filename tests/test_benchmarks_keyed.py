import pytest
import torch

from benchmarks.baselines.keyed import Keyed
from peft_surgical.errors import SelectionError

from .adapters import logits
from .conftest import fingerprint
from .counterfacts import REQUEST, TOKENIZER, word_model
from .tiny import tiny_ids

pytestmark = pytest.mark.usefixtures("few_carried_prompts")

IDS = tiny_ids() % len(TOKENIZER)


@pytest.mark.parametrize("layers", [None, (0, 2)])
def test_the_model_is_edited_within_and_the_base_again_afterwards(layers):
    model = word_model()
    before, plain = fingerprint(model), logits(model, IDS)
    with Keyed(layers=layers).edit(model, TOKENIZER, REQUEST, 0):
        changed = [i for i, layer in enumerate(model.model.layers) if hasattr(layer.mlp.down_proj, "lora_B")]
        assert changed == list(layers or [1])
        assert not torch.equal(logits(model, IDS), plain)
    assert fingerprint(model) == before


def test_a_layer_that_is_not_there_is_refused_and_leaves_nothing():
    model = word_model()
    before = fingerprint(model)
    with pytest.raises(SelectionError, match="no layer 9"), Keyed(layers=(9,)).edit(model, TOKENIZER, REQUEST, 0):
        pass
    assert fingerprint(model) == before
