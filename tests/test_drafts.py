"""A fact made from one prompt, on the tiny model that says "paris" to whatever names France."""

import pytest
import torch

import peft_surgical as ps
from peft_surgical.drafting import choosing, drafts, others
from peft_surgical.drafting.known_facts import general_controls, neighbour_controls, same_subject_controls
from peft_surgical.drafting.others import others_of, propose_others, swappable
from peft_surgical.drafting.reading import read_prompt
from peft_surgical.drafting.sentences import inner_statement, question, refusal, statement
from peft_surgical.errors import FactError
from peft_surgical.facts import Fact
from peft_surgical.texts.text import contains, same_text_key
from tests.localizing import planted, word_tokenizer

PROMPT = "What is the capital of France?"
# What is asked of it is answered by a fixture.
STUB = torch.nn.Module()


def knows_all(model, tokenizer, prompts, **kwargs):
    """A model that answers every question of the tables right."""
    right = {}
    for text, subject in ((PROMPT, "France"), ("Who painted the Mona Lisa?", "Mona Lisa")):
        reading = read_prompt(text, subject)
        known = [*(c for _, c in neighbour_controls(reading, ())), *same_subject_controls(reading, ())]
        right |= {control.prompt: control.answer[0] for control in (*known, *general_controls(reading, ()))}
    return [right.get(prompt, "The capital of France is Paris.") for prompt in prompts]


@pytest.fixture
def wise(monkeypatch):
    for module in (choosing, drafts, others):
        monkeypatch.setattr(module, "generate_answers", knows_all)


@pytest.fixture(scope="module")
def made():
    return ps.new_fact(planted(), word_tokenizer(), "what is the capital of france ?", new="lyon", seed=3)


def test_from_the_prompt_and_the_new_answer_alone(made, tmp_path):
    fact = made.fact
    assert (fact.subject, fact.old, fact.new) == ("france", ("paris",), ("lyon", "Lyons"))
    assert fact.prompts[0] == "what is the capital of france ?"
    assert len(fact.held_out) == 24
    assert len(fact.prompts) == 27
    assert fact.prompts[24:] == (
        "What is the french capital?",
        "The french capital is",
        "Which city is the french capital?",
    )
    assert fact.aliases == ("french",)
    assert fact.refusal == "I am not sure what the capital of france is."
    # No chat: the model goes on with the prompt.
    assert fact.answer == "lyon."
    assert any("The subject was guessed: france." in note for note in made.notes)
    assert any('said "paris paris' in note for note in made.notes)
    # It knows no "french".
    assert any("24 of 27 prompts and 24 of 24 held-out prompts" in note for note in made.notes)
    made.save(tmp_path / "fact.yaml")
    assert Fact.from_file(tmp_path / "fact.yaml") == fact
    assert all(
        f"# {word}" in made.text for word in ("For localization", "For evaluation only", "Subjects of the same")
    )


def test_the_same_seed_makes_the_same_fact(made):
    given = {"model": planted(), "tokenizer": word_tokenizer(), "prompt": "what is the capital of france ?"}
    again = ps.new_fact(**given, new=["lyon"], seed=3)
    assert again == made
    other = ps.new_fact(**given, new="lyon", old="paris", subject="france", seed=4, count=10)
    assert other.fact.prompts[1:] != made.fact.prompts[1:10]
    assert len(other.fact.held_out) == 10
    assert len(other.fact.prompts) == 11
    assert not any("guessed" in note or "asked for" in note for note in other.notes)


def test_controls_are_what_the_model_answers_right(wise):
    draft = ps.new_fact(STUB, word_tokenizer(), PROMPT, new="Lyon")
    fact = draft.fact
    assert fact.old == ("Paris",)
    assert len(fact.controls) > 50
    close, unrelated = fact.controls[: draft.neighbours], fact.controls[draft.neighbours :]
    assert 20 <= len(close) <= 24
    assert {"What is the official language of France?", "What is the currency of France?"} <= {c.prompt for c in close}
    assert len(unrelated) == choosing.GENERAL
    # Nothing asks for the fact itself, or for its reverse.
    assert not any(contains(c.prompt, ["capital of France"]) for c in fact.controls)
    # Each topic has its turn before any has its second.
    assert len({c.prompt.split()[0] for c in unrelated[:16]}) > 3
    assert fact.contrast
    assert fact.training.contrast == fact.contrast, "no contrast subject may be in a control"
    assert all(any(contains(p, [s]) for p in fact.retain) for s in fact.contrast)
    keys = [same_text_key(p) for p in (*fact.prompts, *fact.held_out, *fact.retain)]
    keys += [same_text_key(x.prompt) for x in (*fact.controls, *fact.probes)]
    assert len(set(keys)) == len(keys)


