from dataclasses import replace

import pytest
import torch

from peft_surgical import retain, retained
from peft_surgical.errors import ModelError
from peft_surgical.stages import learn, unlearn

from .test_stages import FACT, RECIPE, TOKENIZER, config, first_stage
from .tiny import tiny_model


@pytest.fixture(autouse=True)
def few_everyday_prompts(monkeypatch):
    everyday = retain.everyday_prompts()[:3]
    monkeypatch.setattr(retain, "everyday_prompts", lambda: everyday)


def test_a_stage_with_the_same_scales_measures_nothing_again(monkeypatch):
    first = first_stage()
    monkeypatch.setattr(retained, "measure_curvature", lambda *_, **__: pytest.fail("it was measured"))
    monkeypatch.setattr(retained, "base_answers", lambda *_, **__: pytest.fail("it was asked"))
    second = learn(first.model, TOKENIZER, FACT, recipe=RECIPE, retained=first.retained, progress=False)
    assert second.retained is first.retained


def test_a_stage_with_other_scales_measures_their_curvature_and_no_more(monkeypatch):
    first = first_stage()
    monkeypatch.setattr(retained, "base_answers", lambda *_, **__: pytest.fail("it was asked"))
    other = learn(
        first.model, TOKENIZER, FACT, config(["L0.mlp"]), recipe=RECIPE, retained=first.retained, progress=False
    )
    assert other.retained.kept is first.retained.kept
    assert other.retained.base is first.retained.base
    [own] = other.retained.curvature.gradients
    assert own.shape == (RECIPE.draws * len(first.retained.kept.rows), 48)
    assert len(first.retained.curvature.gradients) == 4


def test_near_rows_weigh_more():
    light, heavy = (first_stage(recipe=replace(RECIPE, steps=0, near_weight=weight)).retained for weight in (1.0, 4.0))
    near = RECIPE.draws * light.kept.near
    for once, fourfold in zip(light.curvature.gradients, heavy.curvature.gradients, strict=True):
        torch.testing.assert_close(fourfold[:near], 2 * once[:near], rtol=1e-3, atol=1e-7)
        assert torch.equal(fourfold[near:], once[near:])


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_prompt_to_retain_that_is_too_long_is_refused_before_the_model_changes(family):
    name = "n_positions" if family == "gpt2" else "max_position_embeddings"
    model = tiny_model(family, **{name: 48})
    before = list(model.state_dict())
    fact = replace(FACT, retain=("what color has the sky ? " * 10,))
    with pytest.raises(ModelError, match="do not fit the model's 48 positions"):
        unlearn(model, TOKENIZER, fact, config(), recipe=RECIPE, progress=False)
    assert list(model.state_dict()) == before


def test_a_model_whose_logits_are_not_finite_is_refused():
    model = tiny_model("llama")
    with torch.no_grad():
        model.lm_head.weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match="not finite"):
        unlearn(model, TOKENIZER, FACT, config(), recipe=RECIPE, progress=False)
