import inspect
import json
from dataclasses import replace

import pytest
import torch
from peft import get_peft_model

from peft_surgical import stages
from peft_surgical.errors import AdapterError, SelectionError
from peft_surgical.stages import learn, unlearn
from peft_surgical.tuner import SurgicalIA3Config, activate

from .adapters import add, deltas, tiny_peft
from .conftest import fingerprint
from .staged import FACT, RECIPE, TOKENIZER, config, first_stage, second_stage
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


@pytest.mark.parametrize("stage", [unlearn, learn])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("side", ["input", "output"])
def test_the_output_head_is_refused(stage, family, side):
    model = tiny_model(family)
    before = fingerprint(model)
    given = SurgicalIA3Config(selections={"lm_head": {"side": side, "ranges": [[0, 16]]}}, task_type="CAUSAL_LM")
    with pytest.raises(SelectionError, match="below the output head; leave lm_head out of the selection"):
        stage(model, TOKENIZER, FACT, given, recipe=RECIPE, progress=False)
    assert fingerprint(model) == before


def test_a_stage_trains_below_a_head_that_an_earlier_adapter_scales():
    given = SurgicalIA3Config(selections={"lm_head": {"side": "input", "ranges": [[0, 16]]}}, task_type="CAUSAL_LM")
    model = get_peft_model(tiny_model("llama"), given)
    with pytest.raises(SelectionError, match="leave lm_head out"):
        learn(model, TOKENIZER, FACT, recipe=RECIPE, progress=False)
    stage = learn(model, TOKENIZER, FACT, config(), recipe=RECIPE, progress=False)
    assert stage.before == ("default",)


def test_without_a_config_a_stage_scales_what_the_last_that_acts_does():
    model = tiny_peft()
    add(model, "other")
    activate(model, ["default", "other"])
    configs = learn(model, TOKENIZER, FACT, recipe=replace(RECIPE, steps=0), progress=False).model.peft_config
    assert configs["learn"].selections == configs["other"].selections != configs["default"].selections


def test_a_stage_is_shown_by_its_steps_and_its_mean_loss():
    stage = first_stage()
    assert f"{stage.record.loss:.3g}" != f"{stage.record.worst:.3g}"
    assert repr(stage) == f"Stage('unlearn' of a LlamaForCausalLM, 4 steps, loss {stage.record.loss:.3g})"


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


def test_every_part_of_a_stage_has_its_seed_and_training_knows_what_is_near(monkeypatch):
    given = {}

    def noting(name, part):
        def noted(*args, **options):
            given[name] = inspect.signature(part).bind(*args, **options).arguments
            return part(*args, **options)

        return noted

    for name in ("base_rows", "measure_retained", "train"):
        monkeypatch.setattr(stages, name, noting(name, getattr(stages, name)))
    stage = first_stage(seed=3)
    assert [given[name]["seed"] for name in ("base_rows", "measure_retained", "train")] == [3, 3, 3]
    assert given["train"]["near"] == stage.retained.kept.near > 0


def test_the_second_stage_does_not_run_the_layers_below_on_what_the_first_one_kept(monkeypatch):
    reused = []
    first = first_stage()
    monkeypatch.setattr(stages.SuffixRunner, "reuse", lambda _, entering: reused.append(entering))
    second_stage(first)
    assert reused == [first.retained.entering]
    assert reused != [None]


@pytest.mark.parametrize(
    ("modules", "options", "first"),
    [
        (["model.layers.2.mlp.up_proj", "model.layers.1.mlp.down_proj"], {}, 1),
        # What stands beside the layers may act below them, and whole modules may be any.
        (["model.layers.2.mlp.up_proj", "lm_head"], {}, 0),
        (["lm_head"], {}, 0),
        (["model.layers.2.mlp.up_proj"], {"modules_to_save": ["lm_head"]}, 0),
    ],
)
def test_layers_below_all_that_acts_are_passed_over(modules, options, first):
    model = tiny_model("llama")
    spec = {"side": "input", "ranges": [[0, 2]]}
    configs = [SurgicalIA3Config(selections={module: spec}, **options) for module in modules]
    assert stages._first_layer(model, configs) == (model.model.layers, first)


def test_the_damping_decides_what_is_trained():
    one, other = (deltas(first_stage(recipe=replace(RECIPE, damping=number)).model) for number in (1.0, 100.0))
    assert not any(torch.equal(delta, other[name]) for name, delta in one.items())
