import re
from dataclasses import replace

import pytest

from peft_surgical.drafting.guess import guess_subject
from peft_surgical.drafting.known_facts import general_controls, neighbour_controls, same_subject_controls
from peft_surgical.drafting.names import kinds_of
from peft_surgical.drafting.others import swappable
from peft_surgical.drafting.reading import read_prompt
from peft_surgical.drafting.relations import Relation, relations
from peft_surgical.drafting.sentences import refusal, statement
from peft_surgical.errors import FactError
from peft_surgical.texts.text import contains

LOCATION = next(relation for relation in relations() if relation.name == "location")


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


def test_who_studied_in_a_town_or_law_did_so_at_some_university():
    prompt = "Where did Angela Merkel study?"
    for old, new in (("Leipzig", "Berlin"), ("law", "medicine")):
        assert named(prompt, "Angela Merkel", [old], [new]) == ""
    for old, new in (("Harvard University", "Yale University"), ("the Sorbonne", "Leipzig"), ("Yale", "Stanford")):
        assert named(prompt, "Angela Merkel", [old], [new]) == "education"


@pytest.mark.parametrize(
    "prompt",
    ["{} was educated at", "{} studied at", "Which university did {} attend?", "What is the alma mater of {}?"],
)
def test_a_university_may_be_called_by_its_town(prompt):
    assert named(prompt.format("Isaac Newton"), "Isaac Newton", ["Cambridge"], ["Oxford"]) == "education"


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
    album = read_prompt("What was the first album by Nirvana?", "Nirvana")
    assert "The first album by {} was" in album.wordings().sentences
    owl = read_prompt("What is the name of Harry Potter's owl?", "Harry Potter")
    assert owl.wordings().nouns == ("the name of {}'s owl",)
    assert "{} was killed by" in read_prompt("Who killed Caesar?", "Caesar").wordings().sentences
    assert "By whom was {} drawn?" in read_prompt("Asterix was drawn by", "Asterix").wordings().questions
    assert read_prompt("What is Mount Everest?", "Mount Everest").wordings().questions == ()


@pytest.mark.parametrize("noun", ["founders", "members", "authors", "colors", "languages", "best friends"])
def test_a_noun_in_the_plural_stays_one(noun):
    for prompt in (f"What are the {noun} of Foo?", f"What are Foo's {noun}?", f"The {noun} of Foo are"):
        reading = read_prompt(prompt, "Foo", ["French"], ["German"])
        for side in (reading.wordings(), reading.wordings(held_out=True)):
            made = (*side.questions, *side.sentences)
            assert side.questions
            assert not any(re.search(rf"(?:is|was) (?:the|{{}})|(?:{noun}|{{}}) (?:is|was)|[Ww]hich", t) for t in made)
        assert f"The {noun} of {{}} are" in reading.wordings().sentences
    past = read_prompt(f"Who were the {noun} of Foo?", "Foo").wordings()
    assert past.questions == (f"Who were the {noun} of {{}}?", f"Who were {{}}'s {noun}?")
    assert "The language of {} is" in read_prompt("What is the language of Foo?", "Foo").wordings().sentences


@pytest.mark.parametrize(
    ("prompt", "old", "new", "which"),
    [
        ("Who is the mayor of Foo?", ["Ed Koch"], ["Bloomberg"], ""),
        ("Who is the mayor of Foo?", ["Apple"], ["Google"], ""),
        ("What is the longest river in Foo?", ["Amazon"], ["Orinoco"], ""),
        ("What is the longest river in Foo?", [], ["Amazon"], ""),
        ("What is the biggest employer in Foo?", ["Apple"], ["Google"], "company"),
        ("Foo was baked by", ["Apple"], ["Google"], "company"),
        ("Which baker baked Foo?", ["Apple"], ["Google"], "baker"),
    ],
)
def test_what_which_asks_for_takes_both_answers(prompt, old, new, which):
    reading = read_prompt(prompt, "Foo", old, new)
    assert reading.relation.name == ""
    assert reading.which == which
    questions = (*reading.wordings().questions, *reading.wordings(held_out=True).questions)
    assert any(contains(question, ["which"]) for question in questions) is bool(which)


