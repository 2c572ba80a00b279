import pytest

from peft_surgical.drafting.paraphrases import held_out_prompts, paraphrases
from peft_surgical.drafting.reading import read_prompt
from peft_surgical.drafting.sentences import refusal


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
