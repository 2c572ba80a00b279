import pytest

from peft_surgical.texts.verbs import participle, past_of_participle, past_tense, place_of_verb, third_person


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
    ],
)
def test_which_word_is_the_verb(words, owned, place):
    assert place_of_verb(words, owned=owned) == place
