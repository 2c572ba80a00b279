import pytest

from peft_surgical.drafting.known_facts import is_subject, neighbour_controls
from peft_surgical.drafting.others import others_of, swappable
from peft_surgical.drafting.reading import read_prompt
from peft_surgical.texts.tables import bare
from peft_surgical.texts.text import contains


@pytest.mark.parametrize(
    ("prompt", "subject", "another_name"),
    [
        ("What is the capital of the UK?", "UK", "United Kingdom"),
        ("What is the currency of Great Britain?", "Great Britain", "United Kingdom"),
        ("What is the atomic number of aluminium?", "aluminium", "aluminum"),
        ("Where was Mohandas Gandhi born?", "Mohandas Gandhi", "Mahatma Gandhi"),
    ],
)
def test_another_name_of_the_subject_is_no_other(prompt, subject, another_name):
    reading = read_prompt(prompt, subject)
    found = others_of(reading, [])
    near = neighbour_controls(reading, [])
    assert found
    assert another_name not in {*map(bare, found), *(name for name, _ in near)}
    assert not any(contains(control.prompt, [another_name]) for _, control in near)


def test_discoveries_are_alike_only_as_such():
    assert others_of(read_prompt("What causes gravity?", "gravity"), []) == []
    assert others_of(read_prompt("What is the currency of America?", "America"), []) == []
    assert "gravity" in others_of(read_prompt("Who discovered America?", "America"), [])


def test_neither_an_answer_nor_a_part_of_one_is_another_subject():
    reading = read_prompt("What is the capital of France?", "France")
    for name, answer in (("Mexico", "Mexico City"), ("Germany", "Germany")):
        assert name in others_of(reading, [])
        assert name not in others_of(reading, [answer])
    assert "Germany" in [name for name, _ in neighbour_controls(reading, [])]
    assert "Germany" not in [name for name, _ in neighbour_controls(reading, ["Germany"])]


def test_behind_an_article_a_name_begins_as_the_subject_does():
    names = ["tiger", "ant", "the eagle"]
    assert swappable(read_prompt("How many legs does a lion have?", "lion"), names) == ["tiger"]
    assert swappable(read_prompt("How many legs does an owl have?", "owl"), names) == ["ant", "eagle"]


def test_behind_the_a_name_without_an_article_is_another():
    river, company = read_prompt("How long is the Amazon?", "Amazon"), read_prompt("Who runs Amazon?", "Amazon")
    assert [is_subject(river, name) for name in ("Amazon", "the Amazon")] == [False, True]
    assert [is_subject(company, name) for name in ("Amazon", "Nile")] == [True, False]
