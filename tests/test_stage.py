import json
from dataclasses import replace

import pytest

from peft_surgical.errors import AdapterError
from peft_surgical.stages import learn, unlearn

from .adapters import deltas
from .conftest import fingerprint
from .staged import FACT, RECIPE, TOKENIZER, config, first_stage
from .tiny import tiny_model

pytestmark = pytest.mark.usefixtures("few_carried_prompts")


def test_the_given_config_is_left_as_it_was():
    given = config()
    before = given.to_dict()
    stage = unlearn(tiny_model("llama"), TOKENIZER, FACT, given, recipe=RECIPE, progress=False)
    assert given.to_dict() == before
    assert stage.model.peft_config["unlearn"] is not given


@pytest.mark.parametrize("stage", [unlearn, learn])
def test_whole_modules_are_refused_since_they_would_not_be_trained(stage):
    model = tiny_model("llama")
    before = fingerprint(model)
    with pytest.raises(AdapterError, match="trains scales only"):
        stage(model, TOKENIZER, FACT, config(modules_to_save=["lm_head"]), recipe=RECIPE, progress=False)
    assert fingerprint(model) == before


def test_a_stage_tells_what_its_training_reached():
    record = first_stage().to_dict()
    assert record["steps"] == RECIPE.steps
    assert record["answer"] == FACT.refusal
    assert set(record) == {"steps", "loss", "worst", "kl", "reached", "seconds", "compute_dtype", "answer"}


def test_a_stage_without_a_step_is_json():
    record = first_stage(recipe=replace(RECIPE, steps=0)).to_dict()
    assert (record["loss"], record["worst"], record["kl"]) == (None, None, None)
    json.dumps(record, allow_nan=False)


def test_scales_of_a_stage_begin_at_one_whatever_its_config_says():
    stage = first_stage(options={"init_weights": False}, recipe=replace(RECIPE, steps=0))
    assert not any(delta.any() for delta in deltas(stage.model).values())
