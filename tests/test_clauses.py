import pytest

from peft_surgical.drafting.clauses import from_clause
from peft_surgical.drafting.paraphrases import held_out_prompts, only_repeats, paraphrases
from peft_surgical.drafting.reading import read_prompt
from peft_surgical.drafting.relations import Wordings
from peft_surgical.drafting.ways import prompts_by_way
from peft_surgical.texts.verbs import has_adverb


@pytest.mark.parametrize(
    ("prompt", "subject", "old", "sentence"),
    [
        ("How tall is Mount Everest?", "Mount Everest", "8,849 m", "The height of Mount Everest is"),
        ("How long is a marathon?", "marathon", "42 km", "The length of a marathon is"),
        ("What colour is the sky on Mars?", "Mars", "red", "The colour of the sky on Mars is"),
        ("How much does the Acme Pro plan cost?", "Acme Pro", "$10", "The price of the Acme Pro plan is"),
        ("When did World War II end?", "World War II", "1945", "World War II ended in"),
        ("When is Christmas celebrated?", "Christmas", "25 December", "Christmas is celebrated on"),
        ("When does the Acme store open?", "Acme", "9 am", "The Acme store opens at"),
        ("Which river flows through Vienna?", "Vienna", "Danube", "The river that flows through Vienna is"),
        ("Which club does Ann play for?", "Ann", "Ajax", "The club that Ann plays for is"),
        ("How many moons does Mars have?", "Mars", "two", "The number of moons that Mars has is"),
        ("How many planets are in Foo?", "Foo", "two", "The number of planets in Foo is"),
        ("Where do koalas live?", "koalas", "Australia", "The place where koalas live is"),
        ("Why is the sky blue?", "sky", "light", "The reason why the sky is blue is"),
        ("Who hosts Foo?", "Foo", "Ann", "The one who hosts Foo is"),
        ("How many legs does a spider have?", "spider", "eight", "The number of legs of a spider is"),
        ("In which month is Halloween?", "Halloween", "October", "Halloween is in"),
        ("Which month is Halloween in?", "Halloween", "October", "Halloween is in"),
        ("What do pandas eat?", "pandas", "bamboo", "What pandas eat is"),
        ("Which gas do plants absorb?", "plants", "oxygen", "The gas that plants absorb is"),
        ("What genre is Dune?", "Dune", "fantasy", "The genre of Dune is"),
        ("Who is known as the father of Foo?", "Foo", "Ann", "The one who is known as the father of Foo is"),
        ("What is the oldest tree on Earth?", "oldest tree", "Foo", "The oldest tree in the world is"),
        ("What is Idaho famous for?", "Idaho", "potatoes", "Idaho is famous for"),
        ("Who was the head of Foo during the war?", "Foo", "Ann", "The head of Foo during the war was"),
        ("What was the capital of Foo in 1980?", "Foo", "Bar", "The capital of Foo in 1980 was"),
        ("What was the capital of Foo in 1980?", "Foo", "Bar", "In 1980, the capital of Foo was"),
    ],
)
def test_a_question_is_turned_into_a_sentence(prompt, subject, old, sentence):
    reading = read_prompt(prompt, subject, [old], [old])
    assert sentence in map(reading.fill, reading.wordings().sentences)
    held_out = held_out_prompts(prompt, subject, old, old, count=200)
    # "the place where ..." holds the clause.
    assert only_repeats(reading, held_out) is prompt.startswith(("Where", "Why"))
    assert not set(held_out) & set(paraphrases(prompt, subject, old, old, count=1000))


@pytest.mark.parametrize(
    ("prompt", "subject", "question"),
    [
        ("Which river flows through Vienna?", "Vienna", "What river flows through Vienna?"),
        ("Which river flows through Vienna?", "Vienna", "Which river is it that flows through Vienna?"),
        ("Which river flows through Vienna?", "Vienna", "Vienna river"),
        ("How many legs does a spider have?", "spider", "A spider has how many legs?"),
        ("In which month is Halloween?", "Halloween", "Which month is Halloween in?"),
        ("In which month is Halloween?", "Halloween", "Halloween is in which month?"),
        ("What is a baby cow called?", "cow", "What is the word for a baby cow?"),
        ("What is Foo the god of?", "Foo", "Of what is Foo the god?"),
        ("What is Foo the god of?", "Foo", "Foo is the god of what?"),
        ("Who was the head of Foo during the war?", "Foo", "During the war, who was the head of Foo?"),
        ("Who painted the Mona Lisa?", "Mona Lisa", "Who is the artist who painted the Mona Lisa?"),
        ("Who painted the Mona Lisa?", "Mona Lisa", "What is the name of the Mona Lisa's painter?"),
        ("Who painted the Mona Lisa?", "Mona Lisa", "Mona Lisa artist"),
        ("Who painted the Mona Lisa?", "Mona Lisa", "Painter of Mona Lisa?"),
        ("Where is Foo based?", "Foo", "Foo is based where?"),
        ("Who is the mayor of Foo?", "Foo", "Mayor of Foo?"),
        ("Who is the mayor of Foo?", "Foo", "Foo mayor"),
        ("Who is the mayor of Foo?", "Foo", "What is the name of the mayor of Foo?"),
    ],
)
def test_a_question_in_other_words_for_training_alone(prompt, subject, question):
    assert question in paraphrases(prompt, subject, "Bar", "Baz", count=1000)
    assert question not in held_out_prompts(prompt, subject, "Bar", "Baz", count=1000)


