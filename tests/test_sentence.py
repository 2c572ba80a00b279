import math

import pytest
import torch
from peft import LoraConfig
from transformers import T5Config, T5ForConditionalGeneration

import peft_surgical as ps
from peft_surgical.errors import AdapterError, ArchitectureError, FactError, ModelError, SelectionError
from peft_surgical.keying.keyed_by_subject import KeyedSubjectRecipe
from peft_surgical.sentence import (
    LENGTHS,
    STARTS,
    TOP,
    checked_aliases,
    learn_sentence,
    learn_sentence_keyed,
    sample_contexts,
    subject_of,
)
from peft_surgical.staging.by_subject import SubjectRecipe
from peft_surgical.texts.prompts import encode, without_template

from .adapters import deltas, logits, tiny_peft
from .conftest import fingerprint
from .localizing import planted, word_tokenizer
from .offloading import offloaded
from .small_tokenizers import CHATML, small_tokenizer
from .tiny import tiny_model

TOKENIZER = word_tokenizer()
PROMPT = "the capital of france is"
RECIPE = SubjectRecipe(steps=6, general=3, names=12, compute_dtype="float32")


def taught(model=None, **options):
    given = {"new": "lyon", "subject": "france", "recipe": RECIPE, "contexts": 2, "progress": False, **options}
    return learn_sentence(planted() if model is None else model, TOKENIZER, PROMPT, **given)


def chance(model, word):
    with torch.no_grad():
        found = model(input_ids=torch.tensor([TOKENIZER(PROMPT)["input_ids"]])).logits[0, -1].softmax(-1)
    return float(found[TOKENIZER.convert_tokens_to_ids(word)])


def biased(model, where, value):
    """Has some of a model's logits be a value."""

    def hook(module, args, out):
        out.logits[where] = value

    model.register_forward_hook(hook)


def test_the_sentence_ends_with_the_new_answer():
    model = planted()
    before, said = chance(model, "lyon"), logits(model)
    stage = taught(model)
    assert stage.adapter == "learn"
    assert chance(stage.model, "lyon") > before
    with stage.model.disable_adapter():
        assert torch.equal(logits(stage.model), said)


@pytest.mark.parametrize(("part", "value"), [("eos_token", None), ("chat_template", CHATML)])
def test_a_tokenizer_without_an_end_or_with_a_template_learns_the_same(part, value):
    other = word_tokenizer()
    setattr(other, part, value)
    given = {"new": "lyon", "subject": "france", "recipe": RECIPE, "contexts": 2, "progress": False}
    stage = learn_sentence(planted(), other, PROMPT, **given)
    expected = deltas(taught().model)
    assert all(torch.equal(delta, expected[name]) for name, delta in deltas(stage.model).items())


@pytest.mark.parametrize("learn", [learn_sentence, ps.learn_sentence_keyed])
def test_a_model_of_another_kind_is_refused_before_it_runs(learn):
    sizes = {"vocab_size": 64, "d_model": 16, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    model = T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0))
    with pytest.raises(ArchitectureError, match="model type 't5' is not known"):
        learn(model, TOKENIZER, PROMPT, new="lyon", subject="france", progress=False)


def behind(beginnings, **more):
    """The fact that a sentence is taught as, by itself and behind some beginnings."""
    prompts = (PROMPT, *(beginning + PROMPT for beginning in beginnings))
    return ps.TrainingFact(subject="france", old=(), new=("lyon",), prompts=prompts, refusal="", answer="lyon", **more)


def test_it_is_learn_by_subject_behind_sampled_beginnings():
    base = planted()
    fact = behind(sample_contexts(base, without_template(TOKENIZER), 3, 4))
    by_hand = ps.learn_by_subject(base, TOKENIZER, fact, recipe=RECIPE, seed=4, progress=False)
    found = deltas(taught(contexts=3, seed=4).model)
    assert all(torch.equal(found[name], delta) for name, delta in deltas(by_hand.model).items())
    assert any(delta.any() for delta in found.values())
    other = deltas(taught(contexts=3, seed=5).model)
    assert not all(torch.equal(found[name], delta) for name, delta in other.items())


