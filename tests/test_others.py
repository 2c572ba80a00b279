import pytest

from peft_surgical.drafting.known_facts import neighbour_controls
from peft_surgical.drafting.others import others_of
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