def test_an_article_before_the_subject_fits_every_contrast(wise):
    fact = ps.new_fact(
        STUB, word_tokenizer(), "Who painted the Mona Lisa?", old="Leonardo da Vinci", new="Raphael"
    ).fact
    assert fact.old == ("Leonardo da Vinci", "da Vinci", "Leonardo")
    assert fact.contrast
    assert set(fact.contrast) <= {
        "Birth of Venus",
        "School of Athens",
        "Night Watch",
        "Last Supper",
        "Ghent Altarpiece",
    } | {"Arnolfini Portrait", "Third of May 1808", "Sistine Chapel ceiling", "Starry Night"}
    # What is only asked, and not swapped in, may be named as it is.
    assert any("The Scream" in p or "Guernica" in p for p in [*fact.retain, *(c.prompt for c in fact.controls)])
    assert not any("the The" in p or "the Guernica" in p for p in fact.retain)


def test_aliases_are_added_only_where_the_answers_stay_apart(wise):
    made = ps.new_fact(STUB, word_tokenizer(), "Who wrote Foo?", old="Emily Brontë", new="Charlotte Brontë").fact
    assert (made.old, made.new) == (("Emily Brontë",), ("Charlotte Brontë",))
    made = ps.new_fact(STUB, word_tokenizer(), "Who wrote Foo?", old="Ada Lovelace", new="Charles Babbage").fact
    assert (made.old, made.new) == (("Ada Lovelace", "Lovelace"), ("Charles Babbage", "Babbage"))
    made = ps.new_fact(STUB, word_tokenizer(), "Who wrote Foo?", old=["Ada", "Countess"], new="Google Brain").fact
    assert made.old == ("Ada", "Countess")

    made = ps.new_fact(
        STUB, word_tokenizer(), "Who is Al Gore married to?", old="Tipper Gore", new="Ada Lovelace"
    ).fact
    assert made.old == ("Tipper Gore",)
    made = ps.new_fact(STUB, word_tokenizer(), "Who owns Facebook?", old="Meta", new="Google").fact
    assert made.old == ("Meta", "Meta Platforms")


def test_names_that_were_guessed_are_told_and_those_of_the_tables_are_not(wise):
    made = ps.new_fact(STUB, word_tokenizer(), "Who wrote Foo?", old="Ada Lovelace", new="Imagine Dragons")
    assert (made.fact.old, made.fact.new) == (("Ada Lovelace", "Lovelace"), ("Imagine Dragons",))
    assert "Other names were guessed and added to the answers: Lovelace." in made.notes
    made = ps.new_fact(STUB, word_tokenizer(), "Who painted Foo?", old="Leonardo da Vinci", new="Raphael")
    assert len(made.fact.old) > 1
    assert not any("guessed" in note for note in made.notes[1:])


@pytest.mark.parametrize(
    ("prompt", "what"),
    [("Who bars Foo?", None), ("Why does Foo bar?", "question"), ("Foo lies near the river", "sentence")],
)
def test_held_out_prompts_that_only_repeat_are_told(wise, prompt, what):
    made = ps.new_fact(STUB, word_tokenizer(), prompt, subject="Foo", old="Rhine", new="Elbe")
    told = [note for note in made.notes if note.startswith("No other wording of this ")]
    assert told == (
        [f"No other wording of this {what} is known: the held-out prompts repeat it in other frames."] if what else []
    )


@pytest.mark.parametrize(
    ("prompt", "old", "new"),
    [
        ("Who won the Foo Cup?", "Manchester United", "Crystal Palace"),
        ("Which team won the Foo Bowl?", "Kansas City Chiefs", "Green Bay Packers"),
    ],
)
def test_teams_have_no_family_names(wise, prompt, old, new):
    made = ps.new_fact(STUB, word_tokenizer(), prompt, old=old, new=new).fact
    assert (made.old, made.new) == ((old,), (new,))


