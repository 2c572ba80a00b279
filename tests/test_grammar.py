import pytest

from peft_surgical.drafting.grammar import (
    as_clause,
    participle,
    past_of_participle,
    past_tense,
    takes_possessive,
    third_person,
)


@pytest.mark.parametrize(
    ("question", "clause"),
    [
        ("Who developed {}?", "who developed {}"),
        ("What is the capital of {}?", "what the capital of {} is"),
        ("What's the capital of {}?", "what the capital of {} is"),
        ("What is {}'s capital?", "what {}'s capital is"),
        ("Which city is the capital of {}?", "which city is the capital of {}"),
        ("Who is behind {}?", "who is behind {}"),
        ("Where was {} born?", "where {} was born"),
        ("In which year did {} die?", "in which year {} died"),
        ("What sport does {} play?", "what sport {} plays"),
        ("How many moons does {} have?", "how many moons {} has"),
        ("When did {} sink?", "when {} sank"),
        ("When did the life of {} begin?", "when the life of {} began"),
        ("To which writer do we owe {}?", "to which writer we owe {}"),
        ("Which country has {} as its capital?", "which country has {} as its capital"),
        ("To what office has {} risen?", "to what office {} has risen"),
        ("Where can {} be found?", "where {} can be found"),
        ("Who was {} written by?", "who {} was written by"),
        ("Whose name is on the cover of {}?", "whose name is on the cover of {}"),
        ("Where would one look for {} on a map?", "where one would look for {} on a map"),
        # What is no question, and where the order of the words is not sure.
        ("{} was developed by", None),
        ("Does {} have a king?", None),
        ("Where was the inventor of {} born?", None),
        ("What is the twin city of {}? It is", None),
        ("In {}, which city is the capital?", None),
    ],
)
def test_as_clause(question, clause):
    assert as_clause(question) == clause


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


def test_names_that_take_no_s():
    assert takes_possessive("Japan")
    assert not takes_possessive("the Netherlands")
    assert not takes_possessive("Desi Arnaz, Jr.")