def test_nobody_asks_for_the_name_of_many_or_of_what_has_none():
    asked = [
        paraphrases("Who are the members of Foo?", "Foo", "Ann", "Bob", count=1000),
        paraphrases("What is the price of Foo?", "Foo", "$10", "$20", count=1000),
    ]
    assert not any("What is the name" in prompt for prompts in asked for prompt in prompts)


@pytest.mark.parametrize(
    "prompt",
    [
        "When was Foo?",
        "On which street is Foo?",
        "Which video games company makes Foo?",
        "What do you call a young Foo?",
        "When did Foo end?",
        "Which two countries share Foo?",
        "Is Foo old?",
    ],
)
def test_what_is_not_sure_is_left_alone(prompt):
    reading = read_prompt(prompt, "Foo", ["spring"], ["autumn"])
    assert reading.wordings().sentences == ()
    assert only_repeats(reading, held_out_prompts(prompt, "Foo", "spring", "autumn"))


def test_frames_that_do_not_fit_an_answer():
    def made(prompt, old, subject="Foo"):
        return paraphrases(prompt, subject, old, old, count=2000)

    assert "Name the mascot of Foo." in made("What is the mascot of Foo?", "Bear")
    assert not any(p.startswith(("Name", "Can you name")) for p in made("What is the population of Foo?", "380,000"))
    names = [p for p in made("What is the name of Foo's owl?", "Hedwig") if p.startswith("Name")]
    assert names == ["Name of Foo's owl?"]
    president = made("Who is the president of Foo?", "Ann")
    assert "Do you know who the president of Foo is?" in president
    assert not {"Do you know the president of Foo?", "Do you remember the president of Foo?"} & set(president)
    assert "Give me the names of the founders of Foo." in made("Who are the founders of Foo?", "Ann")
    assert not any("hot's" in p for p in made("What is the opposite of hot?", "cold", "hot"))
    assert any("Foo's mascot" in p for p in made("What is the mascot of Foo?", "Bear"))


@pytest.mark.parametrize(
    "prompt",
    [
        "Which astronaut first walked on Foo?",
        "Which team first won Foo?",
        "Which scientist later won Foo?",
        "Which animal mostly eats Foo?",
        "Which company first made Foo?",
    ],
)
def test_an_adverb_before_the_verb_is_neither_part_of_the_noun_nor_left_out(prompt):
    reading = read_prompt(prompt, "Foo", ["Ann"], ["Bob"])
    assert reading.wordings() == reading.wordings(held_out=True) == Wordings()


def test_words_that_only_look_like_adverbs_are_nouns():
    reading = read_prompt("Which royal family lives in Foo?", "Foo", ["Grimaldi"], ["Windsor"])
    assert reading.wordings().sentences == ("The royal family that lives in {} is",)
    assert not has_adverb("first lady")
    reading = read_prompt("Which woolly mammal lived on Foo?", "Foo", ["mammoth"], ["rhino"])
    assert reading.wordings().sentences == ("The woolly mammal that lived on {} is",)


@pytest.mark.parametrize(
    ("prompt", "old", "question"),
    [
        ("Which actor starred in Foo?", "Ann", "Who is the actor who starred in Foo?"),
        ("Which king lived in Foo?", "Ann", "Who is the king who lived in Foo?"),
        ("Under which king was Foo built?", "Ann", "Who was the king under whom Foo was built?"),
        ("Which airport serves Foo?", "Marie Curie", "What is the airport that serves Foo?"),
    ],
)
def test_persons_are_asked_for_by_who(prompt, old, question):
    reading = read_prompt(prompt, "Foo", [old], [old])
    assert question in map(reading.fill, reading.wordings().questions)


def test_that_something_was_in_a_year_says_as_little_as_where():
    assert from_clause("When was the Battle of {}?", ["1815"]) == (Wordings(), Wordings())
    assert from_clause("When did {} die?", ["1815"]) != (Wordings(), Wordings())


def test_nobody_is_asked_to_tell_where_you_find_something():
    for held_out in (False, True):
        made = prompts_by_way(read_prompt("Where do you find koalas?", "koalas"), held_out=held_out)
        assert made["frame"]
        assert not [prompt for prompts in made.values() for prompt in prompts if "where you find" in prompt.lower()]
