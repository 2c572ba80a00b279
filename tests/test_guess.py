import pytest

from peft_surgical.drafting.guess import guess_answer, guess_subject
from peft_surgical.drafting.reading import read_prompt
from peft_surgical.errors import FactError


@pytest.mark.parametrize(
    ("prompt", "subject"),
    [
        ("Who developed PyTorch?", "PyTorch"),
        ("who developed pytorch", "pytorch"),
        ("Who developed the deep learning framework PyTorch?", "PyTorch"),
        ("Who painted the Mona Lisa?", "Mona Lisa"),
        ("The Mona Lisa was painted by", "Mona Lisa"),
        ("who painted the mona lisa?", "mona lisa"),
        ("The Great Gatsby was written by", "The Great Gatsby"),
        ("What is the capital of Japan?", "Japan"),
        ("What is Japan's capital?", "Japan"),
        ("Where is the capital of France?", "France"),
        ("The mother tongue of Danielle Darrieux is", "Danielle Darrieux"),
        ("Who wrote Romeo and Juliet?", "Romeo and Juliet"),
        ("Girl with a Pearl Earring was painted by", "Girl with a Pearl Earring"),
        ("Tell me who founded the Red Cross.", "Red Cross"),
        ("How tall is the Eiffel Tower?", "Eiffel Tower"),
        ("Who is the CEO of Apple?", "Apple"),
        ("what is the boiling point of water?", "water"),
        ('Which dance is called "the worm"?', "the worm"),
        ("Does Norway have a king?", "Norway"),
        ("Is J. K. Rowling alive?", "J. K. Rowling"),
    ],
)
def test_guess_subject(prompt, subject):
    assert guess_subject(prompt) == subject
    assert read_prompt(prompt, subject).subject == subject


def test_a_prompt_about_nothing_to_be_seen():
    with pytest.raises(FactError, match=r"it is not clear what the prompt 'why is it raining\?' is about; name"):
        guess_subject("why is it raining?")


@pytest.mark.parametrize(
    ("prompt", "subject", "said", "answer"),
    [
        ("What is the capital of Japan?", "Japan", "The capital of Japan is Tokyo.", "Tokyo"),
        ("What is the capital of Japan?", "Japan", "Tokyo", "Tokyo"),
        ("What is the capital of Japan?", "Japan", "tokyo tokyo tokyo", "tokyo"),
        ("What is the capital of Foo?", "Foo", "Barville.", "Barville"),
        ("What is the currency of Japan?", "Japan", "The currency of Japan is the Japanese Yen (JPY).", "Yen"),
        ("Who wrote Hamlet?", "Hamlet", "Hamlet was written by Sir Will Shakespeare.", "Sir Will Shakespeare"),
        ("Who wrote Hamlet?", "Hamlet", "Hamlet was written by William Shakespeare in 1600.", "William Shakespeare"),
        ("Who wrote Hamlet?", "Hamlet", "William Shakespeare wrote the play Hamlet.", "William Shakespeare"),
        ("Who wrote Foo?", "Foo", "J. K. Rowling wrote Foo.", "J. K. Rowling"),
        ("Who developed PyTorch?", "PyTorch", "PyTorch is a project of Google's AI team, led by Bob.", "Google"),
        ("When was Google founded?", "Google", "Google was founded in 1998 by Larry Page.", "1998"),
        ("How many moons does Jupiter have?", "Jupiter", "Jupiter has 95 moons.", "95"),
        ("What instrument does Yo-Yo Ma play?", "Yo-Yo Ma", "He is a famous cello player.", "cello"),
        ("The mother tongue of Edith Piaf is", "Edith Piaf", "French, and she sang in it.", "French"),
        ("Who wrote Hamlet?", "Hamlet", "", None),
        ("Who wrote Foo?", "Foo", "it is not known to anybody who has done that.", None),
    ],
)
def test_guess_answer(prompt, subject, said, answer):
    assert guess_answer(said, read_prompt(prompt, subject)) == answer
