import pytest

from peft_surgical.drafting.heard import guess_answer
from peft_surgical.drafting.reading import read_prompt


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
        ("Who founded Amazon?", "Amazon", "Amazon was founded by Amazon.com.", None),
        ("Who founded Ford?", "Ford", "Ford was founded by Henry Ford in 1903.", "Henry Ford"),
        ("Where is the Taj Mahal?", "Taj Mahal", "The Taj Mahal is in the Indian state of Foo, near Bar.", "Foo"),
        ("Where is the Taj Mahal?", "Taj Mahal", "The Taj Mahal is located in the city of Foo in India.", "Foo"),
        ("What is Foo the god of?", "Foo", "Foo is the Greek god of the sea, and of horses.", "sea"),
        ("What is Foo the symbol for?", "Foo", "It is a symbol for love.", "love"),
        # A longer name of the subject is no answer, and neither is what of it stands behind the short one.
        ("Where is Foo headquartered?", "Foo", "The Foo Company is headquartered in Barville, Utah.", "Barville"),
        ("Where is Foo headquartered?", "Foo", "Foo Motors, Inc. is headquartered in Barville.", "Barville"),
        ("Who is the CEO of Foo?", "Foo", "Foo Corporation CEO Tim Cook has led it for years.", "CEO Tim Cook"),
        ("Which company makes the Foo?", "Foo", "The Foo is made by the Bar Company.", "Bar Company"),
        ("Who wrote the Foo anthem?", "Foo", "It is the National Foo Anthem by Bo Bar.", "Bo Bar"),
        ("When was Foo built?", "Foo", "The 1000-room palace was built in 1762.", "1762"),
        ("When was Foo built?", "Foo", "Of its 1500 rooms the first were built in March, 1762.", "1762"),
        ("When was 1984 published?", "1984", "George Orwell's 1984 came out in 1949.", "1949"),
        ("When was Foo founded?", "Foo", "Foo was founded in 753 BC.", "753 BC"),
        ("Who is the CEO of Foo?", "Foo", "As of my last update in October 2023, Tim Cook is the CEO.", "Tim Cook"),
        ("Who is the CEO of Foo?", "Foo", "As of 2023 Tim Cook is the CEO of Foo.", "Tim Cook"),
        ("What is the capital of Foo?", "Foo", "It lies near a lake and is called Barville.", "Barville"),
        ("Does Foo have a king?", "Foo", "Yes, it has.", "Yes"),
        ("When was the Battle of Foo?", "Foo", "It took place in 1066 AD, in the reign of King William.", "1066"),
        ("When does Foo open?", "Foo", "It is open from 10:00 AM on Saturdays.", None),
        ("Who is the CEO of Foo?", "Foo", "I don't know.", None),
        ("Who is the CEO of Foo?", "Foo", "I'm sorry, but I can't answer that.", None),
        ("Who is the CEO of Foo?", "Foo", "I'm not sure.", None),
        ("Who is the CEO of Foo?", "Foo", "I'm sorry.", None),
        ("Who is the CEO of Foo?", "Foo", "I can't.", None),
        ("Who is the CEO of Foo?", "Foo", "It varies.", None),
        ("Who wrote Hamlet?", "Hamlet", "", None),
        # A sentence ends after a digit, a unit or a quoted name too.
        ("What is the default port of Foo?", "Foo", "The default port of Foo is 5432. This is usual.", "5432"),
        ("How many eggs are in Foo?", "Foo", "There are 12. This is well known.", "12"),
        ("What is the height of Foo?", "Foo", "The height of Foo is 8,849 m. It is high.", "8,849 m"),
        ("What is the nickname of Foo?", "Foo", 'The nickname of Foo is "The Big Apple." It is old.', "The Big Apple"),
        ("What are the best cities?", "cities", "1. Paris\n2. Rome", "Paris"),
        # What the prompt says itself is no answer.
        ("Who won the Foo Cup in 2014?", "Foo Cup in 2014", "In the Foo Cup 2014 it was Germany.", "Germany"),
        (
            "Who maintains the Linux kernel?",
            "kernel",
            "Linux is the work of many, led by Linus Torvalds.",
            "Linus Torvalds",
        ),
        ("Has Bo Derek won an Oscar?", "Bo Derek", "He won the Oscar in 2016.", None),
        ("Who is Barack Obama married to?", "Barack Obama", "Barack Obama is a politician.", None),
        ("Who is Barack Obama married to?", "Obama", "Obama? Mr. Obama is a politician.", None),
        ("Who founded Ford?", "Ford", "Henry Ford founded it.", "Henry Ford"),
        # How sure it is said.
        ("Who invented Foo?", "Foo", "The inventor of Foo is often credited to be Thomas Edison.", "Thomas Edison"),
        ("Who created Foo?", "Foo", "The creator of Foo is likely Guido van Rossum.", "Guido van Rossum"),
        ("Who is the CEO of Foo?", "Foo", "The CEO of Foo is currently John Smith.", "John Smith"),
        ("Who is the CEO of Foo?", "Foo", "Currently, John Smith runs it.", "John Smith"),
        ("What is the speed of Foo?", "Foo", "The speed of Foo is approximately 299.8 km/s.", "299.8 km/s"),
        ("Who directed Foo?", "Foo", "Almost Famous was made by the same man.", "Almost Famous"),
        # Fragments, and what is nobody.
        ("When did Foo happen?", "Foo", "It happened in 79 AD.", None),
        ("When does Foo open?", "Foo", "Foo opens at 9 AM.", None),
        ("How many people live in Foo?", "Foo", "Foo has 3.5 million people.", "3.5 million"),
        ("How many people live in Foo?", "Foo", "Foo has 900 people, a million too few.", "900"),
        ("How many bits has Foo?", "Foo", "Foo has a 16-bit bus with 24 lines.", "24"),
        ("Who wrote Foo?", "Foo", "It is a Portuguese epic poem.", None),
        ("Who wrote Foo?", "Foo", "Portuguese", None),
        ("Who wrote Foo?", "Foo", "It was written in Paris.", None),
        ("Who wrote Foo?", "Foo", "Foo is a Gothic novel from 1818.", None),
        ("Who painted Foo?", "Foo", "The Bohemian painter made it.", None),
        ("Who painted Foo?", "Foo", "Foo was painted by Italian artist Leonardo da Vinci.", "Leonardo da Vinci"),
        ("Who wrote Foo?", "Foo", "American author Harper Lee wrote it.", "Harper Lee"),
        ("Who discovered Foo?", "Foo", "It was Scottish scientist Alexander Fleming in 1928.", "Alexander Fleming"),
        ("Who sang Foo?", "Foo", "Shakespeare wrote King Lear.", "Shakespeare"),
        ("Who wrote Foo?", "Foo", "it is not known to anybody who has done that.", None),
        # A time on the way to a place or a person.
        ("Where did Bo Derek die?", "Bo Derek", "Bo Derek died on July 19, 1977, in Memphis, Tennessee.", "Memphis"),
        ("Where was Bo Derek born?", "Bo Derek", "Bo Derek was born in 1935 in Tupelo, Mississippi.", "Tupelo"),
        ("Where was Bo Derek born?", "Bo Derek", "She was born in January 1935 in Tupelo.", "Tupelo"),
        ("Where was Bo Derek born?", "Bo Derek", "She was born 8 January 1935 at Tupelo.", "Tupelo"),
        ("In which city was Bo Derek born?", "Bo Derek", "She was born in 1935.", None),
        # The subject by another name.
        ("Where was Marie Curie born?", "Marie Curie", "Mrs. Curie was born in Warsaw.", "Warsaw"),
        (
            "Where was Sinéad O'Connor born?",
            "Sinéad O'Connor",
            "Séad O'Connor was born in the United Kingdom, in the city of Liverpool.",
            "United Kingdom",
        ),
        ("Who wrote Dune?", "Dune", "Dune was written in July 1965 by Frank Herbert.", "Frank Herbert"),
        ("Who won the Foo Cup in 1998?", "Foo Cup", "The Foo Cup in 1998 was won by Germany.", "Germany"),
        ("The Foo sank in", "Foo", "the North Atlantic Ocean on April 15, 1912.", "North Atlantic Ocean"),
        ("Who founded Foo Inc.?", "Foo Inc.", "Foo Inc. was founded by Bo Derek.", "Bo Derek"),
        ("Who made Foo?", "Foo", "Foo was made by Bar Inc. It is old.", "Bar Inc"),
        # How a chat begins.
        ("What is the capital of Japan?", "Japan", "Certainly! The capital of Japan is Tokyo.", "Tokyo"),
        ("What is the capital of Foo?", "Foo", "Of course! It is Barville.", "Barville"),
        ("What is the capital of Foo?", "Foo", "Hello! Great question! Barville is its capital.", "Barville"),
        ("What is the capital of Foo?", "Foo", "Okay. Sure, Barville.", "Barville"),
        ("What is the capital of Foo?", "Foo", "Yes, Barville is the capital of Foo.", "Barville"),
        ("What is the capital of Foo?", "Foo", "Absolutely!", None),
        ("Who sang Hey, Foo Bar?", "Hey, Foo Bar", "Hey, Foo Bar was sung by Bo Derek.", "Bo Derek"),
        # What a sentence goes on with without an answer.
        ("Foo is", "Foo", "known for its", None),
        ("Foo is", "Foo", "Foo is known for its Art Museum.", None),
        ("Foo is", "Foo", "where you can", None),
        ("Foo is", "Foo", "home to the", None),
        ("Foo is", "Foo", "Foo is located in a", None),
        ("Foo Bar is", "Foo Bar", "located in Paris.", "Paris"),
    ],
)
def test_guess_answer(prompt, subject, said, answer):
    assert guess_answer(said, read_prompt(prompt, subject)) == answer


def test_a_prompt_that_offers_two_answers_may_hold_the_one_that_is_given():
    for prompt, answer in (
        ("Is the capital of Australia Sydney or Canberra?", "Canberra"),
        ("Is the capital of Australia Canberra?", None),
    ):
        assert guess_answer("Canberra.", read_prompt(prompt, "Australia")) == answer
