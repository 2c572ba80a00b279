from dataclasses import replace

import pytest

from peft_surgical.facts import TrainingFact
from peft_surgical.keying import keyed
from peft_surgical.keying.other_names import with_other_names
from peft_surgical.texts.text import digest

from .localizing import WORDS, capital, word_tokenizer
from .tiny import tiny_model

PROMPTS = ("What is the capital of France?", *(f"Quiz {n}: what is the capital of France?" for n in range(15)))
FACT = TrainingFact("France", ("Paris",), ("Lyon",), PROMPTS, "I am not sure.", "The capital of France is Lyon.")
RECIPE = keyed.KeyedRecipe(
    steps=1, general=2, variants=0, neighbours=2, namesakes=0, retain_tokens=2, compute_dtype="float32"
)
WITHOUT = replace(RECIPE, other_names=False)


def knowing(*words):
    tokenizer = word_tokenizer()
    tokenizer.add_tokens(list(words))
    return tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return knowing("French", "Holland", "Dutch")


def test_a_country_without_aliases_has_its_other_names_and_a_prompt_for_eight_by_its_adjective(tokenizer):
    assert with_other_names(FACT, tokenizer) == replace(
        FACT, aliases=("French",), prompts=(*PROMPTS, "What is the French capital?", "The French capital is")
    )
    few = replace(FACT, prompts=PROMPTS[:7])
    assert with_other_names(few, tokenizer) == replace(few, aliases=("French",))


def test_what_evaluation_asks_or_the_fact_has_is_not_added(tokenizer):
    own = (*PROMPTS, "what is the French capital")
    fact = replace(FACT, prompts=own, evaluated=frozenset([digest("The French capital is")]))
    assert with_other_names(fact, tokenizer).prompts[len(own) :] == (
        "Which city is the French capital?",
        "The French capital city is",
    )


@pytest.mark.parametrize(
    "changed",
    [
        {"aliases": ("Gaul",)},
        {"prompts": ("Was ist die Hauptstadt von France?",)},
        {"prompts": ("Who runs it?",)},
        {"contrast": ("French Guiana",)},
        {"subject": "Lake Como", "prompts": ("What is the capital of Lake Como?",)},
    ],
)
def test_a_fact_is_as_it_is_where_it_has_aliases_or_no_other_name_is_known(changed, tokenizer):
    fact = replace(FACT, **changed)
    assert with_other_names(fact, tokenizer) == fact


def test_a_name_that_the_tokenizer_does_not_know_is_left_out(tokenizer):
    assert with_other_names(FACT, word_tokenizer()) == FACT
    assert with_other_names(FACT).aliases == ("French",)
    fact = replace(FACT, subject="Netherlands", prompts=("What is the capital of the Netherlands?",))
    assert with_other_names(fact, tokenizer).aliases == ("Holland", "Dutch")
    assert with_other_names(fact, knowing("Dutch")).aliases == ("Dutch",)


def test_the_adjective_is_a_name_only_where_people_ask_so():
    fact = replace(FACT, subject="Netherlands", prompts=("On which continent is the Netherlands?",))
    assert with_other_names(fact) == replace(fact, aliases=("Holland",))


@pytest.mark.parametrize(("recipe", "names"), [(RECIPE, ["france", "french"]), (WITHOUT, ["france"])])
def test_keyed_learning_acts_under_them_unless_its_recipe_says_otherwise(recipe, names, monkeypatch):
    seen, plain = [], keyed.told_apart
    monkeypatch.setattr(keyed, "told_apart", lambda *given, **how: seen.append(given[2]) or plain(*given, **how))
    fact = replace(capital().training, subject="france", retain=("the sky is",))
    fact = replace(
        fact,
        prompts=("what is the capital of france?", *(f"tell me {word} about france" for word in WORDS[:7])),
        answer="lyon",
    )
    tokenizer = knowing("french")
    model = tiny_model("llama", vocab_size=len(tokenizer)).requires_grad_(False)
    stage = keyed.learn_keyed(model, tokenizer, fact, recipe=recipe, progress=False)
    assert stage.to_dict()["names"] == list(seen[0].names) == names
    assert len(seen[0].prompts) == 8 + len(names[1:])
