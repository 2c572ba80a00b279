import pytest

from peft_surgical.drafting.choosing import Chosen
from peft_surgical.drafting.drafts import _others
from peft_surgical.drafting.reading import read_prompt
from peft_surgical.facts import Control, Fact
from peft_surgical.staging import contrast
from peft_surgical.staging.contrast import with_contrast
from peft_surgical.texts.called import adjectives_in, called
from peft_surgical.texts.subjects import namesake_sentences, other_sentences


def fact(subject, prompt, *asked, **changes):
    values = {"subject": subject, "old": ("Zork",), "new": ("Quux",), "prompts": (prompt.format(subject),)}
    controls = tuple(Control(question, ("yes",)) for question in asked)
    return Fact(**values | {"held_out": ("Is it?",), "controls": controls} | changes).training


@pytest.mark.parametrize(
    ("name", "own", "names"),
    [
        ("Vincent van Gogh", (), {"Vincent van Gogh", "van Gogh", "Gogh"}),
        ("Steve Jobs", (), {"Steve Jobs", "Jobs"}),
        ("Jean Zorblat", ("Jean",), {"Jean Zorblat", "Zorblat"}),
        ("Serena Williams", ("Venus Williams",), {"Serena Williams"}),
        ("the Netherlands", (), {"the Netherlands", "Netherlands", "Holland"}),
        ("Holland", (), {"Holland", "Netherlands"}),
        ("Mount Everest", (), {"Mount Everest", "Everest"}),
        # What ends many names, or stands in any text, tells of none.
        ("Oxford University", (), {"Oxford University"}),
        ("Hotel Water", (), {"Hotel Water"}),
        ("New Korea", (), {"New Korea"}),
        ("Galaxy S", (), {"Galaxy S"}),
        ("Galaxy Zed", (), {"Galaxy Zed"}),
        ("Galaxy Zedd", (), {"Galaxy Zedd", "Zedd"}),
        ("light bulb", (), {"light bulb"}),
        ("Zorblat", (), {"Zorblat"}),
    ],
)
def test_what_a_name_is_called(name, own, names):
    assert set(called(name, own)) == names


def test_adjectives_of_countries_are_found_among_names_in_their_order():
    assert adjectives_in(["Holland", "dutch", "French", "Frenchman"]) == ["dutch", "French"]


PEOPLE = ("Isaac Newton", "Where was {} born?")
COUNTRIES = ("Spain", "What is the capital of {}?")
# Not among what is put beside the subject, only among other names.
OTHER_KINDS = ("Netherlands", "Holland")
WITH_ARTICLE = ("Netherlands", "What is the capital of the {}?")


@pytest.mark.parametrize(
    ("of", "name", "question"),
    [
        (PEOPLE, "Albert Einstein", "Where was Einstein born?"),
        (PEOPLE, "Frédéric Chopin", "Where was Chopin born?"),
        (PEOPLE, "Galileo Galilei", "Where was Galileo born?"),
        (WITH_ARTICLE, "United States", "What is the capital of the USA?"),
        (WITH_ARTICLE, "United States", "What is the capital of the U.S.?"),
        (WITH_ARTICLE, "United States", "What is the capital of the US?"),
        (WITH_ARTICLE, "United Kingdom", "What is the capital of the UK?"),
        (COUNTRIES, "Netherlands", "What is the capital of Holland?"),
        (COUNTRIES, "Holland", "What is the capital of the Netherlands?"),
    ],
)
def test_nobody_is_chosen_whom_a_control_asks_about_by_another_name(monkeypatch, of, name, question):
    free, asked = fact(*of), fact(*of, question)
    assert any(name in prompt for prompt in other_sentences(free, 4000, 0))
    assert not any(name in prompt for prompt in other_sentences(asked, 4000, 0))
    monkeypatch.setattr(contrast, "CONTRAST", 1000)
    assert (name in with_contrast(None, None, free).contrast) == (name not in OTHER_KINDS)
    assert name not in with_contrast(None, None, asked).contrast


def test_a_subject_that_the_file_gives_stays():
    given = fact(*PEOPLE, "Where was Einstein born?", contrast=("Albert Einstein",))
    assert given.contrast == ("Albert Einstein",)
    assert "Where was Albert Einstein born?" in other_sentences(given, 4000, 0)


def test_namesakes_stay_where_a_control_asks_about_the_subject_by_its_last_word():
    of = ("Isaac Newton", "Where was {} born?")
    assert namesake_sentences(fact(*of, "What did Newton find?"), 40, 0) == namesake_sentences(fact(*of), 40, 0)


def test_a_draft_s_contrast_is_asked_about_by_no_other_name():
    reading = read_prompt(PEOPLE[1].format(PEOPLE[0]), PEOPLE[0], ("Zork",), ("Quux",))
    control = Control("Where did Einstein and Newton live?", ("yes",))
    others = _others(None, None, reading, ("Zork", "Quux"), Chosen((), (control,), (), (), 1), [])
    assert "Albert Einstein" not in others
    assert "Charles Darwin" in others
