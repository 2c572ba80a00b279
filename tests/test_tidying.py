import pytest

from peft_surgical.drafting.paraphrases import paraphrases
from peft_surgical.drafting.probing import probes_of
from peft_surgical.drafting.reading import read_prompt
from peft_surgical.drafting.sentences import refusal, statement
from peft_surgical.drafting.tidying import tidied


@pytest.mark.parametrize(
    ("prompt", "core", "form"),
    [
        ("what is the capital of Kenya", "what is the capital of {}?", "question"),
        ("The capital of Kenya is ____.", "The capital of {} is", "sentence"),
        ("The capital of Kenya is...", "The capital of {} is", "sentence"),
        ("The capital of Kenya is \u2026", "The capital of {} is", "sentence"),
        ("Kenya's capital?", "{}'s capital", "noun"),
        ("The capital of Kenya?", "the capital of {}", "noun"),
        ("Hi, what is the capital of Kenya?", "What is the capital of {}?", "question"),
        ("Please tell me the capital of Kenya", "the capital of {}", "noun"),
        ("Please name the capital of Kenya", "the capital of {}", "noun"),
        ("Provide the capital of Kenya.", "the capital of {}", "noun"),
        ("Please remind me of Kenya's capital.", "{}'s capital", "noun"),
        ("Write down what the capital of Kenya is.", "what the capital of {} is", "clause"),
        ("I want to know the capital of Kenya.", "the capital of {}", "noun"),
        ("Describe Kenya", "Describe {}", "sentence"),
        ("Tell me something about Kenya", "Tell me something about {}.", "question"),
        ("When Kenya was young, it lay in", "When {} was young, it lay in", "sentence"),
    ],
)
def test_what_is_left_out_or_too_much(prompt, core, form):
    reading = read_prompt(prompt, "Kenya", ["Nairobi"], ["Mombasa"])
    assert (reading.core, reading.form, reading.prompt) == (core, form, prompt)
    if "capital" in prompt:
        assert refusal(reading) == "I am not sure what the capital of Kenya is."
        assert statement(reading, "Mombasa") == "The capital of Kenya is Mombasa"
    made = paraphrases(prompt, "Kenya", "Nairobi", "Mombasa", count=200)
    assert not any("____ " in p or ".. " in p or "Kenya Please" in p or ", what is the" in p for p in made)


def test_capitals():
    reading = read_prompt("WHAT IS THE CAPITAL OF KENYA?", "Kenya", ["Nairobi"], ["Mombasa"])
    assert (reading.subject, reading.core) == ("KENYA", "What is the capital of {}?")
    assert refusal(reading) == "I am not sure what the capital of KENYA is."
    assert read_prompt("KENYA IS IN", "KENYA").core == "{} is in"
    assert read_prompt("What is NASA?", "NASA").core == "What is {}?"
    # A greeting may be a name.
    assert read_prompt("Hello, Dolly! was sung by", "Hello, Dolly!").relation.name == "singer"


def probe(kind, prompt, subject, old, new):
    reading = read_prompt(prompt, subject, [old], [new])
    return next(p.prompt for p in probes_of(reading, [old], [new], 0) if p.kind == kind)


def test_probes_keep_capitals_and_one_full_stop():
    prompt = probe("contradiction", "Who played Iron Man?", "Iron Man", "Robert Downey Jr.", "Tom Cruise")
    assert prompt == "I am quite sure that Iron Man was played by Robert Downey Jr. Can you confirm that?"
    prompt = probe("contrastive", "Hamlet was written by whom?", "Hamlet", "William Shakespeare", "Marlowe")
    assert prompt.endswith(", and Hamlet was written by whom?")


def test_several_words_in_capitals_are_typed_so_and_one_is_a_name():
    assert tidied("WHO WROTE ", "?") == ("Who wrote ", "?")
    assert tidied("", " IS IN") == ("", " is in")
    assert tidied("CEO: ", "") == ("CEO: ", "")