def test_by_neurons_it_is_learn_keyed_by_subject_behind_them_under_all_names():
    base = tiny_model("llama")
    fact = behind(sample_contexts(base, without_template(TOKENIZER), 3, 4), aliases=("italy",))
    recipe = KeyedSubjectRecipe(steps=3, general=3, names=12, namesakes=4, drawn=1, compute_dtype="float32")
    given = {"layers": [0], "recipe": recipe, "seed": 4, "progress": False}
    by_hand = dict(ps.learn_keyed_by_subject(base, TOKENIZER, fact, **given).model.named_parameters())
    told = {"new": "lyon", "subject": "france", "aliases": [" italy"], "contexts": 3}
    chatting = word_tokenizer()
    chatting.chat_template = CHATML
    found = learn_sentence_keyed(tiny_model("llama"), chatting, PROMPT, **told, **given)
    assert all(torch.equal(by_hand[name], parameter) for name, parameter in found.model.named_parameters())


def test_spaces_around_do_not_matter():
    one, other = (
        taught(),
        learn_sentence(
            planted(),
            TOKENIZER,
            f" {PROMPT} ",
            new=" lyon",
            subject="france",
            recipe=RECIPE,
            contexts=2,
            progress=False,
        ),
    )
    found = deltas(other.model)
    assert all(torch.equal(found[name], delta) for name, delta in deltas(one.model).items())


def test_its_scales_are_where_subjects_are_looked_up_unless_a_config_says_otherwise():
    stage = taught()
    first = ps.subject_components(planted())
    assert stage.model.peft_config["learn"].components == first
    config = ps.SurgicalIA3Config(components=["L1.mlp"], projections=["post"], task_type="CAUSAL_LM")
    assert taught(config=config).model.peft_config["learn"].components == ["L1.mlp"]


def test_accents_may_be_signs_of_their_own():
    apart = "jose\u0301"
    assert subject_of(f"{apart} is", "lyon", "josé") == subject_of("josé is", "lyon", apart) == "josé"


def test_the_subject_is_guessed_or_given():
    assert subject_of("The capital of France is", "Lyon") == "France"
    assert subject_of("the capital of france is", "lyon", "france") == "france"


@pytest.mark.parametrize(
    ("prompt", "new", "subject", "message"),
    [
        (PROMPT, " ", "france", "the new answer is empty"),
        (PROMPT, "\u200b", "france", "the new answer has no letter, digit or sign"),
        (" ", "lyon", "france", "the prompt is empty"),
        (PROMPT, "lyon", "spain", "does not name the subject 'spain'"),
        ("why is it so", "lyon", None, "name the subject"),
        (7, "lyon", "france", "The prompt must be text, not 7"),
        (PROMPT, None, "france", "The new answer must be text, not None"),
        (PROMPT, "lyon", 7, "The subject must be text, not 7"),
    ],
)
def test_what_cannot_be_learned_leaves_the_model_alone(prompt, new, subject, message):
    model = planted()
    before = fingerprint(model)
    with pytest.raises(FactError, match=message):
        learn_sentence(model, TOKENIZER, prompt, new=new, subject=subject, progress=False)
    assert fingerprint(model) == before


@pytest.mark.parametrize("learn", [learn_sentence, ps.learn_sentence_keyed])
def test_a_seed_that_is_none_is_told(learn):
    with pytest.raises(ModelError, match="seed must be a whole number"):
        learn(planted(), TOKENIZER, PROMPT, new="lyon", subject="france", seed="1", progress=False)


@pytest.mark.parametrize("learn", [learn_sentence, ps.learn_sentence_keyed])
def test_a_model_with_adapters_is_refused_before_beginnings_are_made_up(learn, monkeypatch):
    model = tiny_peft()
    monkeypatch.setattr("peft_surgical.sentence.sample_contexts", lambda *_: pytest.fail("made up"))
    with pytest.raises(AdapterError, match="takes a bare model"):
        learn(model, TOKENIZER, PROMPT, new="lyon", subject="france")


def test_contexts_are_drawn_from_the_model_by_the_seed():
    tokenizer = without_template(small_tokenizer("byte_level", CHATML))
    model = tiny_model("llama", vocab_size=len(tokenizer))
    rng = torch.get_rng_state()
    made = sample_contexts(model, tokenizer, 7, 0)
    assert len(made) == 7
    assert made[0].startswith("The")
    assert made[5].startswith("The")
    assert all(context.endswith(". ") for context in made)
    assert made == sample_contexts(model, tokenizer, 7, 0)
    assert made != sample_contexts(model, tokenizer, 7, 1)
    assert torch.equal(torch.get_rng_state(), rng)
    assert sample_contexts(model, tokenizer, 0, 0) == ()


