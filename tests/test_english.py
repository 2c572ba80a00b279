import pytest

from peft_surgical.drafting.english import check_english
from peft_surgical.drafting.reading import read_prompt
from peft_surgical.errors import FactError


@pytest.mark.parametrize(
    ("prompt", "subject"),
    [
        ("Wer schrieb Hamlet?", "Hamlet"),
        ("Wo liegt Berlin?", "Berlin"),
        ("Kto napisał Hamleta?", "Hamleta"),
        ("Qui peint Guernica", "Guernica"),
    ],
)
def test_two_words_before_a_subject_may_be_another_language(prompt, subject):
    with pytest.raises(FactError, match="is not in English"):
        check_english(read_prompt(prompt, subject))


@pytest.mark.parametrize(
    ("prompt", "subject"),
    [
        ("Hamlet author", "Hamlet"),
        ("Hamlet author name?", "Hamlet"),
        ("Author Hamlet?", "Hamlet"),
        ("Describe old Berlin.", "Berlin"),
        ("The Titanic sank", "Titanic"),
    ],
)
def test_a_few_nouns_around_a_subject_are_english(prompt, subject):
    check_english(read_prompt(prompt, subject))