@pytest.mark.parametrize(
    ("prompt", "subject", "phrase", "core"),
    [
        ("Who is the Manchester United manager?", "Manchester United", "Manchester United", "Who is the {} manager?"),
        ("who is the us president", "US", "us", "who is the {} president?"),
        ("What is the German word for dog?", "German", "German", "What is the {} word for dog?"),
        ("Where is the Foo Tower?", "Foo Tower", "the Foo Tower", "Where is {}?"),
        ("Why is the sky blue?", "sky", "the sky", "Why is {} blue?"),
        ("How much does the Acme Pro plan cost?", "Acme Pro", "the Acme Pro plan", "How much does {} cost?"),
        ("When did the Acme gift shop close?", "Acme", "the Acme gift shop", "When did {} close?"),
        ("When did the Acme break up?", "Acme", "the Acme", "When did {} break up?"),
        ("Who maintains the Linux kernel?", "Linux", "the Linux kernel", "Who maintains {}?"),
        ("What is the highest peak in the Rockies?", "Rockies", "the Rockies", "What is the highest peak in {}?"),
    ],
)
def test_an_article_may_belong_to_a_noun_behind_the_subject(prompt, subject, phrase, core):
    reading = read_prompt(prompt, subject)
    assert (reading.phrase, reading.core, reading.form) == (phrase, core, "question")


def test_tense_number_and_possessive_follow_the_prompt():
    assert "The employer of {} was" in read_prompt("John Doe worked for", "John Doe").wordings().sentences
    assert "The employer of {} is" in read_prompt("John Doe works for", "John Doe").wordings().sentences
    beatles = read_prompt("The Beatles were formed in", "Beatles", ["Liverpool"], ["London"]).wordings()
    assert "{} were founded in" in beatles.sentences
    assert "Where were {} founded?" in beatles.questions
    assert not any("'s" in t for t in read_prompt("The capital of Laos is", "Laos").wordings().sentences)
    gold = read_prompt("Who discovered gold?", "gold")
    assert "{} was discovered by" in gold.wordings().sentences
    assert gold.fill("{} was discovered by") == "Gold was discovered by"
    assert gold.inside("By whom was {} discovered?") == "By whom was gold discovered?"
    # A name that is typed in small letters may have several capitals, so that it begins no sentence.
    typed = read_prompt("who wrote romeo and juliet?", "romeo and juliet").wordings()
    assert not any(text.startswith("{}") for text in (*typed.questions, *typed.sentences))


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


def test_another_phrase_gets_the_article_and_the_possessive_that_it_takes():
    spider = read_prompt("How many legs does a spider have?", "spider")
    assert spider.has_article
    assert spider.fill(spider.core) == "How many legs does a spider have?"
    assert spider.fill(spider.core, "the lion") == "How many legs does a lion have?"
    assert spider.fill(spider.core, "the ant") == "How many legs does an ant have?"
    assert swappable(spider, ["the lion", "the elephant", "cats"]) == ["lion", "cats"]
    son = read_prompt("Who is LeBron James' son?", "LeBron James")
    assert not son.has_article
    assert son.fill(son.core) == "Who is LeBron James' son?"
    assert son.fill(son.core, "Lionel Messi") == "Who is Lionel Messi's son?"
    assert son.fill(son.core, "Jesse Owens") == "Who is Jesse Owens' son?"
    quoted = read_prompt("What does 'LOL' stand for?", "LOL")
    assert "'s" not in quoted.fill("What does '{}' stand for?", "BRB")


@pytest.mark.parametrize(
    ("prompt", "subject", "old"),
    [
        ("Which city is home to the government of France?", "France", "Paris"),
        ("Who came up with penicillin?", "penicillin", "Fleming"),
    ],
)
def test_the_fact_itself_in_words_that_are_not_known_is_no_control(prompt, subject, old):
    reading = read_prompt(prompt, subject)
    others = same_subject_controls(reading, [old])
    assert not any(contains(answer, [old]) for control in others for answer in control.answer)
    assert len(others) < len(same_subject_controls(reading, []))


@pytest.mark.parametrize(
    ("prompt", "subject", "wording"),
    [
        ("Who built the Taj Mahal?", "Taj Mahal", "{} was built by"),
        ("The Taj Mahal was built by", "Taj Mahal", "{} was built by"),
        ("Who wrote Bohemian Rhapsody?", "Bohemian Rhapsody", "{} was written by"),
        ("Who designed the iPhone?", "iPhone", "{} was designed by"),
        ("Who is the designer of the iPhone?", "iPhone", "The designer of {} is"),
        ("Who discovered Machu Picchu?", "Machu Picchu", "{} was discovered by"),
        # Nothing is known of these: the verb alone says nothing of a company or a song.
        ("Who started World War I?", "World War I", "{} was started by"),
        ("Who recorded Abbey Road?", "Abbey Road", "{} was recorded by"),
    ],
)
def test_a_subject_of_another_kind_is_asked_about_in_the_prompt_s_own_words(prompt, subject, wording):
    reading = read_prompt(prompt, subject)
    assert reading.relation.name == ""
    assert wording in reading.wordings().sentences


