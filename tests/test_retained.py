import io
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from tqdm import tqdm

from peft_surgical.errors import ModelError
from peft_surgical.running.cache import answers_kept
from peft_surgical.running.suffix import SuffixRunner
from peft_surgical.stages import learn, unlearn
from peft_surgical.staging import retain, retained
from peft_surgical.texts.topics import topic_prompts

from .adapters import deltas
from .staged import FACT, RECIPE, TOKENIZER, config, first_stage
from .tiny import tiny_model

pytestmark = pytest.mark.usefixtures("few_carried_prompts")


def test_a_stage_with_the_same_scales_measures_nothing_again(monkeypatch):
    first = first_stage()
    monkeypatch.setattr(retained, "measure_curvature", lambda *_, **__: pytest.fail("it was measured"))
    monkeypatch.setattr(retained, "base_answers", lambda *_, **__: pytest.fail("it was asked"))
    second = learn(first.model, TOKENIZER, FACT, recipe=RECIPE, retained=first.retained, progress=False)
    assert second.retained is first.retained


def test_of_questions_that_the_base_answers_with_the_fact_those_that_a_person_keeps_stay(monkeypatch):
    monkeypatch.setattr(retained, "states_fact", lambda *_: True)
    fact = FACT.training
    found = retained.base_rows(tiny_model("llama"), TOKENIZER, fact, RECIPE, 0, False, besides=["where is it ?"])
    assert set(fact.retain) <= set(found.prompts)
    assert not {"where is it ?", *topic_prompts(fact)} & set(found.prompts)


def test_a_question_that_leaves_no_room_for_its_answer_is_not_kept():
    fact = FACT.training
    found = retained.base_rows(tiny_model("llama"), TOKENIZER, fact, RECIPE, 0, False)
    longest = max(row.answer_start for row in found.rows)
    short = tiny_model("llama", max_position_embeddings=longest + RECIPE.retain_tokens - 1)
    rows = retained.base_rows(short, TOKENIZER, fact, RECIPE, 0, False).rows
    assert rows == tuple(row for row in found.rows if row.answer_start < longest)


def test_the_layers_below_both_stages_run_once_on_what_is_kept(monkeypatch):
    original, ran = SuffixRunner._compute_entering, []

    def spy(runner, indices):
        ran.extend(runner.rows[i] for i in indices)
        return original(runner, indices)

    monkeypatch.setattr(SuffixRunner, "_compute_entering", spy)
    last = tiny_model("llama").config.num_hidden_layers - 1
    stages = [config([f"L{last}.mlp"]), config([f"L{last}.mlp"])]
    first = unlearn(tiny_model("llama"), TOKENIZER, FACT, stages[0], recipe=RECIPE, progress=False)
    kept = {row.read for row in first.retained.kept.rows}
    assert kept <= set(ran)
    ran.clear()
    second = learn(first.model, TOKENIZER, FACT, recipe=RECIPE, retained=first.retained, progress=False)
    assert ran
    assert not kept & set(ran)
    alone = unlearn(tiny_model("llama"), TOKENIZER, FACT, stages[1], recipe=RECIPE, progress=False)
    anew = learn(alone.model, TOKENIZER, FACT, recipe=RECIPE, retained=replace(alone.retained, entering=None))
    own, other = deltas(second.model), deltas(anew.model)
    assert own.keys() == other.keys()
    assert all(torch.equal(own[name], other[name]) for name in own)


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


def test_no_more_everyday_requests_are_kept_than_the_recipe_says():
    kept = retained.base_rows(tiny_model("llama"), TOKENIZER, FACT.training, replace(RECIPE, everyday=2), 0, False)
    assert len(kept.carried) == len(kept.places) == len(kept.rows) - kept.near == 2


def test_what_the_package_carries_is_measured_once_for_all_facts(tmp_path, monkeypatch):
    asked, plain = [], retained.measure_curvature

    def spy(*given, **options):
        asked.append(len(given[4]))
        return plain(*given, **options)

    monkeypatch.setattr(retained, "measure_curvature", spy)
    # Of three everyday requests one is what this fact is trained on, and so left out.
    other = replace(FACT, prompts=(*FACT.prompts, retain.everyday_prompts()[1]), held_out=FACT.held_out[:1])

    def edited(fact, folder=None):
        with nullcontext() if folder is None else answers_kept(folder):
            stage = unlearn(tiny_model("llama"), TOKENIZER, fact, config(), recipe=RECIPE, progress=False)
        return stage.retained, deltas(stage.model)

    alone, plain_deltas = edited(other)
    assert [len(alone.kept.carried), len(alone.kept.places)] == [3, 2]
    assert asked == [alone.kept.near, 3]
    edited(FACT, tmp_path)
    assert asked[3:] == [3]
    again, kept_deltas = edited(other, tmp_path)
    assert asked[4:] == [alone.kept.near]
    for left, right in zip(alone.curvature.gradients, again.curvature.gradients, strict=True):
        assert torch.equal(left, right)
    assert all(torch.equal(kept_deltas[name], delta) for name, delta in plain_deltas.items())


def test_the_bar_counts_what_passes_by(tmp_path, monkeypatch):
    bars = []

    def shown(total, description, *, enabled):
        bars.append(tqdm(total=total, desc=description, file=io.StringIO()))
        return bars[-1]

    monkeypatch.setattr(retained, "progress_bar", shown)
    with answers_kept(tmp_path):
        for _ in range(2):
            first = unlearn(tiny_model("llama"), TOKENIZER, FACT, config(), recipe=RECIPE, progress=False)
    near, carried = first.retained.kept.near, len(first.retained.kept.carried)
    assert [bar.n for bar in bars] == [near + carried, near]
    assert [bar.total for bar in bars] == [near + carried, near]


@pytest.mark.parametrize("change", [{"seed": 1}, {"draws": 2}, {"scales": ["L0.mlp"]}, {"model": "qwen2"}])
def test_what_decides_the_curvature_is_part_of_its_key(tmp_path, change):
    def edited(seed=0, draws=1, scales=("L1.mlp",), model="llama", tokens=None):
        recipe = replace(RECIPE, draws=draws, steps=0, pass_tokens=tokens)
        with answers_kept(tmp_path):
            unlearn(tiny_model(model), TOKENIZER, FACT, config(scales), recipe=recipe, seed=seed, progress=False)
        return len(list(tmp_path.glob("curvature-*")))

    # And how many rows are measured at once is not.
    assert [edited(), edited(tokens=20), edited(**change), edited(**change)] == [1, 1, 2, 2]


def test_damaged_curvature_is_measured_again(tmp_path):
    def edited():
        with answers_kept(tmp_path):
            return first_stage(recipe=replace(RECIPE, steps=0)).retained.curvature

    first = edited()
    [file] = tmp_path.glob("curvature-*")
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    assert all(torch.equal(a, b) for a, b in zip(first.gradients, edited().gradients, strict=True))
    content[-3] ^= 1
    assert file.read_bytes() == bytes(content)


def test_before_a_first_step_nothing_diverges_from_the_base():
    assert first_stage(recipe=replace(RECIPE, steps=1)).record.kl == pytest.approx(0, abs=1e-5)
    assert first_stage().record.kl > 1e-4


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
