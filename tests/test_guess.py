import pytest

from peft_surgical.drafting import guess
from peft_surgical.drafting.guess import guess_subject
from peft_surgical.drafting.names import names_of
from peft_surgical.drafting.others import swappable
from peft_surgical.drafting.reading import read_prompt
from peft_surgical.errors import FactError
from peft_surgical.texts.tables import bare

REQUESTS = ("Provide", "Recall", "Remind me of", "List", "Find", "Specify", "Write down", "Explain", "Guess",
            "Describe", "Show me", "Mention", "Please provide")  # fmt: skip


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
        ("What is the freezing point of water in degrees Celsius?", "water"),
        ("How tall is Mount Everest in metres?", "Mount Everest"),
        ("What is the largest desert in the world?", "largest desert"),
        ("The second most spoken language on Earth is", "second most spoken language"),
        ("What is the longest river in Africa?", "Africa"),
        ("Who wrote 'the greatest show on earth'?", "the greatest show on earth"),
        ("Who is the CEO of Apple?", "Apple"),
        ("what is the boiling point of water?", "water"),
        ('Which dance is called "the worm"?', "the worm"),
        ("Does Norway have a king?", "Norway"),
        ("Is J. K. Rowling alive?", "J. K. Rowling"),
        ("Is J.R.R. Tolkien alive?", "J.R.R. Tolkien"),
        ("In Greek mythology, who is the father of Zeus?", "Zeus"),
        ("In French cuisine, what is the main ingredient of ratatouille?", "ratatouille"),
        ("In English, what is the plural of goose?", "goose"),
        ("In Texas, what is the name of the capital?", "Texas"),
        ("In Finding Nemo, who is the blue fish?", "Finding Nemo"),
        ("According to Hesiod, who is the father of Zeus?", "Zeus"),
        ("In France, what is the capital?", "France"),
        ("Is Dr. Seuss alive?", "Dr. Seuss"),
        ("Which country won the 2018 World Cup?", "2018 World Cup"),
        ("Who lives at 10 Downing Street?", "10 Downing Street"),
        ("In 1945 Germany was led by", "Germany"),
        ("Who directed 12 Angry Men?", "12 Angry Men"),
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
        # No question word, auxiliary or preposition at the beginning of a sentence is a name.
        ("Under which licence is Linux released?", "Linux"),
        ("Through which country does the Danube flow first?", "Danube"),
        ("Has Leonardo DiCaprio won an Oscar?", "Leonardo DiCaprio"),
        ("Whats the capital of Kenya", "Kenya"),
        # The sentence that asks has the subject.
        ("I am planning a trip. What is the capital of Peru?", "Peru"),
        ("Who wrote Dune? Answer briefly.", "Dune"),
        ("Question: What is the capital of Peru? Answer:", "Peru"),
        ("Dune is great. Who wrote it?", "Dune"),
        ("How tall is Mt. Everest?", "Everest"),
        # A name goes on to the left.
        ("Who is the CEO of Bank of America?", "Bank of America"),
        ("What is the motto of the University of Oxford?", "University of Oxford"),
        ("Who is the president of the Republic of Ireland?", "Republic of Ireland"),
        ("Name the CEO of Bank of America.", "Bank of America"),
        ("Who is the Prime Minister of Canada?", "Canada"),
        # Marks and digits belong to a name where nothing else is left open.
        ("Who directed Star Wars: A New Hope?", "Star Wars: A New Hope"),
        ("Who directed Star Wars: A New Hope in 1977?", "Star Wars: A New Hope"),
        ("Who directed 2001: A Space Odyssey?", "2001: A Space Odyssey"),
        ("Who directed Mission: Impossible?", "Mission: Impossible"),
        ("Who directed The Good, the Bad and the Ugly?", "The Good, the Bad and the Ugly"),
        ("Who directed Who Framed Roger Rabbit?", "Who Framed Roger Rabbit"),
        ("Who is the mayor of Washington, D.C.?", "Washington, D.C."),
        ("Who developed C#?", "C#"),
        ("Is C++ older than Go?", "C++"),
        ("Who sang 99 Luftballons?", "99 Luftballons"),
        ("Who wrote One hundred years of solitude?", "One hundred years of solitude"),
        ("Who wrote Dune, the novel?", "Dune"),
        ("Who painted the Mona Lisa, the famous portrait in the Louvre?", "Mona Lisa"),
        ("What is the name of Harry Potter's owl?", "Harry Potter"),
        ("Who is the CEO of Apple as of 2023?", "Apple"),
        ("Which dance is called \u2018the worm\u2019?", "the worm"),
        ("Which dance is called *the worm*?", "the worm"),
        ("What is the young of a cow called?", "cow"),
        # A full stop that belongs to the end of a name.
        ("Where was Martin Luther King Jr. born?", "Martin Luther King Jr."),
        ("Who founded Apple Inc.?", "Apple Inc."),
        ("Name the founder of Apple Inc.", "Apple Inc."),
        ("What did Sammy Davis Jr. sing?", "Sammy Davis Jr."),
        ("What is Apple Inc.'s headquarters?", "Apple Inc."),
        ("Is Toyota Motor Corp. a company?", "Toyota Motor Corp."),
        # Whatever verb requests it, and names that begin with such a verb.
        *((f"{verb} the capital of Peru.", "Peru") for verb in REQUESTS),
        ("provide the capital of peru", "peru"),
        ("Provide Norway's capital.", "Norway"),
        ("Recall Peru.", "Peru"),
        ("Remind me who wrote Emma.", "Emma"),
        ("I want to know the currency of Sweden.", "Sweden"),
        ("Guess what Norway's capital is.", "Norway"),
        ("Guess Who was formed in", "Guess Who"),
        ("Who sang for the Guess Who?", "Guess Who"),
        ("Who wrote The List?", "List"),
        ("Show Me Love was sung by", "Show Me Love"),
        ("Finding Nemo was directed by", "Finding Nemo"),
        # Straight single marks, and apostrophes that are none.
        ("Who directed 'Pulp Fiction' in 1994?", "Pulp Fiction"),
        ("Which actor starred in 'Forrest Gump'?", "Forrest Gump"),
        ("In what year was 'Nineteen Eighty-Four' published?", "Nineteen Eighty-Four"),
        ("Who sang '99 Problems'?", "99 Problems"),
        ("Who painted 'The Starry Night'?", "The Starry Night"),
        ("Who sang 'Thriller'?", "Thriller"),
        ("Who played Neo in 'The Matrix'?", "The Matrix"),
        ("Who directed 'Pan's Labyrinth'?", "Pan's Labyrinth"),
        ("Who wrote 'The Pilgrims' Way'?", "The Pilgrims' Way"),
        ("Who sang 'Don't Stop Believin''?", "Don't Stop Believin'"),
        ("Is 'Dune' older than 'Emma'?", "Dune"),
        ("Who invented rock 'n' roll?", "rock 'n' roll"),
        ("Who is Conan O'Brien?", "Conan O'Brien"),
        ("What was the '90s band Eagles' first album?", "Eagles"),
        # Without a capital, what stands behind the verb or a last preposition.
        ("Where do koalas live?", "koalas"),
        ("Where do polar bears live in winter?", "polar bears"),
        ("Why do onions make people cry?", "onions"),
        ("What does a polar bear eat?", "polar bear"),
        ("How many legs does a spider have?", "spider"),
        ("How long is a marathon?", "marathon"),
        ("Why is the sky blue?", "sky"),
        ("How far is the moon from the earth?", "moon"),
        ("What is a baby kangaroo called?", "baby kangaroo"),
        ("What is the hex code for red?", "red"),
        ("How many planets are in the solar system?", "solar system"),
        ("What do you call a young goose?", "young goose"),
        # The owner alone, and a name that begins with one.
        ("what is japan's capital", "japan"),
        ("whats japan's capital", "japan"),
        ("whats the language in mexico again?", "mexico"),
        ("what is a horse's tail made of", "horse"),
        ("what are the lions' names", "lions"),
        ("what is alzheimer's disease", "alzheimer's disease"),
    ],
)
def test_guess_subject(prompt, subject):
    assert guess_subject(prompt) == subject
    assert read_prompt(prompt, subject).subject == subject


