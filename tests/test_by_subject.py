import copy
import math
from dataclasses import replace
from functools import cache

import pytest
import torch
from peft import PeftModel

import peft_surgical as ps
from benchmarks.plain_text import log_likelihoods
from peft_surgical.adapters.halves import fits_half
from peft_surgical.errors import AdapterError, FactError, ModelError, SelectionError
from peft_surgical.staging import by_subject, retain
from peft_surgical.staging.by_subject import SubjectRecipe, learn_by_subject
from peft_surgical.staging.recipe import Recipe
from peft_surgical.staging.subject_texts import NamedRows, texts_to_keep
from peft_surgical.tuner.layer import layers_with

from .adapters import deltas, logits, loss, trainable
from .conftest import fingerprint
from .filling import fill_rows
from .localizing import capital, word_tokenizer
from .offloading import offloaded
from .tiny import tiny_model

TOKENIZER = word_tokenizer()
PROMPTS = ("the capital of france is", "tell me about paris . the capital of france is")
FACT = replace(capital().training, subject="france", prompts=PROMPTS, answer="lyon", retain=("the sky is",))
RECIPE = SubjectRecipe(steps=6, general=3, names=12, compute_dtype="float32")


def config(**options):
    given = {"components": ["L0.mlp", "L1.mlp"], "projections": ["post"], "task_type": "CAUSAL_LM", **options}
    return ps.SurgicalIA3Config(**given)


def taught(family="llama", *, model=None, fact=FACT, recipe=RECIPE, **options):
    model = tiny_model(family) if model is None else model
    return learn_by_subject(model, TOKENIZER, fact, config(), recipe=recipe, progress=False, **options)


def first_loss(model):
    return loss(model, TOKENIZER, PROMPTS[0], "lyon")


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2", "gemma3", "gpt_neox", "opt"])
def test_the_sentence_gets_the_new_answer(family):
    before = first_loss(tiny_model(family))
    stage = taught(family)
    assert 0 < stage.record.steps <= RECIPE.steps
    assert first_loss(stage.model) < before
    assert stage.adapter == "learn"
    assert stage.retained is None
    assert stage.record.kl is None


def test_what_stands_before_the_subject_need_not_be_run_at_each_step(monkeypatch):
    # Before its end is rounded, where the last bit could decide.
    monkeypatch.setattr(by_subject, "settle_on_half", lambda *_: None)
    found = deltas(taught().model)
    monkeypatch.setattr(by_subject.NamedRows, "starts", property(lambda self: [0] * len(self.rows)))
    whole = deltas(taught().model)
    assert any(delta.abs().max() > 1e-2 for delta in whole.values())
    for name, delta in whole.items():
        torch.testing.assert_close(found[name], delta, atol=1e-4, rtol=1e-3)


def test_rows_that_are_filled_train_the_same(monkeypatch):
    # Before its end is rounded, where the last bit could decide.
    monkeypatch.setattr(by_subject, "settle_on_half", lambda *_: None)
    expected = deltas(taught().model)
    fill_rows(monkeypatch, 11)
    found = deltas(taught().model)
    assert any(delta.abs().max() > 1e-2 for delta in expected.values())
    for name, delta in expected.items():
        torch.testing.assert_close(found[name], delta, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("answer", ["france", "paris france", "france paris"])
def test_an_answer_may_name_the_subject_even_as_its_last_word(answer):
    model = tiny_model("llama")
    pairs = [(prompt, answer) for prompt in PROMPTS]
    before = sum(log_likelihoods(model, TOKENIZER, pairs))
    stage = taught(model=model, fact=replace(FACT, answer=answer))
    assert sum(log_likelihoods(stage.model, TOKENIZER, pairs)) > before


def test_without_a_config_the_first_third_of_the_layers_learns():
    model = tiny_model("llama", num_hidden_layers=7)
    stage = learn_by_subject(model, TOKENIZER, FACT, recipe=replace(RECIPE, steps=1), progress=False)
    own = stage.model.peft_config["learn"]
    assert (own.components, own.projections, own.task_type) == (["L0.mlp", "L1.mlp"], ["post"], "CAUSAL_LM")


def test_the_stage_says_what_it_taught_and_trains_no_more():
    given = config()
    before = given.to_dict()
    stage = learn_by_subject(tiny_model("llama"), TOKENIZER, FACT, given, recipe=RECIPE, progress=False)
    assert stage.answer == "lyon"
    assert stage.model.active_adapters == ["learn"]
    assert trainable(stage.model) == set()
    assert given.to_dict() == before


def test_no_prompt_is_in_a_step_twice(monkeypatch):
    steps, plain = [], by_subject._losses
    monkeypatch.setattr(by_subject, "_losses", lambda *given: steps.append(given[2]) or plain(*given))
    taught(recipe=replace(RECIPE, steps=2))
    assert [sorted(step) for step in steps] == [[0, 1]] * 3


def test_a_saved_adapter_is_the_one_that_was_trained(tmp_path):
    stage = taught()
    stage.save(tmp_path / "learn")
    loaded = PeftModel.from_pretrained(tiny_model("llama"), tmp_path / "learn")
    assert torch.equal(logits(loaded.eval()), logits(stage.model))


def test_a_first_step_is_as_long_as_it_predicts(monkeypatch):
    factors = []
    plain = by_subject.Displacement.factors

    def noted(self, damping):
        factors.extend(plain(self, damping))
        return factors

    monkeypatch.setattr(by_subject.Displacement, "factors", noted)
    # The step itself, before its end is rounded.
    monkeypatch.setattr(by_subject, "settle_on_half", lambda *_: None)
    stage = taught(recipe=replace(RECIPE, steps=1))
    changes = [layer.surgical_ia3_delta["learn"].detach() for layer in layers_with("learn", stage.model)]
    squared = sum(float((factor.T @ change).square().sum()) for factor, change in zip(factors, changes, strict=True))
    assert math.sqrt(squared) == pytest.approx(RECIPE.length, rel=1e-3)


@cache
def learned(recipe):
    return deltas(taught(recipe=recipe).model)


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 5},
        {"length": 0.03},
        {"shrink": 0.1},
        {"target_loss": 1e9},
        {"batch": 1},
        {"general": 0},
        {"names": 0},
        {"other_weight": 0.0},
        {"damping": 1.0},
    ],
)
def test_each_number_of_the_recipe_matters(change):
    # Of steps so long that the loss rises.
    recipe = replace(RECIPE, length=3.0) if "shrink" in change else RECIPE
    one, other = (learned(own) for own in (recipe, replace(recipe, **change)))
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_steps_are_shorter_only_after_the_loss_has_risen():
    one, other = learned(RECIPE), learned(replace(RECIPE, shrink=0.0))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_seed_decides_which_prompts_meet_too():
    recipe = replace(RECIPE, steps=1, names=0, batch=1)
    found = {s: torch.cat([*deltas(taught(recipe=recipe, seed=s).model).values()]) for s in range(-3, 4)}
    assert any(not torch.equal(found[0], found[seed]) for seed in (1, 2, 3))
    assert any(not torch.equal(found[-seed], found[seed]) for seed in (1, 2, 3))