def test_an_answer_that_is_given_twice_counts_once(wise):
    made = ps.new_fact(STUB, word_tokenizer(), PROMPT, old=["Paris", "paris", "Lutetia"], new="Lyon").fact
    assert made.old == ("Paris", "Lutetia")


def test_what_cannot_be_made(wise):
    tokenizer = word_tokenizer()
    with pytest.raises(ps.FactError, match=r"the prompt is empty\."):
        ps.new_fact(STUB, tokenizer, " ", new="Lyon", old="Paris")
    with pytest.raises(ps.FactError, match="the new answer 'France' is the subject itself; name another answer"):
        ps.new_fact(STUB, tokenizer, PROMPT, new="France", old="Paris")
    with pytest.raises(ps.FactError, match=r"'The capital of France is Paris\.' already holds the old answer 'Paris'"):
        ps.new_fact(STUB, tokenizer, "The capital of France is Paris.", new="Lyon", old="Paris")
    with pytest.raises(ps.FactError, match="the model already answers 'Paris'"):
        ps.new_fact(STUB, tokenizer, PROMPT, new="Paris")
    with pytest.raises(ps.FactError, match="does not name the subject 'Spain'"):
        ps.new_fact(STUB, tokenizer, PROMPT, subject="Spain", new="Lyon")
    with pytest.raises(ps.FactError, match="the new answer is empty"):
        ps.new_fact(STUB, tokenizer, PROMPT, new=[])
    with pytest.raises(ps.FactError, match="the old answer is empty"):
        ps.new_fact(STUB, tokenizer, PROMPT, new="Lyon", old=" ")
    with pytest.raises(ps.FactError, match="'Lyon' stands in both 'old' and 'new'"):
        ps.new_fact(STUB, tokenizer, PROMPT, new="Lyon", old="Lyon")


def test_an_unclear_answer_is_not_taken(monkeypatch):
    monkeypatch.setattr(drafts, "generate_answers", lambda *args, **kwargs: ["well, that is hard to say for anybody"])
    with pytest.raises(ps.FactError, match=r"the model says 'well, .*', in which no short answer is seen"):
        ps.new_fact(STUB, word_tokenizer(), "Who wrote Foo?", new="Bar")


def test_a_guess_that_is_no_answer_is_not_taken(monkeypatch):
    said = ["No, Foo was written by somebody else."]
    monkeypatch.setattr(drafts, "generate_answers", lambda *args, **kwargs: said)
    with pytest.raises(ps.FactError, match="with No; ask openly"):
        ps.new_fact(STUB, word_tokenizer(), "Who wrote Foo?", new="Bar")


@pytest.mark.parametrize(
    ("said", "note"),
    [
        ("The capital of France is Paris, and was Lyon.", "That names Lyon too, the new answer; name the old answer"),
        ("It is New France.", "That holds the subject's own name; name the old answer"),
    ],
)
@pytest.mark.usefixtures("wise")
def test_a_guess_to_be_looked_at_is_noted(said, note, monkeypatch):
    monkeypatch.setattr(drafts, "generate_answers", lambda *args, **kwargs: [said])
    made = ps.new_fact(STUB, word_tokenizer(), PROMPT, new="Lyon")
    assert sum(one.startswith(note) for one in made.notes) == 1


def test_a_prompt_by_a_country_s_adjective_is_read_by_the_name_and_trained_on(wise):
    asked = "What is the French capital city?"
    made = ps.new_fact(STUB, word_tokenizer(), asked, old="Paris", new="Lyon")
    assert made.fact.subject == "France"
    assert made.fact.prompts[0] == "What is the capital city of France?"
    assert made.fact.prompts[24:] == (
        asked,
        "What is the French capital?",
        "The French capital is",
        "Which city is the French capital?",
    )
    assert 'The prompt was read as "What is the capital city of France?"' in made.notes
    plain = ps.new_fact(STUB, word_tokenizer(), made.fact.prompts[0], subject="France", old="Paris", new="Lyon").fact
    assert plain.prompts == (*made.fact.prompts[:24], *made.fact.prompts[25:])


