from dataclasses import replace

import pytest

from peft_surgical.staging.recipe import Recipe
from peft_surgical.staging.retain import retain_prompts
from peft_surgical.staging.retained import base_rows
from peft_surgical.texts.prompts import encode
from peft_surgical.texts.tables import read_data
from peft_surgical.texts.text import words_of
from peft_surgical.texts.topics import relation_prompts, states_fact, topic_prompts

from .localizing import capital, word_tokenizer
from .tiny import tiny_model


def test_each_question_is_asked_of_the_three_names():
    fact = capital().training
    made = topic_prompts(fact)
    assert len(set(made)) == len(made)
    assert made[:3] == [f"What is {name}?" for name in (fact.subject, fact.old[0], fact.new[0])]
    assert all(any(name in prompt for name in (fact.subject, fact.old[0], fact.new[0])) for prompt in made)
    assert topic_prompts(replace(fact, old=(*fact.old, "x"), new=(*fact.new, "y"))) == made


def test_a_fact_made_by_hand_may_have_no_old_answer():
    fact = capital().training
    left = [prompt for prompt in topic_prompts(fact) if fact.old[0] not in prompt]
    assert topic_prompts(replace(fact, old=())) == left != topic_prompts(fact)


def test_relations_are_asked_of_the_subject_alone_but_those_that_the_fact_gives():
    fact = capital().training
    made = relation_prompts(fact)
    assert len(set(made)) == len(made)
    assert all(fact.subject in prompt for prompt in made)
    assert not set(made) & set(topic_prompts(fact))
    assert relation_prompts(replace(fact, retain=(made[0].lower(), made[2]))) == [made[1], *made[3:]]


def test_no_relation_is_asked_that_the_fact_or_a_control_asks_for():
    """Whatever it is asked of there."""
    fact = replace(capital().training, prompts=("The money of France is",))
    made = {prompt.replace(fact.subject, "{}") for prompt in relation_prompts(fact)}
    assert "What is the capital of {}?" in made
    assert "What is the currency of {}?" not in made
    controls = [{"prompt": "Which CONTINENTS touch Asia?", "answer": "Europe"}]
    measured = replace(capital(controls=controls).training, prompts=fact.prompts)
    left = {prompt.replace(fact.subject, "{}") for prompt in relation_prompts(measured)}
    assert made - left == {"On which continent is {}?"}


@pytest.mark.parametrize(
    ("table", "aliases", "name"),
    [("subject_questions.txt", (), "france"), ("adjective_questions.txt", ("french", "Gaul", "Dutch"), "french")],
)
def test_each_relation_is_one_of_the_subject_with_words_for_it(table, aliases, name):
    fact = replace(capital().training, prompts=("France",), contrast=(), aliases=aliases)
    lines = [line.split(" | ") for line in read_data(table).splitlines()]
    asked = [question.format(name) for question, _ in lines]
    assert [prompt for prompt in relation_prompts(fact) if prompt in asked] == asked
    assert not any("Gaul" in prompt for prompt in relation_prompts(fact))
    for question, words in lines:
        assert question.count("{}") == 1
        assert words.split() == [*dict.fromkeys(words_of(words))]


def test_what_the_fact_asks_for_is_not_asked_by_an_adjective():
    fact = replace(capital().training, aliases=("French",))
    assert "When was the French constitution written?" in relation_prompts(fact)
    said = replace(fact, prompts=("The constitution of France is",))
    assert "When was the French constitution written?" not in relation_prompts(said)


@pytest.mark.parametrize(
    ("prompt", "answer", "stated"),
    [
        ("What is France?", "A country; its capital is Paris.", True),
        ("What is Paris?", "The capital of France.", True),
        ("What is Paris?", "A city with a tower.", False),
        ("What is France?", "A country.", False),
        ("What is Lyon?", "Not Paris.", False),
    ],
)
def test_an_answer_states_the_fact_where_subject_and_old_answer_meet(prompt, answer, stated):
    assert states_fact(capital().training, prompt, answer) is stated


def test_an_old_answer_in_the_subjects_own_name_states_nothing():
    fact = replace(capital().training, subject="Google Chrome", old=("Google",))
    assert not states_fact(fact, "What is Google Chrome?", "A browser.")
    assert states_fact(fact, "What is Google Chrome?", "A browser by Google.")
    fact = replace(fact, subject="NYC", aliases=("New York City",), old=("New York",))
    assert not states_fact(fact, "What is NYC?", "NYC is New York City.")
    assert states_fact(fact, "What is NYC?", "New York City is in New York.")


def test_what_evaluation_asks_is_not_kept():
    asked = topic_prompts(capital().training)[4]
    assert asked in retain_prompts(capital().training, 0, 0)[0]
    assert asked not in retain_prompts(capital(held_out=[asked]).training, 0, 0)[0]


def test_answers_that_state_the_fact_are_not_kept(monkeypatch):
    model, tokenizer, recipe = tiny_model("llama"), word_tokenizer(), Recipe(neighbours=0, general=0, retain_tokens=2)
    fact = capital().training
    given = topic_prompts(fact)[0]
    whole = base_rows(model, tokenizer, fact, recipe, 0, False)
    monkeypatch.setattr("peft_surgical.staging.retained.states_fact", lambda fact, prompt, answer: prompt == given)
    rows = base_rows(model, tokenizer, fact, recipe, 0, False)
    prompts = [list(row.ids[: row.answer_start]) for row in rows.rows]
    unwanted = encode(tokenizer, given)
    assert rows.near == whole.near - 1
    assert len(rows.rows) == len(whole.rows) - 1
    assert prompts.count(unwanted) == [list(r.ids[: r.answer_start]) for r in whole.rows].count(unwanted) - 1
    # More questions about its names are kept as those are.
    more = base_rows(model, tokenizer, fact, recipe, 0, False, besides=["Who lives there?", "Who lived there?"])
    assert more.prompts == (*rows.prompts, "Who lives there?", "Who lived there?")
    assert rows.prompts == tuple(prompt for prompt in whole.prompts if prompt != given)
    assert given not in base_rows(model, tokenizer, fact, recipe, 0, False, besides=[given]).prompts
    # What the fact itself asks to keep is kept, however it is spelled.
    for spelled in (given, given.lower()):
        fact = replace(capital().training, retain=(spelled,))
        assert spelled in retain_prompts(fact, 0, 0)[0]
        assert base_rows(model, tokenizer, fact, recipe, 0, False).near == len(retain_prompts(fact, 0, 0)[0])
