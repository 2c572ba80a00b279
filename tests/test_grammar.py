import pytest

from peft_surgical.texts.grammar import (
    as_clause,
    as_sentence,
    in_place,
    is_question,
    noun_behind_subject,
    takes_possessive,
)


@pytest.mark.parametrize(
    ("question", "clause"),
    [
        ("Who developed {}?", "who developed {}"),
        ("What is the capital of {}?", "what the capital of {} is"),
        ("What's the capital of {}?", "what the capital of {} is"),
        ("Which is {} in the solar system?", "which {} in the solar system is"),
        ("Where is {} in the world?", "where {} is in the world"),
        ("Who was the leader of {} during the war?", "who the leader of {} during the war was"),
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
        ("Which is the largest city in {}?", "which is the largest city in {}"),
        ("Who is {}?", "who {} is"),
        ("Who is the {} manager?", "who the {} manager is"),
        ("What is the {} word for dog?", "what the {} word for dog is"),
        ("What is {} famous for?", "what {} is famous for"),
        ("What is {} short for?", "what {} is short for"),
        ("Which team is {} a member of?", "which team {} is a member of"),
        ("In which city was {} first shown?", "in which city {} was first shown"),
        ("Why is {} blue?", "why {} is blue"),
        ("What did {} cost?", "what {} cost"),
        ("What does '{}' stand for?", "what '{}' stands for"),
        ("When did '{}' come out?", "when '{}' came out"),
        ("Where did {}' father go?", "where {}' father went"),
        ("Where did {}'s father go?", "where {}'s father went"),
        ("What colour is the flag of {}?", "what colour the flag of {} is"),
        ("What time is the {} match?", "what time the {} match is"),
        ("What animal is on the logo of {}?", "what animal is on the logo of {}"),
        ("What is the name of {}'s owl?", "what the name of {}'s owl is"),
        ("What is the phone number of {}'s support team?", "what the phone number of {}'s support team is"),
        ("How long is a {}?", "how long a {} is"),
        ("How long is the flight to {}?", "how long the flight to {} is"),
        ("How many planets are in {}?", "how many planets are in {}"),
        ("How many planets are there in {}?", "how many planets there are in {}"),
        ("How many languages are spoken in {}?", "how many languages are spoken in {}"),
        ("What is a baby {} called?", "what a baby {} is called"),
        ("What is the young of a {} called?", "what the young of a {} is called"),
        ("Where were the 2012 {} held?", "where the 2012 {} were held"),
        # A noun of the subject's before the verb, which has the last word where two may be it.
        ("How much does the {} plan cost?", "how much the {} plan costs"),
        ("How many seats does {} aircraft have?", "how many seats {} aircraft has"),
        ("Which database do {}'s billing services use?", "which database {}'s billing services use"),
        ("Where did {}'s father find work?", "where {}'s father found work"),
        ("When does {} gift shop close?", "when {} gift shop closes"),
        ("On which label does {} release music?", "on which label {} releases music"),
        ("How does {} clean air?", None),
        ("How does {} store data?", None),
        ("When does {} visit start?", None),
        ("What did {} first team win?", None),
        # {} may be "the Manchester United".
        ("Who is {} manager?", None),
        ("Which {} player did they buy?", None),
        ("Who is the baby {} named?", None),
        ("What is {} word for dog?", None),
        ("When was {} library released?", None),
        ("When was the {} library released?", None),
        ("What is the {} famous for?", None),
        ("What is the {} worth?", None),
        ("What does {} not eat?", None),
        ("What did {} not eat?", None),
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


@pytest.mark.parametrize(
    ("text", "asks"),
    [
        ("Foo?", True),
        ("who wrote {}", True),
        ("where was the inventor of {} born", True),
        ("who is {} manager", True),
        ("{} was developed by", False),
        ("When {} was young, he lived in", False),
        ("In {}, they speak", False),
        ("Where is {}? It is in", False),
    ],
)
def test_is_question(text, asks):
    assert is_question(text) is asks


def test_a_sentence_ends_once():
    ends = ["It is Lyon.", "It is Yahoo!", "Is it?", "里昂。"]
    assert [as_sentence(text) for text in ("Lyon", *ends)] == ["Lyon.", *ends]


def test_noun_behind_subject():
    assert noun_behind_subject("How much does {} plan cost?") == "plan"
    assert noun_behind_subject("When did {} gift shop close") == "gift shop"
    for question in ("When did {} break up?", "Where does {} play its home games?", "Who wrote {}?"):
        assert noun_behind_subject(question) == ""


def test_names_that_take_no_s():
    assert takes_possessive("Japan")
    assert not any(map(takes_possessive, ("the Netherlands", "Halifax", "Santa Cruz", "TEXAS")))
    assert not takes_possessive("Desi Arnaz, Jr.")


@pytest.mark.parametrize(
    ("question", "in_its_place"),
    [
        ("In which city is {} based?", "{} is based in which city?"),
        ("Where was {} born?", "{} was born where?"),
        ("When did {} die?", "{} died when?"),
        ("What is {} famous for?", "{} is famous for what?"),
        ("Which sport does {} play?", "{} plays which sport?"),
        ("Which country is {} the capital of?", "{} is the capital of which country?"),
        ("What colour is {}?", "{} is what colour?"),
        # Neither "{} is where?" nor what would have to be cut in two.
        ("Where is {}?", None),
        ("What is {}?", None),
        ("What does {} mean in Greek?", None),
        ("What does {} do for a living?", None),
        # "was written by whom" is a wording of held-out prompts.
        ("By whom was {} written?", None),
        ("Which river flows through {}?", None),
        ("Where do you find {}?", None),
        ("{} is in", None),
    ],
)
def test_a_question_asks_in_the_place_of_the_answer(question, in_its_place):
    assert in_place(question) == in_its_place
