from dataclasses import replace

import pytest

from peft_surgical.drafting.names import names_of
from peft_surgical.facts import Fact
from peft_surgical.staging import contrast
from peft_surgical.staging.contrast import with_contrast
from peft_surgical.staging.retained import base_rows
from peft_surgical.texts.tables import bare

from .staged import FACT, RECIPE, TOKENIZER
from .tiny import tiny_model

CITY = {
    "subject": "France",
    "old": ["Paris"],
    "new": ["Lyon"],
    "prompts": ["What is the capital of France?"],
    "held_out": ["Which city is the capital of France?"],
}


@pytest.fixture
def asked(monkeypatch):
    """What the model is asked for, and what it then gives."""
    given, found = [], []

    def propose(model, tokenizer, reading, answers):
        found.append((reading.subject, answers))
        return given

    monkeypatch.setattr(contrast, "propose_others", propose)
    return given, found


def test_others_of_the_kind_are_known(asked):
    found = with_contrast(None, None, Fact.from_dict(CITY).training).contrast
    assert len(found) == contrast.CONTRAST
    assert set(found) < {bare(name) for name in names_of("country")} - {"France"}
    assert asked[1] == []


def test_nobody_whom_a_control_asks_about_is_among_them(asked):
    first, second, *_ = with_contrast(None, None, Fact.from_dict(CITY).training).contrast
    controls = [{"prompt": f"What is the capital of {first}?", "answer": ["a city"]}]
    found = with_contrast(None, None, Fact.from_dict({**CITY, "controls": controls}).training).contrast
    assert second == found[0]
    assert first not in found


def test_of_a_subject_that_the_package_does_not_know_the_model_is_asked(asked):
    given, found = asked
    given.extend(["Zorblat", "Quux"])
    fact = Fact.from_dict(
        {**CITY, "subject": "Blorgh", "prompts": ["Who made Blorgh?"], "held_out": ["Who is the maker of Blorgh?"]}
    ).training
    assert with_contrast(None, None, fact).contrast == ("Zorblat", "Quux")
    assert found == [("Blorgh", ("Paris", "Lyon"))]


def test_what_shares_a_name_with_the_subject_or_with_what_a_control_asks_about_is_none(asked):
    asked[0].extend(["Blorgh", "Old Blorgh Bay", "Ada Quuxley", "Zorblat"])
    fact = Fact.from_dict(
        {
            **CITY,
            "subject": "Old Blorgh",
            "prompts": ["Who made Old Blorgh?"],
            "held_out": ["Who is the maker of Old Blorgh?"],
            "controls": [{"prompt": "Where did Quuxley live?", "answer": ["a city"]}],
        }
    ).training
    assert with_contrast(None, None, fact).contrast == ("Zorblat",)


@pytest.mark.parametrize(
    "fact",
    [
        FACT.training,
        replace(Fact.from_dict(CITY).training, prompts=("What is its capital?",)),
        replace(Fact.from_dict(CITY).training, prompts=("Quelle est la capitale de la France ?",)),
    ],
    ids=["has some", "is not named", "is not English"],
)
def test_a_fact_that_has_some_or_cannot_be_read_stays(asked, fact):
    assert with_contrast(None, None, fact) is fact


def test_what_is_kept_is_asked_about_them(monkeypatch):
    fact = replace(FACT.training, contrast=(), retain=())
    monkeypatch.setattr(contrast, "others_of", lambda *_: ["zealand"])
    kept = base_rows(tiny_model("llama"), TOKENIZER, fact, RECIPE, 0, False)
    made = [prompt for prompt in kept.prompts if "zealand" in prompt]
    assert made
    assert all("france" not in prompt for prompt in made)


def test_another_name_of_the_subject_is_no_contrast(asked):
    given, _ = asked
    given.extend(["Facebook", "Meta Platforms", "Zorblat"])
    aliases = ["Facebook", "Meta Platforms"]
    known = {**CITY, "subject": "Meta", "prompts": ["Who founded Meta?"], "held_out": ["Who is the founder of Meta?"]}
    found = with_contrast(None, None, Fact.from_dict({**known, "aliases": aliases}).training).contrast
    assert found
    assert not {"Facebook", "Meta Platforms", "Meta AI"} & set(found)
    unknown = {
        **CITY,
        "subject": "Blorgh",
        "prompts": ["Who made Blorgh?"],
        "held_out": ["Who is the maker of Blorgh?"],
    }
    fact = Fact.from_dict({**unknown, "aliases": aliases}).training
    assert with_contrast(None, None, fact).contrast == ("Zorblat",)


def test_a_model_with_too_few_positions_to_be_asked_names_none():
    unknown = {
        **CITY,
        "subject": "Blorgh",
        "prompts": ["Who made Blorgh?"],
        "held_out": ["Who is the maker of Blorgh?"],
    }
    fact = Fact.from_dict(unknown).training
    assert with_contrast(tiny_model("llama", max_position_embeddings=64), TOKENIZER, fact) is fact
