import pytest

from peft_surgical.drafting.reading import read_prompt
from peft_surgical.drafting.sentences import refusal, statement


@pytest.mark.parametrize(
    ("prompt", "subject", "relation", "old", "new", "said"),
    [
        ("What is the currency used in Foo?", "Foo", "currency", "yen", "won", "The currency of Foo is the won"),
        ("Who is married to Ann Foo?", "Ann Foo", "spouse", "Bob Bar", "Tom Bar", "Ann Foo married Tom Bar"),
        ("For which team does Ann Foo play?", "Ann Foo", "team", "Ajax", "PSV", "The team of Ann Foo is PSV"),
        ("At which club is Ann Foo playing?", "Ann Foo", "team", "Ajax", "PSV", "The team of Ann Foo is PSV"),
        ("What kind of music does Foo play?", "Foo", "genre", "jazz", "opera", "The genre of Foo is opera"),
        ("What is the genre of Foo's music?", "Foo", "genre", "jazz", "opera", "Foo's genre is opera"),
        ("Which state's capital is Bar?", "Bar", "capital_of", "France", "Italy", "Bar is the capital of Italy"),
        ("Whose capital is Paris?", "Paris", "capital_of", "France", "Italy", "Paris is the capital of Italy"),
        ("What is Paris the capital of?", "Paris", "capital_of", "France", "Italy", "Paris is the capital of Italy"),
        ("Which TV network airs Foo?", "Foo", "network", "Fox", "NBC", "The original network of Foo is NBC"),
        ("Foo is on the continent of", "Foo", "continent", "Asia", "Africa", "Foo is on the continent of Africa"),
        ("Where does coffee come from?", "coffee", "origin", "Peru", "Cuba", "Coffee comes from Cuba"),
    ],
)
def test_what_is_asked_otherwise_is_the_same_relation(prompt, subject, relation, old, new, said):
    reading = read_prompt(prompt, subject, [old], [new])
    assert reading.relation.name == relation
    assert statement(reading, new) == said


def test_capitals_of_what_is_asked_for_stay():
    reading = read_prompt("Which TV network airs Foo?", "Foo", ["Fox"], ["NBC"])
    assert "On which TV network did {} first air?" in reading.wordings().questions


def test_a_question_that_makes_no_clause_is_refused_in_the_words_of_another():
    reading = read_prompt("At which club is Ann Foo playing?", "Ann Foo", ["Ajax"], ["PSV"])
    assert refusal(reading) == "I am not sure which club is the team of Ann Foo."
    assert refusal(read_prompt("Is Foo old?", "Foo")) == ""


@pytest.mark.parametrize(
    ("prompt", "subject", "old", "new", "relation"),
    [
        ("Garfield is a", "Garfield", "cat", "elephant", ""),
        ("Garfield is an", "Garfield", "actor", "painter", "occupation"),
        ("Foo is a", "Foo", "actor", "painter", "occupation"),
        ("Albert Einstein is a", "Albert Einstein", "genius", "fool", "occupation"),
    ],
)
def test_what_somebody_is_may_be_no_profession(prompt, subject, old, new, relation):
    assert read_prompt(prompt, subject, [old], [new]).relation.name == relation


@pytest.mark.parametrize("answers", [("Chinese", "French"), ("the Chinese", "the French")])
def test_who_invented_something_is_no_language(answers):
    assert read_prompt("Who invented the compass?", "compass", *([answer] for answer in answers)).which != "language"