def test_contexts_hold_no_special_token():
    tokenizer = without_template(small_tokenizer("byte_level", CHATML))
    model = tiny_model("llama", vocab_size=len(tokenizer))
    biased(model, (..., tokenizer.eos_token_id), 1e3)
    assert sample_contexts(model, tokenizer, 5, 0) == tuple(f"{start}. " for start in STARTS)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_contexts_that_run_together_are_those_drawn_one_by_one(family):
    tokenizer = without_template(small_tokenizer("byte_level", CHATML))
    model = tiny_model(family, vocab_size=len(tokenizer)).eval()
    generator, made = torch.Generator().manual_seed(0), []
    for number in range(12):
        ids = encode(tokenizer, STARTS[number % len(STARTS)])
        for _ in range(LENGTHS[number // len(STARTS) % len(LENGTHS)]):
            best = logits(model, torch.tensor([ids]))[0, -1].topk(TOP)
            ids.append(int(best.indices[torch.multinomial(best.values.softmax(-1), 1, generator=generator)]))
        made.append(tokenizer.decode(ids, skip_special_tokens=True).strip() + ". ")
    assert sample_contexts(model, tokenizer, 12, 0) == tuple(made)


def test_contexts_are_made_up_in_evaluation_mode():
    tokenizer = without_template(TOKENIZER)
    model = tiny_model("gpt2", resid_pdrop=0.5, embd_pdrop=0.5)
    expected = sample_contexts(model, tokenizer, 4, 0)
    model.train()
    model.transformer.h[1].eval()
    before = fingerprint(model)
    assert sample_contexts(model, tokenizer, 4, 0) == expected
    assert fingerprint(model) == before


def test_contexts_that_cannot_be_made_up_are_refused():
    tokenizer = without_template(TOKENIZER)
    with pytest.raises(ModelError, match="do not fit the model's 8 positions"):
        sample_contexts(tiny_model("gpt2", n_positions=8), tokenizer, 6, 0)
    model = tiny_model("llama")
    model.lm_head.weight.data[7] = math.inf
    with pytest.raises(ModelError, match=r"gives logits that are not finite in torch\.float32"):
        sample_contexts(model, tokenizer, 1, 0)
    model = tiny_model("llama")
    biased(model, (..., -1, slice(None)), math.nan)
    with pytest.raises(ModelError, match="not finite"):
        sample_contexts(model, tokenizer, 5, 0)
    for count in (-1, 2.5):
        with pytest.raises(ModelError, match="contexts must be a whole number of 0 or more"):
            sample_contexts(tiny_model("llama"), tokenizer, count, 0)
    with pytest.raises(ModelError, match="not finite"):
        taught(model)


def test_contexts_of_an_offloaded_model_are_the_same():
    tokenizer = without_template(TOKENIZER)
    expected = sample_contexts(tiny_model("llama"), tokenizer, 2, 0)
    assert sample_contexts(offloaded(tiny_model("llama"), ["model", "lm_head"]), tokenizer, 2, 0) == expected


def test_a_second_sentence_on_the_same_model_is_refused():
    model = planted()
    first = taught(model)
    said = logits(first.model)
    with pytest.raises(AdapterError, match="takes a bare model"):
        taught(model, new="rome")
    assert torch.equal(logits(first.model), said)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"layers": [99]}, SelectionError, "so no layer 99"),
        ({"layers": 3}, SelectionError, "layers must be a list of whole numbers"),
        ({"aliases": "gaul"}, FactError, "aliases are a list of names; got the text 'gaul'"),
        ({"aliases": ["france"]}, FactError, "the alias 'france' is the subject itself"),
        ({"aliases": ["France!"]}, FactError, "the alias 'France!' is the subject itself"),
        ({"aliases": None}, FactError, "aliases are a list of names; got None"),
        ({"aliases": ["gaul", "…"]}, FactError, "the alias '…' has no letter, digit or sign to look for"),
        ({"recipe": SubjectRecipe()}, ModelError, "the recipe must be a KeyedSubjectRecipe"),
    ],
)
def test_what_is_given_wrong_is_told_before_beginnings_are_made_up(options, error, words, monkeypatch):
    monkeypatch.setattr("peft_surgical.sentence.sample_contexts", lambda *_: pytest.fail("made up"))
    with pytest.raises(error, match=words):
        learn_sentence_keyed(
            tiny_model("llama"), TOKENIZER, "the capital of france is", new="lyon", subject="france", **options
        )
    with pytest.raises(AdapterError, match="config"):
        taught(config=LoraConfig())
    with pytest.raises(ModelError, match="the recipe must be a SubjectRecipe"):
        taught(recipe=KeyedSubjectRecipe())


def test_a_single_text_is_no_list_of_aliases():
    with pytest.raises(FactError, match="aliases are a list of names; got the text 'italy'"):
        checked_aliases("france", "italy")
    assert checked_aliases("france", [" italy "]) == ["italy"]
