import copy
import math
from dataclasses import replace

import pytest
import torch
from peft import PeftModel

import peft_surgical as ps
from benchmarks.plain_text import log_likelihoods
from peft_surgical import by_subject
from peft_surgical.by_subject import SubjectRecipe, learn_by_subject, other_sentences, scaling_at, subject_ends
from peft_surgical.curvature import trained_layers
from peft_surgical.errors import AdapterError, FactError, ModelError, SelectionError
from peft_surgical.prompts import encode, encode_answer
from peft_surgical.text import contains, digest

from .adapters import deltas, logits
from .conftest import fingerprint
from .localizing import capital, word_tokenizer
from .small_tokenizers import small_tokenizer
from .tiny import tiny_ids, tiny_model

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
    row = TOKENIZER(PROMPTS[0])["input_ids"]
    with torch.no_grad():
        found = model(input_ids=torch.tensor([row])).logits[0, -1].log_softmax(-1)
    return -float(found[TOKENIZER.convert_tokens_to_ids("lyon")])


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2", "gemma3", "gpt_neox"])
def test_the_sentence_gets_the_new_answer(family):
    before = first_loss(tiny_model(family))
    stage = taught(family)
    assert 0 < stage.record.steps <= RECIPE.steps
    assert first_loss(stage.model) < before
    assert stage.adapter == "learn"
    assert stage.retained is None
    assert stage.record.kl is None


def test_the_base_is_untouched_and_comes_back_to_the_bit():
    model = tiny_model("llama")
    before, said = fingerprint(model), logits(model)
    stage = taught(model=model)
    with stage.model.disable_adapter():
        assert torch.equal(logits(stage.model), said)
    assert not torch.equal(logits(stage.model), said)
    assert fingerprint(stage.model.unload()) == before


def test_the_same_seed_gives_the_same_scales_and_another_does_not():
    one, same, other = (deltas(taught(seed=seed).model) for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


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
    stage = taught(recipe=replace(RECIPE, steps=1))
    changes = [layer.surgical_ia3_delta["learn"].detach() for layer in trained_layers(stage.model, "learn")]
    squared = sum(float((factor.T @ change).square().sum()) for factor, change in zip(factors, changes, strict=True))
    assert math.sqrt(squared) == pytest.approx(RECIPE.length, rel=1e-3)


def test_training_stops_at_its_target():
    assert taught(recipe=replace(RECIPE, target_loss=1e9)).record.steps == 0
    record = taught(recipe=replace(RECIPE, target_loss=-1.0)).record
    assert (record.steps, record.reached) == (RECIPE.steps, False)


def test_scales_act_on_marked_tokens_only():
    stage = taught()
    model, layers = stage.model.get_base_model(), trained_layers(stage.model, "learn")
    ids = tiny_ids(2, 6)
    with stage.model.disable_adapter():
        base = logits(stage.model, ids)
    everywhere = logits(stage.model, ids)

    def with_marks(where):
        with torch.no_grad(), scaling_at(model, layers, "learn", where):
            return model(input_ids=ids).logits

    assert torch.equal(with_marks(torch.zeros(2, 6, 1)), base)
    torch.testing.assert_close(with_marks(torch.ones(2, 6, 1)), everywhere)
    marks = torch.zeros(2, 6, 1)
    marks[0, 3] = 1
    found = with_marks(marks)
    torch.testing.assert_close(found[1], base[1])
    torch.testing.assert_close(found[0, :3], base[0, :3])
    assert not torch.allclose(found[0, 3:], base[0, 3:], atol=1e-6)
    # A batch of another shape, such as a shared prefix, is the base's.
    assert torch.equal(with_marks(torch.ones(1, 4, 1)), base)
    assert torch.equal(logits(stage.model, ids), everywhere)


def test_the_subjects_last_token_each_time_that_it_is_named():
    prompt, subject = "tell me about new zealand . the capital of new zealand is", "new zealand"
    row = encode_answer(TOKENIZER, prompt, "lyon has new zealand")
    found = subject_ends(TOKENIZER, prompt, subject, row.ids)
    words = [TOKENIZER.convert_ids_to_tokens(row.ids[i]) for i in found]
    assert words == ["zealand"] * 3
    assert all(TOKENIZER.convert_ids_to_tokens(row.ids[i - 1]) == "new" for i in found)


@pytest.mark.parametrize("kind", ["byte_level", "unigram", "bpe", "legacy"])
@pytest.mark.parametrize("prompt", ["The capital of France is", "France has a capital, and it is", "About france:"])
def test_the_subjects_last_token_whatever_the_tokenizer(kind, prompt):
    tokenizer = small_tokenizer(kind)
    ids = encode(tokenizer, prompt)
    (end,) = subject_ends(tokenizer, prompt, "France", ids)
    until, before = tokenizer.decode(ids[: end + 1]), tokenizer.decode(ids[:end])
    assert contains(until, ["France"])
    assert not contains(before, ["France"])


def test_other_names_stand_in_for_the_subject_and_no_evaluation_prompt_is_among_them():
    fact = replace(FACT, contrast=("italy", "spain"))
    made = other_sentences(fact, 30, seed=0)
    assert len(made) == 30
    assert made[:2] == ["the capital of italy is", PROMPTS[1].replace("france", "spain")]
    assert not any(contains(prompt, ["france"]) for prompt in made)
    assert made != other_sentences(fact, 30, seed=1)
    held = replace(fact, evaluated=frozenset([digest(made[0])]))
    assert made[0] not in other_sentences(held, 30, seed=0)


def test_a_prompt_without_the_subject_is_refused_before_the_model_changes():
    model = tiny_model("llama")
    before = fingerprint(model)
    with pytest.raises(FactError, match="does not name the subject 'france'"):
        taught(model=model, fact=replace(FACT, prompts=(*PROMPTS, "which town is it ?")))
    assert fingerprint(model) == before


@pytest.mark.parametrize(
    "options",
    [{"components": ["L0.head.1"], "projections": ["z"]}, {"projections": ["in"]}, {"projections": ["post", "pre"]}],
)
def test_what_is_not_neurons_is_refused_before_the_model_changes(options):
    model = tiny_model("llama")
    before = fingerprint(model)
    with pytest.raises(SelectionError, match="neurons of MLPs and nothing else"):
        learn_by_subject(model, TOKENIZER, FACT, config(**options), recipe=RECIPE, progress=False)
    assert fingerprint(model) == before


def test_the_first_third_of_the_layers():
    model = tiny_model("llama")
    layers = model.config.num_hidden_layers
    assert ps.subject_components(model) == [f"L{i}.mlp" for i in range(max(1, layers // 3))]


def test_a_model_with_adapters_is_refused():
    stage = taught()
    with pytest.raises(AdapterError, match="takes a bare model"):
        taught(model=stage.model)


def test_a_dtype_that_there_is_not_is_refused():
    with pytest.raises(ModelError, match="unknown compute_dtype 'float8'"):
        SubjectRecipe(compute_dtype="float8")


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