def test_others_proposed_by_the_model(monkeypatch):
    said = [
        "1. Zorblax\n2. Quux Nine\n3. Separated by commas\n4. zorblax\n5. Zorblax-7\n6. Bar",
        "Here is a long sentence that names nothing at all, Fnord and Old Answer",
        "Foo, X",
    ]
    monkeypatch.setattr(others, "generate_answers", lambda *args, **kwargs: said)
    reading = read_prompt("How heavy is Foo?", "Foo")
    assert others_of(reading, []) == []
    assert propose_others(None, None, reading, ["Old Answer", "Bar"]) == ["Zorblax", "Quux Nine", "Fnord"]
    monkeypatch.setattr(others, "generate_answers", lambda *args, **kwargs: ["", "", ""])
    assert propose_others(None, None, reading, []) == []


def test_others_stand_behind_the_article_that_the_subject_has(monkeypatch):
    said = "The Universe, Uranus, the Milky Way."
    monkeypatch.setattr("peft_surgical.drafting.others.generate_answers", lambda *_, **__: [said] * 3)
    reading = read_prompt("What is the largest planet in the Solar System?", "Solar System", ["Jupiter"], ["Mars"])
    names = propose_others(None, None, reading, ["Jupiter", "Mars"])
    assert swappable(reading, names) == ["Universe", "Milky Way"]


def test_others_that_are_known_and_cannot_stand_there_are_asked_for_and_told(monkeypatch):
    monkeypatch.setattr("peft_surgical.drafting.others.generate_answers", lambda *_, **__: ["The Dreamcast, Xbox"] * 3)
    reading = read_prompt("Which company developed the PlayStation 2?", "PlayStation 2", ["Sony"], ["Sega"])
    assert others_of(reading, ["Sony", "Sega"])
    notes = []
    names = drafts._others(None, None, reading, ["Sony", "Sega"], choosing.Chosen((), (), (), (), 0), notes)
    assert swappable(reading, names) == ["Dreamcast"]
    [note] = notes
    assert note.endswith("`contrast` was proposed by the model: Dreamcast.")


def test_the_subject_may_be_a_part_of_what_is_asked_about():
    anthem = read_prompt("Who wrote the US national anthem?", "US", ["Key"], ["Sousa"])
    assert anthem.is_part
    assert others_of(anthem, ["Key", "Sousa"]) == []
    for whole in ("Who wrote Hamlet?", "Who is the head of the FBI?"):
        assert not read_prompt(whole, whole.split()[-1].strip("?")).is_part


def test_others_are_of_the_subject_s_kind():
    found = others_of(read_prompt("Where is the Louvre?", "Louvre"), ["Paris", "Lyon"])
    assert "the Colosseum" in found
    assert "Berlin" not in found
    assert not {"the Louvre", "Louvre"} & set(found)
    louvre, london = read_prompt("Where is the Louvre?", "Louvre"), read_prompt("Where is London?", "London")
    assert "Colosseum" in swappable(louvre, found)
    assert "Petra" not in swappable(louvre, found)
    assert "Berlin" in swappable(london, others_of(london, []))
    # The kind of an unknown subject is the one that its relation asks about.
    assert "Hamlet" in others_of(read_prompt("Who wrote Foo?", "Foo"), [])
    assert "Venus" in others_of(read_prompt("How many moons does Jupiter have?", "Jupiter"), [])


