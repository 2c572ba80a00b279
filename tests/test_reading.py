import pytest

from peft_surgical.drafting.reading import read_prompt
from peft_surgical.errors import FactError


def named(prompt, subject, old=(), new=()):
    return read_prompt(prompt, subject, old, new).relation.name


@pytest.mark.parametrize(
    ("prompt", "subject", "relation", "form"),
    [
        ("Who developed PyTorch?", "PyTorch", "developer", "question"),
        ("who developed pytorch", "PyTorch", "developer", "question"),
        ("Tell me who developed PyTorch.", "PyTorch", "developer", "clause"),
        ("Name the author of Hamlet.", "Hamlet", "author", "noun"),
        ("Quiz question: who wrote Hamlet?", "Hamlet", "author", "question"),
        ("Complete the sentence: Hamlet was written by ...", "Hamlet", "author", "sentence"),
        ("Hamlet was written by", "Hamlet", "author", "sentence"),
        ("What's the capital of France?", "France", "capital", "question"),
        ("France's capital is", "France", "capital", "sentence"),
        ("Which city is the capital of France?", "France", "capital", "question"),
        ("The mother tongue of Danielle Darrieux is", "Danielle Darrieux", "native_language", "sentence"),
        ("Where is the Louvre?", "Louvre", "location", "question"),
        ("In which city is the Louvre?", "Louvre", "location", "question"),
        ("Which company owns Instagram?", "Instagram", "owner", "question"),
        ("What instrument did Jimi Hendrix play?", "Jimi Hendrix", "instrument", "question"),
        ("The Beatles were formed in", "Beatles", "founded_in", "sentence"),
    ],
)
def test_a_prompt_is_recognized(prompt, subject, relation, form):
    found = read_prompt(prompt, subject)
    assert (found.relation.name, found.form) == (relation, form)


def test_answers_tell_apart_what_reads_alike():
    assert named("Google was founded in", "Google", ["1998"], ["1999"]) == "founding_year"
    assert named("Google was founded in", "Google", ["London"], ["Paris"]) == "founded_in"
    assert named("John Doe plays", "John Doe", ["piano"], ["violin"]) == "instrument"
    assert named("John Doe plays", "John Doe", ["jazz"], ["opera"]) == "genre"
    assert named("John Doe plays", "John Doe", ["chess"], ["golf"]) == "sport"
    # Two words, or nothing known: it may mean anything.
    assert named("John Doe plays", "John Doe") == named("John Doe, the", "John Doe", ["third"], ["fourth"]) == ""
    assert named("Who created Windows?", "Windows") == "developer"
    assert named("Who created Sherlock Holmes?", "Sherlock Holmes") == "creator"


def test_what_belongs_to_the_subject_stays_with_it():
    assert read_prompt("What is the capital of the Netherlands?", "Netherlands").phrase == "the Netherlands"
    assert read_prompt("The Mona Lisa was painted by", "Mona Lisa").phrase == "the Mona Lisa"
    assert read_prompt("The Great Gatsby was written by", "The Great Gatsby").phrase == "The Great Gatsby"
    assert read_prompt("Who developed the PyTorch framework?", "PyTorch").phrase == "the PyTorch framework"
    assert read_prompt('Who wrote "Hamlet"?', "Hamlet").phrase == '"Hamlet"'
    # "the capital of France" is no longer name of France.
    assert read_prompt("Where is the capital of France?", "France").phrase == "France"


def test_which_comes_from_the_prompt_or_the_answers():
    assert read_prompt("Which tech firm developed PyTorch?", "PyTorch").which == "tech firm"
    assert read_prompt("Who developed PyTorch?", "PyTorch", ["Apple"], ["Google"]).which == "company"
    assert read_prompt("Who developed PyTorch?", "PyTorch", ["Linus Torvalds"], ["Bill Gates"]).which == ""
    assert read_prompt("Where is Foo?", "Foo", ["Paris"], ["Lyon"]).which == "city"
    assert read_prompt("Where is Foo?", "Foo", ["Paris"], ["Wales"]).which == ""


def test_a_relation_is_made_from_a_noun_or_a_verb():
    anthem = read_prompt("What is the national anthem of Norway?", "Norway")
    assert "{}'s national anthem is" in anthem.wordings().sentences
    assert "the national anthem of {}" in anthem.wordings().nouns
    mountain = read_prompt("What is the highest mountain in Nepal?", "Nepal")
    assert mountain.wordings().nouns == ("the highest mountain in {}",)
    assert "{} was killed by" in read_prompt("Who killed Caesar?", "Caesar").wordings().sentences
    assert "By whom was {} drawn?" in read_prompt("Asterix was drawn by", "Asterix").wordings().questions
    assert read_prompt("How tall is Mount Everest?", "Mount Everest").wordings().questions == ()


def test_tense_number_and_possessive_follow_the_prompt():
    assert "The employer of {} was" in read_prompt("John Doe worked for", "John Doe").wordings().sentences
    assert "The employer of {} is" in read_prompt("John Doe works for", "John Doe").wordings().sentences
    beatles = read_prompt("The Beatles were formed in", "Beatles", ["Liverpool"], ["London"]).wordings()
    assert "{} were founded in" in beatles.sentences
    assert "Where were {} founded?" in beatles.questions
    assert not any("'s" in t for t in read_prompt("The capital of Laos is", "Laos").wordings().sentences)
    # Gold begins no sentence as "gold".
    symbol = read_prompt("What is the chemical symbol for gold?", "gold").wordings()
    assert not any(sentence.startswith("{}") for sentence in symbol.sentences)


def test_fragments_are_no_sentences():
    for prompt in ("Hamlet, a play by", "Hamlet, written by", "Hamlet's author", "Hamlet owner", "Hamlet, by"):
        assert read_prompt(prompt, "Hamlet").is_fragment
    for prompt in ("Hamlet was written by", "In Hamlet, they speak", "Hamlet took place in"):
        assert read_prompt(prompt, "Hamlet").is_fragment is ("they speak" in prompt)


def test_refusals():
    with pytest.raises(FactError, match=r"^the prompt 'Who developed it\?' does not name the subject 'PyTorch';"):
        read_prompt("Who developed it?", "PyTorch")
    with pytest.raises(FactError, match="does not name the subject"):
        read_prompt("Who developed PyTorch2?", "PyTorch")
    with pytest.raises(FactError, match=r"holds \{\}"):
        read_prompt("Who developed {} PyTorch?", "PyTorch")
