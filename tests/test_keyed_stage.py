import pytest
import torch
from peft import LoraConfig

from peft_surgical.adapters.bases import note_revision
from peft_surgical.architectures import output_projections
from peft_surgical.keying.keyed_stage import KeyedStage
from peft_surgical.keying.neurons import place_neurons
from peft_surgical.staging.recipe import TrainingRecord

from .counterfacts import word_model


def placed(family="llama", name="", revision=None):
    """A stage of which nothing is trained, on a model that was loaded by a name."""
    model = word_model(family)
    model.name_or_path = name
    note_revision(model, revision)
    record = TrainingRecord.of([], steps=0, kl=None, reached=False, started=0.0, dtype=torch.float32)
    return KeyedStage(place_neurons(model, output_projections(model, [1])), "learn", record, None)


# Of one module that is a gated MLP's whole input it is two rows.
@pytest.mark.parametrize(("family", "rank"), [("llama", 1), ("gpt2", 1), ("phi3", 2)])
def test_the_card_names_the_rank_that_the_adapter_has(family, rank):
    stage = placed(family)
    factors = [own for name, own in stage.model.named_parameters() if "lora_A" in name]
    assert max(map(len, factors)) == rank
    assert f"A LoRA adapter of rank {rank} for the base model. It rewrites one neuron" in stage.card()


def test_the_card_names_the_base_and_its_revision_and_no_folder():
    card = placed(name="org/model", revision="v2").card()
    assert card.startswith("---\nbase_model: org/model\n")
    assert "A LoRA adapter of rank 1 for org/model. It" in card
    assert 'from_pretrained("org/model", revision="v2")' in card
    card = placed(name="/home/somebody/model", revision="v2").card()
    assert "A LoRA adapter of rank 1 for the base model. It" in card
    assert "somebody" not in card


def test_layers_that_another_adapter_updates_are_not_among_its_own():
    stage = placed()
    stage.model.add_adapter("other", LoraConfig(target_modules=["layers.0.mlp.down_proj"], r=1))
    assert stage.layers == [1]