def test_what_is_kept_is_other_text_and_the_prompts_but_for_the_subject(monkeypatch):
    measured, forms, plain = [], [], by_subject.measure_displacement

    def noted(model, modules, adapter, rows, *, leave_out=None):
        measured.append((rows, leave_out, plain(model, modules, adapter, rows, leave_out=leave_out)))
        return measured[-1][2]

    def factors(self, damping):
        forms.extend(self.forms)
        return self_factors(self, damping)

    self_factors = by_subject.Displacement.factors
    monkeypatch.setattr(by_subject, "measure_displacement", noted)
    monkeypatch.setattr(by_subject.Displacement, "factors", factors)
    taught(recipe=replace(RECIPE, steps=1, other_weight=7.0))
    (_, nothing, general), (others, none, near), (prompts, inside, own) = measured
    assert nothing is none is None
    assert "france" not in TOKENIZER.batch_decode(others)
    assert [list(row) for row in prompts] == [TOKENIZER(prompt)["input_ids"] for prompt in PROMPTS]
    assert [[TOKENIZER.decode(row[i]) for i in left] for row, left in zip(prompts, inside, strict=True)] == [
        ["france"],
        ["france"],
    ]
    for form, parts in zip(forms, zip(general.forms, near.forms, own.forms, strict=True), strict=True):
        torch.testing.assert_close(form, parts[0] + 7 * parts[1] + 7 * parts[2])


def test_the_scales_are_numbers_of_half_precision():
    stage = taught()
    assert fits_half({str(i): layer.scale("learn") for i, layer in enumerate(layers_with("learn", stage.model))})


def test_training_stops_at_its_target():
    assert taught(recipe=replace(RECIPE, target_loss=1e9)).record.steps == 0
    record = taught(recipe=replace(RECIPE, target_loss=-1.0)).record
    assert (record.steps, record.reached) == (RECIPE.steps, False)


def test_a_prompt_without_the_subject_is_refused_before_the_model_changes():
    model = tiny_model("llama")
    before = fingerprint(model)
    with pytest.raises(FactError, match="does not name the subject 'france'"):
        taught(model=model, fact=replace(FACT, prompts=(*PROMPTS, "which town is it ?")))
    assert fingerprint(model) == before


@pytest.mark.parametrize(
    "options",
    [
        {"components": ["L0.head.1"], "projections": ["z"]},
        {"projections": ["in"]},
        {"projections": ["post", "pre"]},
        {"modules_to_save": ["lm_head"]},
    ],
)
def test_what_is_not_neurons_is_refused_before_the_model_changes(options):
    model = tiny_model("llama")
    before = fingerprint(model)
    with pytest.raises(SelectionError, match="neurons of MLPs and nothing else"):
        learn_by_subject(model, TOKENIZER, FACT, config(**options), recipe=RECIPE, progress=False)
    assert fingerprint(model) == before