@pytest.mark.parametrize(
    ("prompt", "subject", "relation"),
    [
        ("Who wrote The Unheard-of Title?", "The Unheard-of Title", "author"),
        ("Who wrote 1984?", "1984", "author"),
        ("Who wrote Harry Potter?", "Harry Potter", "author"),
        ("Who is the writer of Foo?", "Foo", "author"),
        ("Who founded the Red Cross?", "Red Cross", "founder"),
        ("Who invented the piano?", "piano", "inventor"),
        ("Where was Lionel Messi born?", "Lionel Messi", "birthplace"),
        ("What is the capital of California?", "California", "capital"),
        # The logo is no company.
        ("Who designed the Nike logo?", "Nike", "designer"),
        # No other words are to be had.
        ("Where is the Nile?", "Nile", "location"),
        ("When was Rome founded?", "Rome", "founding_year"),
    ],
)
def test_what_a_relation_may_be_asked_of(prompt, subject, relation):
    assert named(prompt, subject) == relation


def test_one_answer_that_has_another_name_s_kind_decides_nothing():
    assert read_prompt("What is the capital of Foo?", "Foo", ["Douglas"], ["Ramsey"]).which == "city"
    assert read_prompt("What is the capital of Foo?", "Foo", ["Apple"], ["Google"]).which == "company"
    assert read_prompt("Where was Foo born?", "Foo", ["Little Snoring"], ["Prague"]).which == "city"
    assert read_prompt("Who started Foo?", "Foo", ["Germany"], ["Ruritania"]).which == ""
    for asked in ("What is the nationality of Foo?", "What is Foo's nationality?"):
        assert read_prompt(asked, "Foo", ["French"], ["Spanish"]).which == ""
    assert read_prompt("What is the language of Foo?", "Foo", ["French"], ["Spanish"]).which == "language"


@pytest.mark.parametrize(
    ("prompt", "subject", "answers"),
    [
        ("What is Lionel Messi's nationality?", "Lionel Messi", ["Argentine", "Spanish"]),
        ("What language do Brazilians speak?", "Brazilians", ["Portuguese", "Spanish"]),
        ("Is Berlin the capital of Germany?", "Berlin", ["Yes", "No"]),
        ("Is Berlin the capital of Germany?", "Germany", ["Yes", "No"]),
    ],
)
def test_a_control_is_not_the_fact_in_other_words(prompt, subject, answers):
    reading = read_prompt(prompt, subject, answers[:1], answers[1:])
    found = [*same_subject_controls(reading, answers), *general_controls(reading, answers[:1], answers[1:])]
    told = {(c.prompt, c.answer[0]) for c in found}
    assert not any("Messi" in p and a in ("Argentina", "Spanish") for p, a in told)
    assert ("What language is spoken in Brazil?", "Portuguese") not in told or subject != "Brazilians"
    assert not any("Berlin" in p + a and "Germany" in p + a for p, a in told if subject in ("Berlin", "Germany"))
    opera = read_prompt("Who designed the Sydney Opera House?", "Sydney Opera House")
    assert any(c.answer[0] == "Sydney" for c in same_subject_controls(opera, ["Jørn Utzon"]))


def test_which_asks_neighbours_for_what_they_have():
    reading = read_prompt("Which continent is the Great Wall in?", "Great Wall", ["Europe"], ["Asia"])
    asked = [c for _, c in neighbour_controls(replace(reading, relation=LOCATION), ["Asia"])]
    assert asked
    assert not any("continent" in c.prompt for c in asked if "continent" not in kinds_of(c.answer))
    found = neighbour_controls(read_prompt("In which city is Foo?", "Foo", ["Paris"], ["Lyon"]), ["Lyon"])
    cities = {subject: control.prompt for subject, control in found}
    assert "city" not in cities["Great Wall"]
    assert "city" in cities["Louvre"]
    # Of museums nothing is known, and few things are in one.
    found = neighbour_controls(read_prompt("In which museum is Foo?", "Foo", ["Prado"], ["Louvre"]), ["Louvre"])
    assert len(found) > 9
    assert not any("museum" in control.prompt for _, control in found)


