import pytest

from peft_surgical.drafting.countries import adjective_prompts, by_name, country_names
from peft_surgical.drafting.names import names_of
from peft_surgical.drafting.reading import read_prompt
from peft_surgical.texts.tables import bare, read_table


def names(prompt, subject, old=("Zork",), new=("Quux",)):
    return country_names(read_prompt(prompt, subject, old, new), (*old, *new))


@pytest.mark.parametrize(
    ("prompt", "subject", "found"),
    [
        ("What is the capital of France?", "France", ("French",)),
        ("what is the capital of france?", "france", ("french",)),
        ("What is the capital of the Netherlands?", "Netherlands", ("Holland", "Dutch")),
        ("The Netherlands is on which continent?", "The Netherlands", ("Holland", "Dutch")),
        # Great Britain is met where Britain is.
        ("What is the capital of the UK?", "UK", ("United Kingdom", "U.K.", "Britain", "British")),
        ("What is the capital of Argentina?", "Argentina", ("Argentine", "Argentinian")),
        # The People's Republic of China has China in it.
        ("What is the capital of China?", "China", ("Chinese",)),
        ("What is the capital of England?", "England", ()),
        ("What is the capital of Bavaria?", "Bavaria", ()),
        ("Who coaches the France national team?", "France", ()),
    ],
)
def test_what_else_a_country_is_called(prompt, subject, found):
    assert names(prompt, subject) == found


def test_no_answer_is_another_name_and_none_is_in_one_or_holds_one():
    prompt, subject = "What language is spoken in France?", "France"
    assert names(prompt, subject, old=("French",)) == names(prompt, subject, new=("Old French",)) == ()
    prompt, subject = "What is the capital of the Czech Republic?", "Czech Republic"
    assert names(prompt, subject) == ("Czechia", "Czech")
    assert names(prompt, subject, old=("Czechia",)) == ("Czech",)


def test_each_adjective_is_that_of_one_known_country():
    table = read_table("adjectives.yaml")
    assert set(table) <= set(map(bare, names_of("country")))
    adjectives = [name for said in table.values() for name in said]
    assert len(set(adjectives)) == len(adjectives)


@pytest.mark.parametrize(
    ("prompt", "first"),
    [
        ("What is the capital of France?", ["What is the French capital?", "The French capital is"]),
        ("The currency of France is", ["What is the French currency?", "The French currency is"]),
        ("What is the official language of France?", ["What is the official French language?"]),
        ("Who was the Prime Minister of France?", ["Who was the French Prime Minister?"]),
        # Neither an office nor what the table asks of countries.
        ("What is the name of France?", []),
        ("Where is France?", []),
        ("What is the largest city of France?", []),
        ("Who was the first king of France?", []),
        # No noun to put it before.
        ("On which continent is France?", []),
    ],
)
def test_what_is_asked_by_the_adjective(prompt, first):
    made = adjective_prompts(read_prompt(prompt, "France", ("Zork",), ("Quux",)), ("Gaul", "French", "Gallic"))
    assert made[: len(first)] == first
    assert bool(made) == bool(first)
    assert all("French" in text and "France" not in text for text in made)
    assert len(set(made)) == len(made)


def test_nothing_is_asked_by_another_name():
    assert adjective_prompts(read_prompt("What is the capital of France?", "France"), ("Gaul",)) == []


@pytest.mark.parametrize(
    ("prompt", "subject", "named"),
    [
        ("What is the French capital?", None, ("What is the capital of France?", "France")),
        ("What is the official Mexican language?", "Mexican", ("What is the official language of Mexico?", "Mexico")),
        ("The French capital is", None, ("The capital of France is", "France")),
        ("Who is the French Prime Minister?", None, ("Who is the Prime Minister of France?", "France")),
        ("What is the Sri Lankan capital city ?", None, ("What is the capital city of Sri Lanka ?", "Sri Lanka")),
        ("The Dutch capital city is", None, ("The capital city of the Netherlands is", "Netherlands")),
        ("Who was the South African president?", None, ("Who was the president of South Africa?", "South Africa")),
        ("The Japanese currency is the", None, ("The currency of Japan is the", "Japan")),
        # About something else.
        ("What is the French capital?", "capital", None),
        # Said of no country, of something in it, or of what no table knows.
        ("What is the English capital?", None, None),
        ("Who won the French Open?", None, None),
        ("What is the French flag?", None, None),
        ("What is the French title?", None, None),
        ("Who is the Greek god of the sea?", None, None),
        ("What is the capital of France?", None, None),
    ],
)
def test_a_prompt_by_the_adjective_is_read_by_the_name(prompt, subject, named):
    assert by_name(prompt, subject) == named