@pytest.mark.parametrize("marks", ['""', "''", "\u201c\u201d", "\u2018\u2019"])
@pytest.mark.parametrize("subject", ["The Starry Night", "Starry Night"])
def test_quotation_marks_belong_to_what_others_take_the_place_of(marks, subject):
    title = f"{marks[0]}The Starry Night{marks[1]}"
    reading = read_prompt(f"Who painted {title}?", subject)
    assert (reading.phrase, reading.relation.name) == (title, "painter")
    assert reading.fill(reading.core, "the Mona Lisa") == "Who painted the Mona Lisa?"
    quoted = swappable(reading, ["the Mona Lisa", "Guernica"])
    assert quoted == (["Guernica"] if subject == "The Starry Night" else ["Mona Lisa"])


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


@pytest.mark.parametrize(
    "prompt",
    [
        "what is it called?",
        "How are you?",
        "Who is famous?",
        "What is the best way to cook rice?",
        "Is water wet?",
        "What are bees known for making?",
    ],
)
def test_a_question_whose_subject_is_not_sure(prompt):
    with pytest.raises(FactError, match="it is not clear what"):
        guess_subject(prompt)


def test_an_empty_prompt():
    with pytest.raises(FactError, match=r"the prompt is empty\."):
        guess_subject(" \n")


def test_the_parts_of_a_long_prompt_are_not_all_tried(monkeypatch):
    tried = []
    monkeypatch.setattr(guess, "is_worded", lambda template: tried.append(template))
    monkeypatch.setattr(guess, "is_of_something", lambda template: tried.append(template))
    assert guess_subject(" ".join(["so it went on and"] * 200) + " that is how Peru was named") == "Peru"
    assert len(tried) < 4000


def test_a_prompt_about_nothing_to_be_seen():
    with pytest.raises(FactError, match=r"it is not clear what the prompt 'why is it raining\?' is about; name"):
        guess_subject("why is it raining?")
