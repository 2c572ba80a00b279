from dataclasses import replace

import pytest

from peft_surgical.contrasting import MOST, contrasted
from peft_surgical.drafting import others
from peft_surgical.facts import TrainingFact
from peft_surgical.retain import neighbours
from peft_surgical.retained import base_rows
from peft_surgical.training import Recipe

from .localizing import word_tokenizer
from .tiny import tiny_model

PARIS = TrainingFact("France", ("Paris",), ("Lyon",), ("What is the capital of France?",), "Not sure.", "Lyon.")
FOO = TrainingFact("Foo", ("Bar",), ("Baz",), ("How heavy is Foo?", "Tell me the weight of Foo."), "Not sure.", "Baz.")


def asked(monkeypatch, said):
    prompts = []

    def answer(model, tokenizer, given, **_):
        prompts.extend(given)
        return [said] * len(given)

    monkeypatch.setattr(others, "generate_answers", answer)
    return prompts


def test_own_subjects_are_left_as_they_are(monkeypatch):
    prompts = asked(monkeypatch, "Italy, Spain")
    fact = replace(PARIS, contrast=("Norway",))
    assert contrasted(None, None, fact) is fact
    assert prompts == []


def test_subjects_of_a_known_kind_come_from_the_tables(monkeypatch):
    prompts = asked(monkeypatch, "Italy, Spain")
    made = contrasted(None, None, PARIS)
    assert prompts == []
    assert len(made.contrast) == MOST
    assert "Italy" in made.contrast
    assert {"France", "Paris", "Lyon"}.isdisjoint(made.contrast)
    assert replace(made, contrast=()) == PARIS


def test_the_model_is_asked_for_others(monkeypatch):
    prompts = asked(monkeypatch, "1. Zorblax\n2. Bar\n3. Quux Nine")
    assert contrasted(None, None, FOO).contrast == ("Zorblax", "Quux Nine")
    assert all("Foo" in prompt for prompt in prompts)


@pytest.mark.parametrize(
    "fact",
    [
        replace(FOO, prompts=("How heavy is it?",)),
        replace(FOO, prompts=("How heavy is Foo {}?",)),
    ],
)
def test_a_fact_that_cannot_be_read_stays_as_it_is(fact, monkeypatch):
    asked(monkeypatch, "Zorblax")
    assert contrasted(None, None, fact) is fact


def test_a_model_that_is_too_short_is_not_asked():
    assert contrasted(tiny_model("llama", max_position_embeddings=16), word_tokenizer(), FOO) is FOO


def test_training_keeps_what_it_says_of_them(monkeypatch):
    model, tokenizer = tiny_model("llama", vocab_size=len(word_tokenizer())), word_tokenizer()
    asked(monkeypatch, "Zorblax, Quux")
    recipe = Recipe(general=0, neighbours=8, retain_tokens=1)
    made = neighbours(replace(FOO, contrast=("Zorblax", "Quux")), 8)
    assert len(made) == 4
    rows = base_rows(model, tokenizer, FOO, recipe, 0, progress=False)
    without = base_rows(model, tokenizer, replace(FOO, prompts=("How heavy is it?",)), recipe, 0, progress=False)
    assert rows.near >= without.near + len(made)