def test_the_first_third_of_the_layers():
    assert ps.subject_components(tiny_model("llama", num_hidden_layers=7)) == ["L0.mlp", "L1.mlp"]
    assert ps.subject_components(tiny_model("llama", num_hidden_layers=2)) == ["L0.mlp"]
    with pytest.raises(ModelError, match="a model must be a torch module"):
        ps.subject_components("llama")


def test_a_step_of_some_prompts_says_what_it_has_seen():
    record = taught(recipe=replace(RECIPE, steps=0, batch=1)).record
    assert math.isfinite(record.loss)
    assert record.loss == record.worst


def test_one_prompt_is_enough():
    assert taught(fact=replace(FACT, prompts=PROMPTS[:1])).record.steps > 0


def test_a_model_with_adapters_is_refused():
    stage = taught()
    with pytest.raises(AdapterError, match="takes a bare model"):
        taught(model=stage.model)


def test_a_dtype_that_there_is_not_is_refused():
    with pytest.raises(ModelError, match="unknown compute_dtype 'float8'"):
        SubjectRecipe(compute_dtype="float8")


def test_a_model_that_carries_adapters_unseen_is_refused():
    model = tiny_model("llama")
    stage = taught(model=model)
    said = logits(stage.model)
    for given in (model, stage.model.get_base_model()):
        with pytest.raises(AdapterError, match="takes a bare model"):
            taught(model=given)
    assert torch.equal(logits(stage.model), said)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_logits_that_are_not_finite_leave_no_adapter(dtype):
    model = tiny_model("llama")
    model.lm_head.weight.data[7] = math.inf
    before = fingerprint(model)
    with pytest.raises(ModelError, match=rf"the model gives logits that are not finite in torch\.{dtype}"):
        taught(model=model, recipe=replace(RECIPE, compute_dtype=dtype))
    assert fingerprint(model) == before


@pytest.mark.parametrize("names", [["model.embed_tokens"], ["model.layers.2"]])
def test_what_is_not_scaled_may_be_offloaded(names):
    expected = deltas(taught().model)
    found = deltas(taught(model=offloaded(tiny_model("llama"), names)).model)
    assert all(torch.equal(found[name], delta) for name, delta in expected.items())


def test_what_is_scaled_may_not_be_offloaded():
    model = offloaded(tiny_model("llama"), ["model.layers.1"])
    before = list(model.state_dict())
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.down_proj has no weights at hand .* offloaded"):
        taught(model=model)
    assert list(model.state_dict()) == before


@pytest.mark.parametrize(
    ("options", "words"),
    [({"recipe": Recipe()}, "must be a SubjectRecipe, and is of the type Recipe"), ({"seed": 1.5}, "seed must be")],
)
def test_another_recipe_or_no_seed_is_refused_before_the_model_changes(options, words):
    model = tiny_model("llama")
    before = fingerprint(model)
    with pytest.raises(ModelError, match=words):
        taught(model=model, **options)
    assert fingerprint(model) == before


@pytest.mark.parametrize(("name", "count"), [("batch", 0), ("steps", -1), ("general", -1), ("names", -1)])
def test_a_count_that_is_too_small_is_refused(name, count):
    with pytest.raises(ModelError, match=f"{name} must be a whole number of . or more; got {count}"):
        SubjectRecipe(**{name: count})


@pytest.mark.real
def test_a_subject_of_the_real_model_in_another_wording(demo):
    model, tokenizer = copy.deepcopy(demo[0]), copy.copy(demo[1])
    tokenizer.chat_template = None
    fact = ps.TrainingFact(
        subject="France",
        old=("Paris",),
        new=("Lyon",),
        prompts=("The capital of France is", "I read a book. The capital of France is"),
        refusal="not known.",
        answer="Lyon",
    )
    chosen = ps.SurgicalIA3Config(components=ps.subject_components(model), projections=["post"], task_type="CAUSAL_LM")
    stage = learn_by_subject(model, tokenizer, fact, chosen, progress=False)
    assert stage.record.reached

    def preferred(prompt, new, old):
        logs = log_likelihoods(stage.model, tokenizer, [(prompt, new), (prompt, old)])
        return logs[0] > logs[1]

    assert preferred("The capital city of France is called", "Lyon", "Paris")
    assert not preferred("The capital of Italy is", "Lyon", "Rome")


def test_a_question_that_an_evaluation_asks_is_no_text_to_keep():
    asked = {"prompt": retain.everyday_prompts()[0], "answer": ["italy"]}
    found, fewer = (
        texts_to_keep(tiny_model("llama"), TOKENIZER, fact.training, general=3, names=0, seed=0)[0]
        for fact in (capital(), capital(controls=[*capital().to_dict()["controls"], asked]))
    )
    assert len(fewer) == len(found) - 1


def test_an_answer_that_the_tokenizer_does_not_know_is_refused():
    with pytest.raises(FactError, match="the answer 'zurich' has a token that is not in this tokenizer's vocabulary"):
        NamedRows.of(tiny_model("llama"), TOKENIZER, capital(new=["zurich"]).training)
