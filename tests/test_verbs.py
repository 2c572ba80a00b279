import pytest

from peft_surgical.texts.verbs import (
    has_adverb,
    is_finite,
    participle,
    past_of_participle,
    past_tense,
    place_of_verb,
    third_person,
)


@pytest.mark.parametrize(
    ("verb", "past"),
    [
        ("cost", "cost"),
        ("overcome", "overcame"),
        ("undergo", "underwent"),
        ("upset", "upset"),
        ("hurt", "hurt"),
        ("split", "split"),
        ("quit", "quit"),
        ("bet", "bet"),
        ("rebuild", "rebuilt"),
        ("prefer", "preferred"),
        ("admit", "admitted"),
        ("commit", "committed"),
        ("occur", "occurred"),
        ("refer", "referred"),
        ("offer", "offered"),
        ("limit", "limited"),
        ("enter", "entered"),
    ],
)
def test_past_tense(verb, past):
    assert past_tense(verb) == past


def test_verbs():
    pasts = {
        "write": "wrote",
        "die": "died",
        "study": "studied",
        "stop": "stopped",
        "play": "played",
        "visit": "visited",
    }
    assert {verb: past_tense(verb) for verb in pasts} == pasts
    thirds = {"study": "studies", "have": "has", "play": "plays", "teach": "teaches", "go": "goes", "speak": "speaks"}
    assert {verb: third_person(verb) for verb in thirds} == thirds
    assert (participle("wrote"), participle("developed"), participle("blue")) == ("written", "developed", None)
    assert (past_of_participle("written"), past_of_participle("painted")) == ("wrote", "painted")
    assert past_of_participle("blue") is None


@pytest.mark.parametrize(
    ("words", "owned", "place"),
    [
        ([], False, None),
        (["cost"], False, 0),
        (["plan", "cost"], False, 1),
        (["find", "work"], False, 0),
        (["store", "data"], False, None),
        (["father", "go"], True, 1),
        (["billing", "services", "use"], True, 2),
        (["father", "work", "hours"], True, None),
    ],
)
def test_which_word_is_the_verb(words, owned, place):
    assert place_of_verb(words, owned=owned) == place


@pytest.mark.parametrize(
    ("word", "following", "finite"),
    [
        ("sank", "in", True),
        ("wrote", "by", True),
        ("built", "in", True),
        ("built", "by", False),
        ("sunk", "in", False),
    ],
)
def test_before_by_a_form_that_is_also_a_participle_is_no_verb_of_its_own(word, following, finite):
    assert is_finite(word, following) == finite


def test_an_adverb_behind_a_noun():
    assert all(map(has_adverb, ("astronaut first", "astronaut first sent", "man recently")))
    assert not any(map(has_adverb, ("first astronaut", "woolly mammal", "bird family", "")))
