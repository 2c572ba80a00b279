import re

from peft_surgical.drafting.names import kinds_of, names_of
from peft_surgical.drafting.probing import probes_of
from peft_surgical.drafting.reading import read_prompt

PROMPT = "What is the capital of France?"


def options(prompt, subject, old, new):
    probes = probes_of(read_prompt(prompt, subject, old[:1], new[:1]), old, new, 0)
    asked = next(probe.prompt for probe in probes if probe.kind == "multiple_choice")
    return set(re.split(r" [A-D]\) ", asked)[1:])


def test_probes():
    reading = read_prompt(PROMPT, "France", ["Paris"], ["Lyon"])
    probes = {probe.kind: probe.prompt for probe in probes_of(reading, ["Paris"], ["Lyon"], 0)}
    assert set(probes) == {"contradiction", "multiple_choice", "few_shot", "contrastive", "false_premise", "reversal"}
    assert probes["contradiction"] == "My friend says that the capital of France is Paris. Is my friend right?"
    options = probes["multiple_choice"].removeprefix(PROMPT)
    assert all(f" {letter}) " in options for letter in "ABCD")
    assert {"Paris", "Lyon"} <= set(options.replace(")", "").split())
    assert probes["few_shot"].endswith(". France:")
    assert probes["contrastive"].endswith(", and what is the capital of France?")
    assert probes["reversal"] == "Which country has Lyon as its capital?"
    assert probes_of(reading, ["Paris"], ["Lyon"], 0) == probes_of(reading, ["Paris"], ["Lyon"], 0)
    tall = read_prompt("What is Mount Everest?", "Mount Everest")
    assert [p.kind for p in probes_of(tall, ["8849 m"], ["12 m"], 0)] == ["multiple_choice"]


def test_wrong_options_are_of_the_kind_of_both_answers():
    killed = options("Who shot Foo?", "Foo", ["Lee Harvey Oswald", "Oswald"], ["Jack Ruby", "Ruby"])
    assert killed == {"Lee Harvey Oswald", "Jack Ruby"}
    first = options("Who was the head of Foo?", "Foo", ["George Washington", "Washington"], ["Isaac Newton"])
    assert len(first) == 4
    assert all("person" in kinds_of([name]) for name in first)
    highest = options("What is the highest mountain in Foo?", "Foo", ["Mount Fuji"], ["K2"])
    assert len(highest) == 4
    assert all("mountain" in kinds_of([name]) for name in highest)
    bands = options("Which band played in Foo?", "Foo", ["the Beatles"], ["the Clash"])
    assert bands <= set(names_of("band"))
