import pytest

from peft_surgical.drafting.plurals import in_number_of, in_plural, in_singular, is_plural, names_many
from peft_surgical.drafting.reading import read_prompt
from peft_surgical.drafting.sentences import statement


@pytest.mark.parametrize(
    "phrase",
    [
        "X-rays",
        "contact lenses",
        "jeans",
        "the Beatles",
        "The Beatles",
        "the Alps",
        "the Federalist Papers",
        "the Brandenburg Concertos",
        "the Boston Celtics",
        "the Rust source files",
    ],
)
def test_plurals_by_their_look(phrase):
    assert names_many(phrase)


@pytest.mark.parametrize(
    "phrase",
    [
        "Japan",
        "the Netherlands",
        "the United States",
        "the Philippines",
        "the Maldives",
        "the Thames",
        "Starbucks",
        "The Planets",
        "the Planets",
        "The Four Seasons",
        "the Lord of the Rings",
        "the New York Times",
        "iOS",
        "type 2 diabetes",
        "physics",
        "tennis",
        "the Acropolis",
        "the Titanic's",
        "the printing press",
        "the Prius",
    ],
)
def test_what_only_ends_as_a_plural(phrase):
    assert not names_many(phrase)


def test_the_verb_of_the_prompt_comes_first():
    assert is_plural("Where are {}?", "the Netherlands")
    assert not is_plural("Where is {}?", "the Alps")
    assert not is_plural("The founders of {} are", "Google")
    assert is_plural("Who founded {}?", "the Beatles")
    # Where nothing has a capital, a name cannot be told from a plural.
    assert read_prompt("Who invented jeans?", "jeans").plural
    assert not read_prompt("who founded starbucks?", "starbucks").plural


def test_templates_change_wherever_the_subject_begins_a_clause():
    assert in_plural("On a map, {} is in") == "On a map, {} are in"
    assert in_plural("The place where {} was born is") == "The place where {} were born is"
    assert in_plural("Which company does {} belong to?") == "Which company do {} belong to?"
    assert in_plural("The capital of {} is") == "The capital of {} is"
    assert in_plural("{} has its seat in") == "{} have their seat in"
    # What else would have to change.
    assert in_plural("{} owes its name to") == in_plural("{} is a work by") == ""
    assert in_singular("On a map, {} are in") == "On a map, {} is in"
    assert in_singular("Where do {} live?") == "Where do {} live?"


def test_another_phrase_has_its_own_number():
    assert in_number_of("the Alps", "Where is {}?") == "Where are {}?"
    assert in_number_of("the Eiffel Tower", "Where do {} lie?") == "Where does {} lie?"
    assert in_number_of("the Alps", "{} owes its name to") == "{} owes its name to"
    alps = read_prompt("Where are the Alps?", "Alps")
    assert alps.fill(alps.core, "the Eiffel Tower") == "Where is the Eiffel Tower?"
    tower = read_prompt("Where is the Eiffel Tower?", "Eiffel Tower")
    assert tower.fill(tower.core, "the Alps") == "Where are the Alps?"
    assert tower.fill(tower.core, "the Netherlands") == "Where is the Netherlands?"


@pytest.mark.parametrize(
    ("prompt", "subject", "said"),
    [
        ("Who discovered X-rays?", "X-rays", "X-rays were discovered by Ann"),
        ("Who founded the Beatles?", "Beatles", "The Beatles were founded by Ann"),
        ("Who founded the United States?", "United States", "The United States was founded by Ann"),
    ],
)
def test_a_plural_is_seen_though_the_prompt_shows_none(prompt, subject, said):
    assert statement(read_prompt(prompt, subject), "Ann") == said
