import pytest

from peft_surgical.drafting.names import aliases, kinds_of, names_of, neighbours_of
from peft_surgical.texts.tables import read_table
from peft_surgical.texts.text import same_text_key


def test_kinds():
    assert "country" in kinds_of(["france"])
    assert {"country", "place"} <= kinds_of(["Netherlands"])
    assert kinds_of(["1889"]) == {"year"}
    assert kinds_of(["no such name"]) == frozenset()
    assert "painting" in kinds_of(["Mona Lisa"])
    assert kinds_of(["The Beatles"]) == kinds_of(["the Beatles"]) == kinds_of(["Beatles"]) == {"band"}
    assert kinds_of(["The Netherlands"]) == kinds_of(["the Netherlands"])
    # Who develops software may be a person: it is not taken for a company.
    assert "company" not in kinds_of(["Linus Torvalds"])


def test_aliases():
    assert aliases("The Netherlands") == ("The Netherlands", *aliases("the Netherlands")[1:])
    assert aliases("IBM") == ("IBM", "International Business Machines")
    assert aliases("Leonardo da Vinci", person=True) == ("Leonardo da Vinci", "da Vinci", "Leonardo")
    assert aliases("Ada Lovelace", person=True) == ("Ada Lovelace", "Lovelace")
    assert aliases("Ada Lovelace") == aliases("Ada Lovelace", person=False) == ("Ada Lovelace",)
    assert aliases("Rembrandt", person=True)[0] == "Rembrandt"
    assert aliases("the Foo of Bar and Baz", person=True) == ("the Foo of Bar and Baz",)


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("Marine Le Pen", "Le Pen"),
        ("John le Carré", "le Carré"),
        ("Ursula von der Leyen", "von der Leyen"),
        ("Brian De Palma", "De Palma"),
        ("The Rolling Stones", "Rolling Stones"),
        ("Imagine Dragons", None),
        ("Arctic Monkeys", None),
        ("Wachowski Sisters", None),
        ("Robin Williams", "Williams"),
        ("Steve Jobs", "Jobs"),
        ("Queen Elizabeth II", None),
        ("Robert Downey Jr.", None),
        ("Kim Jong Un", None),
        ("Jorge PAZ", None),
        ("New Zealand", None),
        ("South Africa", None),
        ("Manchester United", None),
        ("Meta Platforms", None),
        ("Google Brain Team", None),
        ("Brian May", None),
        ("Tim Cook", None),
        ("Patrick White", None),
    ],
)
def test_family_names(name, family):
    assert aliases(name, person=True)[1:] == ((family,) if family else aliases(name)[1:])


def test_a_family_name_that_the_prompt_holds_is_none_of_the_aliases():
    assert aliases("Michelle Obama", person=True) == ("Michelle Obama", "Obama")
    asked = "Who is Barack Obama married to?"
    assert aliases("Michelle Obama", person=True, asked=asked) == ("Michelle Obama",)


def test_groups_of_aliases_name_a_thing_once():
    for group in read_table("aliases.yaml"):
        assert len({same_text_key(name) for name in group}) == len(group)
    firsts = [same_text_key(group[0]) for group in read_table("aliases.yaml")]
    assert len(set(firsts)) == len(firsts)


def test_tables_of_what_is_not_known_are_empty():
    assert names_of("colour of shoes") == ()
    assert neighbours_of("") == {}


def test_a_small_name_in_a_prompt_with_capitals_is_none_with_a_capital():
    assert kinds_of(["python"], "How long does a python live?") == frozenset()
    assert kinds_of(["sky"], "Why is the sky blue?") == frozenset()
    assert "software" in kinds_of(["python"], "who developed python?")
    assert "software" in kinds_of(["Python"], "Who developed Python?")
    assert "invention" in kinds_of(["telephone"], "Who invented the telephone?")


def test_an_alias_that_names_the_company_alone_is_none_of_the_river():
    assert aliases("Amazon") == ("Amazon",)


def test_a_people_is_no_language():
    assert "language" in kinds_of(["Chinese"])
    assert not kinds_of(["the Chinese", "the French"])
    assert "country" in kinds_of(["the Netherlands"])
    assert aliases("the Chinese") == ("the Chinese",)
    assert aliases("Chinese") == ("Chinese", "Mandarin")


def test_a_first_name_that_looks_like_a_particle_is_no_part_of_a_family_name():
    assert aliases("Van Zorblat", person=True) == ("Van Zorblat", "Zorblat")
    assert aliases("Jan van Zorblat", person=True) == ("Jan van Zorblat", "van Zorblat")


@pytest.mark.parametrize("name", ["Robert Zorblat Jr.", "Weird Al Jr.", "Bo Zorblat Sr", "Kim Zor Un", "Zorblat II"])
def test_an_ending_is_no_family_name(name):
    assert aliases(name, person=True) == (name,)