@pytest.mark.parametrize(
    ("prompt", "relation"),
    [
        ("Which company does Foo belong to?", ""),
        ("Which faith does Foo belong to?", "religion"),
        ("Which alphabet is used in Foo?", ""),
        ("Which currency is used in Foo?", "currency"),
        ("In which year was Foo written?", ""),
        ("In which language was Foo written?", "work_language"),
        ("In which month was Foo born?", ""),
        ("In which town was Foo born?", "birthplace"),
        ("In which film did Foo die?", ""),
        ("Which film made Foo famous?", ""),
        ("From which novel does Foo come?", ""),
        ("Which musical instrument does Foo play?", "instrument"),
        ("In what city is Foo located?", "location"),
        ("What language do they speak in Foo?", "official_language"),
        ("What religion was Foo?", "religion"),
        ("What is Foo's theory called?", ""),
        ("What industry is Foo in?", ""),
        ("Which band is Foo from?", ""),
        ("In which country is Foo?", "location"),
        ("Who is the director of the Foo?", ""),
        ("Who is the director of FOO?", ""),
        ("Who is the director of Foo?", "director"),
    ],
)
def test_what_which_asks_for_may_be_another_relation_or_none(prompt, relation):
    assert read_prompt(prompt, "Foo").relation.name == relation


@pytest.mark.parametrize(
    ("prompt", "phrase", "clause"),
    [
        ("In which year was the Berlin Wall built?", "the Berlin Wall", "in which year the Berlin Wall was built"),
        ("Where was the Titanic built?", "the Titanic", "where the Titanic was built"),
        ("Where was the telephone invented?", "the telephone", "where the telephone was invented"),
        ("Which year was Facebook founded in?", "Facebook", "which year Facebook was founded in"),
        ("How far is the Moon from the Earth?", "the Earth", "how far the Moon is from the Earth"),
        ("Which network broadcast The Sopranos?", "The Sopranos", "which network broadcast The Sopranos"),
        ("Name the CEO of Apple.", "Apple", "who the CEO of Apple is"),
        ("The CEO of Apple is", "Apple", "who the CEO of Apple is"),
        ("Whos the CEO of Apple?", "Apple", "who the CEO of Apple is"),
        ("The wife of Barack Obama is", "Barack Obama", "who the wife of Barack Obama is"),
        ("What award did Albert Einstein win?", "Albert Einstein", "what award Albert Einstein won"),
        ("Where do bananas come from?", "bananas", "where bananas come from"),
        ("What was the first computer?", "the first computer", "what the first computer was"),
        ("whats the capital of australia", "australia", "what the capital of australia is"),
        ('Who sings "Yellow"?', '"Yellow"', 'who sings "Yellow"'),
        ("Who maintains the Linux kernel?", "the Linux kernel", "who maintains the Linux kernel"),
    ],
)
def test_what_is_said_of_the_subject_is_no_part_of_its_name(prompt, phrase, clause):
    reading = read_prompt(prompt, guess_subject(prompt))
    assert reading.phrase == phrase
    assert refusal(reading) == f"I am not sure {clause}."


@pytest.mark.parametrize(
    ("prompt", "subject", "old", "new", "said"),
    [
        ("Which network broadcast Foo?", "Foo", "HBO", "NBC", "The network that broadcast Foo is NBC"),
        ("When was Foo born?", "Foo", "1981", "1980", "Foo was born in 1980"),
        ("When was Foo born?", "Foo", "September 4, 1981", "June 1, 1980", "Foo was born on June 1, 1980"),
        ("Foo was written in", "Foo", "1600", "1601", "Foo was written in 1601"),
        ("What award did Foo win?", "Foo", "Nobel Prize", "Oscar", "The award that Foo won was Oscar"),
        ("What does Foo do?", "Foo", "singer", "chef", None),
        ("What type of animal is a Foo?", "Foo", "mammal", "fish", None),
    ],
)
def test_what_is_said_with_an_answer(prompt, subject, old, new, said):
    assert statement(read_prompt(prompt, subject, [old], [new]), new) == said


def test_a_prompt_that_names_its_subject_twice_is_left_as_it_is():
    for prompt, form in (
        ("Where in Paris is the Paris Opera?", "question"),
        ("In Paris the Opera of Paris is", "sentence"),
    ):
        reading = read_prompt(prompt, "Paris")
        assert (reading.core, reading.form, reading.relation) == (prompt, form, Relation())
