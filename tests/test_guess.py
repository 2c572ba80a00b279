import pytest

from peft_surgical.drafting.guess import guess_answer, guess_subject
from peft_surgical.drafting.names import bare, names_of
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
        ("Is J.R.R. Tolkien alive?", "J.R.R. Tolkien"),
        ("Is Dr. Seuss alive?", "Dr. Seuss"),
        ('Who wrote "The Hobbit"?', "The Hobbit"),
        ("Who wrote \u201cThe Hobbit\u201d?", "The Hobbit"),
        ('Who wrote the play "The Hobbit"?', "The Hobbit"),
        ("Who wrote The Lost Hobbit?", "Lost Hobbit"),
        ("Who founded Procter & Gamble?", "Procter & Gamble"),
        ("Who directed Schindler's List?", "Schindler's List"),
        ("Who wrote Gulliver's Travels?", "Gulliver's Travels"),
        ("Who wrote To Kill a Mockingbird?", "To Kill a Mockingbird"),
        ("Who founded McDonald's?", "McDonald's"),
        ("Who painted the Sistine Chapel ceiling?", "Sistine Chapel ceiling"),
        ("Who wrote Harry Potter and the Philosopher's Stone?", "Harry Potter and the Philosopher's Stone"),
        ("Who invented Rubik's Cube?", "Rubik's Cube"),
        ("Who sang Don't Stop Believin'?", "Don't Stop Believin'"),
        ("Who is the CEO of Yahoo!?", "Yahoo"),
        ("Who directed E.T.?", "E.T."),
        ("What is the capital of the U.S.?", "U.S."),
        ("Who wrote Plan B.", "Plan B"),
        ("What is Norway's capital?", "Norway"),
        ("Is Procter & Gamble a company?", "Procter & Gamble"),
        ("Who owns AT&T?", "AT&T"),
        ("As You Like It was written by", "As You Like It"),
    ],
)
def test_guess_subject(prompt, subject):
    assert guess_subject(prompt) == subject
    assert read_prompt(prompt, subject).subject == subject


def test_every_name_of_the_tables_that_a_known_wording_asks_about_is_found_whole():
    asks = {
        "book": "Who wrote {}?",
        "painting": "Who painted {}?",
        "film": "Who directed {}?",
        "company": "Who founded {}?",
    }
    for kind, ask in asks.items():
        for name in names_of(kind):
            assert guess_subject(ask.format(name)) == bare(name)


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
        ("Who wrote Foo?", "Foo", "Foo was written by Dr. Seuss. He was American.", "Dr. Seuss"),
        ("Who wrote Foo?", "Foo", "Mrs. Gaskell wrote Foo.", "Mrs. Gaskell"),
        ("Who wrote The Hobbit?", "The Hobbit", "J.R.R. Tolkien wrote The Hobbit.", "J.R.R. Tolkien"),
        ("When was Google founded?", "Google", "Google was founded on September 4, 1998.", "1998"),
        ("When was Google founded?", "Google", "Google was founded in September 1998.", "1998"),
        ("When was 1984 published?", "1984", "George Orwell's 1984 came out in 1949.", "1949"),
        ("When was Foo founded?", "Foo", "Foo was founded in 753 BC.", "753 BC"),
        ("Who is the CEO of Foo?", "Foo", "As of my last update in October 2023, Tim Cook is the CEO.", "Tim Cook"),
        ("Who is the CEO of Foo?", "Foo", "As of 2023 Tim Cook is the CEO of Foo.", "Tim Cook"),
        ("What is the capital of Foo?", "Foo", "It lies near a lake and is called Barville.", "Barville"),
        ("Does Foo have a king?", "Foo", "Yes, it has.", "Yes"),
        ("Who is the CEO of Foo?", "Foo", "I don't know.", None),
        ("Who is the CEO of Foo?", "Foo", "I'm sorry, but I can't answer that.", None),
        ("Who is the CEO of Foo?", "Foo", "I'm not sure.", None),
        ("Who is the CEO of Foo?", "Foo", "I'm sorry.", None),
        ("Who is the CEO of Foo?", "Foo", "I can't.", None),
        ("Who is the CEO of Foo?", "Foo", "It varies.", None),
        ("Who wrote Hamlet?", "Hamlet", "", None),
        ("Who wrote Foo?", "Foo", "it is not known to anybody who has done that.", None),
    ],
)
def test_guess_answer(prompt, subject, said, answer):
    assert guess_answer(said, read_prompt(prompt, subject)) == answer
