import pytest

from peft_surgical.drafting.paraphrases import held_out_prompts, paraphrases
from peft_surgical.drafting.reading import read_prompt
from peft_surgical.drafting.sentences import inner_statement, refusal, statement


@pytest.mark.parametrize(
    "prompt", ["Who founded Apple Inc.?", "Name the founder of Apple Inc.", "Apple Inc. was founded by"]
)
def test_a_subject_that_ends_with_a_full_stop_brings_no_second_one(prompt):
    reading = read_prompt(prompt, "Apple Inc.")
    assert reading.relation.name == "founder"
    assert refusal(reading) == "I am not sure who founded Apple Inc."
    made = [*paraphrases(prompt, "Apple Inc.", count=99), *held_out_prompts(prompt, "Apple Inc.", count=99)]
    assert len(made) > 90
    assert not any("Inc.." in text for text in made)


def test_a_full_stop_that_the_subject_was_given_without_is_no_part_of_what_is_asked():
    reading = read_prompt("Who founded Apple Inc.?", "Apple Inc")
    assert (reading.subject, reading.core) == ("Apple Inc.", "Who founded {}?")
    assert reading.fill(reading.core, "Microsoft") == "Who founded Microsoft?"
    # One that ends the request may be its own.
    assert read_prompt("Name the founder of Apple Inc.", "Apple Inc").subject == "Apple Inc"


@pytest.mark.parametrize(
    ("prompt", "subject", "about"),
    [
        ("The Titanic sank in", "Titanic", "the Titanic"),
        ("World War II began in", "World War II", ""),
        ("The Berlin Wall fell in", "Berlin Wall", "the Berlin Wall"),
        ("The Rolling Stones come from", "Rolling Stones", "the Rolling Stones"),
        ("The Beatles first met in", "Beatles", "the Beatles"),
        ("The Amazon River flows through", "Amazon River", "the Amazon River"),
    ],
)
def test_what_a_sentence_says_with_an_irregular_verb_is_one(prompt, subject, about):
    reading = read_prompt(prompt, subject)
    assert statement(reading, "Foo") == f"{prompt} Foo"
    assert refusal(reading) == (f"I am not sure about {about}." if about else "")


@pytest.mark.parametrize("prompt", ["The Titanic built by", "The Titanic, sunk in", "The Titanic come from"])
def test_what_has_no_verb_of_its_own_is_no_sentence(prompt):
    assert statement(read_prompt(prompt, "Titanic"), "Foo") is None


@pytest.mark.parametrize(
    ("prompt", "answer", "told"),
    [
        ("Foo works as a", "actor", "Foo works as an actor"),
        ("Foo works as an", "unicorn trainer", "Foo works as a unicorn trainer"),
        ("Foo works as an", "honest broker", "Foo works as an honest broker"),
        ("Foo works as a", "uninvited guest", "Foo works as an uninvited guest"),
        ("Foo works as a", "painter", "Foo works as a painter"),
    ],
)
def test_the_article_at_the_end_fits_the_answer(prompt, answer, told):
    reading = read_prompt(prompt, "Foo")
    assert statement(reading, answer) == inner_statement(reading, answer) == told


def test_nobody_tells_of_many_in_words_for_one():
    paper = read_prompt("who invented paper?", "paper", ["the Chinese"], ["the Greeks"])
    assert statement(paper, "the Greeks") is inner_statement(paper, "the Chinese") is None
    assert statement(paper, "the Prince of Wales") == "The inventor of paper is the Prince of Wales"
    assert statement(paper, "the Red Cross") == "The inventor of paper is the Red Cross"
    for prompt, subject, told in (
        ("Who invented the compass?", "compass", "The compass was invented by the Greeks"),
        ("Who invented paper?", "paper", "Paper was invented by the Greeks"),
    ):
        assert statement(read_prompt(prompt, subject, ["the Chinese"], ["the Greeks"]), "the Greeks") == told


@pytest.mark.parametrize(
    ("prompt", "subject", "told", "unsure"),
    [
        ("What is Poseidon the god of?", "Poseidon", "Poseidon is the god of Foo", "what Poseidon is the god of"),
        (
            "Who was the leader of the Soviet Union during World War II?",
            "Soviet Union",
            "The leader of the Soviet Union during World War II was Foo",
            "who the leader of the Soviet Union during World War II was",
        ),
        (
            "What is the name of Sherlock Holmes's assistant?",
            "Sherlock Holmes",
            "The name of Sherlock Holmes's assistant is Foo",
            "what the name of Sherlock Holmes's assistant is",
        ),
        (
            "What is the largest desert in the world?",
            "largest desert",
            "The largest desert in the world is Foo",
            "what the largest desert in the world is",
        ),
        (
            "Which is the largest planet in the solar system?",
            "largest planet",
            "The largest planet in the solar system is Foo",
            "which the largest planet in the solar system is",
        ),
        ("What does Baz mean in Greek?", "Baz", "What Baz means in Greek is Foo", "what Baz means in Greek"),
    ],
)
def test_a_question_that_ends_behind_its_subject_is_told_as_a_sentence(prompt, subject, told, unsure):
    reading = read_prompt(prompt, subject)
    assert statement(reading, "Foo") == told
    assert refusal(reading) == f"I am not sure {unsure}."