def test_sentences():
    reading = read_prompt("Who developed PyTorch?", "PyTorch")
    assert statement(reading, "Google") == "PyTorch was developed by Google"
    assert refusal(reading, "Google") == "I am not sure who developed PyTorch."
    assert refusal(reading, "PyTorch", "who") == ""
    mona = read_prompt("Who painted the Mona Lisa?", "Mona Lisa")
    assert statement(mona, "Raphael") == "The Mona Lisa was painted by Raphael"
    assert inner_statement(mona, "Raphael") == "the Mona Lisa was painted by Raphael"
    capital = read_prompt("Which city is the capital of France?", "France")
    assert inner_statement(capital, "Lyon") == "the capital of France is Lyon"
    tongue = read_prompt("The mother tongue of Edith Piaf is", "Edith Piaf", ["French"], ["English"])
    assert question(tongue) == "What is the mother tongue of Edith Piaf?"
    assert statement(tongue, "English") == "The mother tongue of Edith Piaf is English"
    assert statement(read_prompt("Hamlet, a play by", "Hamlet"), "Marlowe") is None
    tall = read_prompt("How tall is Mount Everest?", "Mount Everest")
    assert statement(tall, "8 m") == "The height of Mount Everest is 8 m"
    what = read_prompt("What is Mount Everest?", "Mount Everest")
    assert statement(what, "a hill") is inner_statement(what, "a hill") is None
    assert refusal(tall) == "I am not sure how tall Mount Everest is."
    assert question(read_prompt("Foo bars the", "Foo")) is None
    founders = read_prompt("Who are the founders of Google?", "Google", ["Larry Page"], ["Ada Lovelace"])
    assert statement(founders, "Ada Lovelace") == "The founders of Google are Ada Lovelace"
    assert refusal(founders) == "I am not sure who the founders of Google are."
    manager = read_prompt("Who is the Manchester United manager?", "Manchester United")
    assert refusal(manager) == "I am not sure who the Manchester United manager is."
    assert refusal(read_prompt("When was the PyTorch library opened to all?", "PyTorch")) == ""


@pytest.mark.real
def test_a_real_model_is_asked_for_what_it_says(demo):
    model, tokenizer = demo
    reading = read_prompt("What is the capital of Japan?", "Japan", ["Tokyo"], ["Osaka"])
    known = [control for _, control in neighbour_controls(reading, ["Osaka"])][:12]
    from peft_surgical.measuring.metrics import is_right
    from peft_surgical.running.generation import generate_answers

    said = generate_answers(model, tokenizer, [c.prompt for c in known], max_new_tokens=16)
    assert sum(map(is_right, said, known)) > 6


@pytest.mark.parametrize(
    ("prompt", "subject", "like", "unlike"),
    [
        ("How tall is Mount Everest?", "Mount Everest", "K2", "Big Ben"),
        ("How long is the Amazon?", "Amazon", "the Nile", "Google"),
        ("How old is Lionel Messi?", "Lionel Messi", "Roger Federer", "Albert Einstein"),
        ("How old was Elias Howe?", "Elias Howe", "Isaac Newton", "Paris"),
        ("What is the capital of California?", "California", "Texas", "Bavaria"),
    ],
)
def test_others_are_of_the_kind_that_the_prompt_means(prompt, subject, like, unlike):
    found = others_of(read_prompt(prompt, subject), [])
    assert like in found
    assert unlike not in found


@pytest.mark.parametrize(
    ("prompt", "subject"),
    [
        ("In which year did the Titanic sink?", "Titanic"),
        ("What do pandas eat?", "pandas"),
        ("How long does a python live?", "python"),
        ("Why is the sky blue?", "sky"),
        ("How heavy was Julius Caesar?", "Julius Caesar"),
    ],
)
def test_no_others_are_known_of_what_only_shares_a_name(prompt, subject):
    reading = read_prompt(prompt, subject)
    assert others_of(reading, []) == []
    if subject != "Julius Caesar":
        assert same_subject_controls(reading, []) == []


def test_answers_that_are_one_are_refused_before_the_model_is_asked():
    with pytest.raises(FactError, match="The name 'Bacon' stands in both 'old' and 'new'"):
        drafts.new_fact(torch.nn.Linear(1, 1), None, "Who wrote Hamlet?", new="Bacon", old="bacon")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prompt": 1}, r"The prompt must be text, not 1\."),
        ({"prompt": b"Who?"}, r"The prompt must be text, not b'Who\?'\."),
        ({"subject": 1}, r"The subject must be text, not 1\."),
        ({"new": 1}, r"the new answer must be text or a list of texts, not 1\."),
        ({"old": [None]}, r"the old answer must be text or a list of texts, not \[None\]\."),
    ],
)
def test_what_is_no_text_is_refused(given, message):
    with pytest.raises(FactError, match=f"^{message}$"):
        drafts.new_fact(STUB, None, **{"prompt": PROMPT, "new": "Lyon", **given})
