import dataclasses

import pytest

import peft_surgical as ps
from peft_surgical.drafting.paraphrases import expand, held_out_prompts, paraphrases
from peft_surgical.drafting.reading import read_prompt
from peft_surgical.drafting.relations import relations
from peft_surgical.drafting.ways import WAYS, prompts_by_way
from peft_surgical.errors import FactWarning
from peft_surgical.texts.text import contains, same_text_key
from tests.localizing import capital, word_tokenizer
from tests.tiny import tiny_model

# Every kind of prompt: all relations in all their own wordings, and what is none of them.
PROMPTS = [
    (template.replace("{}", "Fooland").replace("{which}", "thing").replace("[", "").split("/")[0], "Fooland")
    for relation in relations()
    for side in (relation.training, relation.held_out)
    for template in (side.questions[0], side.questions[-1], side.sentences[0], side.sentences[-1])
    if "[" not in template
]
OTHERS = [
    ("What is the national anthem of Norway?", "Norway"),
    ("Who killed John Lennon?", "John Lennon"),
    ("How many moons does Jupiter have?", "Jupiter"),
    ("Does Norway have a king?", "Norway"),
    ("Tell me who developed PyTorch.", "PyTorch"),
    ("Name the author of Hamlet.", "Hamlet"),
    ("Fill in the blank: Hamlet was written by ____.", "Hamlet"),
    ("The Mona Lisa, which hangs in", "Mona Lisa"),
    ("What is the twin city of Ankara? It is", "Ankara"),
    ("Is Norway in Norway?", "Norway"),
    ("iOS was developed by", "iOS"),
    ("東京 is the capital of", "東京"),
]


@pytest.mark.parametrize(("prompt", "subject"), [*PROMPTS, *OTHERS])
def test_training_and_held_out_prompts_share_none(prompt, subject):
    reading = read_prompt(prompt, subject)
    training = [p for prompts in prompts_by_way(reading, seed=1).values() for p in prompts]
    held_out = [p for prompts in prompts_by_way(reading, held_out=True, seed=2).values() for p in prompts]
    keys = [same_text_key(p) for p in (prompt, *training, *held_out)]
    assert len(set(keys)) == len(keys)
    assert len(training) >= 20
    assert len(held_out) >= 20
    for made in (*training, *held_out):
        assert reading.subject in made
        assert made == " ".join(made.split())
        assert not set("{}[]") & set(made)


def test_the_seed_decides_which_and_nothing_else():
    made = [paraphrases("Who wrote Hamlet?", "Hamlet", count=30, seed=seed) for seed in (0, 0, 1)]
    assert made[0] == made[1] != made[2]
    assert len(made[0]) == len({same_text_key(p) for p in made[0]}) == 30
    everything = prompts_by_way(read_prompt("Who wrote Hamlet?", "Hamlet"), seed=0)
    again = prompts_by_way(read_prompt("Who wrote Hamlet?", "Hamlet"), seed=5)
    assert {p for way in WAYS for p in everything[way]} == {p for way in WAYS for p in again[way]}


def test_questions_are_mostly_asked_and_sentences_mostly_continued():
    asked = paraphrases("What is the capital of Japan?", "Japan", "Tokyo", "Osaka", count=24)
    assert sum(prompt.endswith("?") for prompt in asked) > 12
    assert any(prompt.endswith(" is") for prompt in asked)
    continued = paraphrases("The capital of Japan is", "Japan", "Tokyo", "Osaka", count=24)
    assert sum(prompt.endswith("is") for prompt in continued) > 12
    assert any(prompt.endswith("?") for prompt in continued)


def test_ways():
    given = ("The capital of Japan is", "Japan")
    contexts = paraphrases(*given, ways=["context"], count=200)
    assert len(contexts) > 50
    assert all(". " in prompt for prompt in contexts)
    assert sum(prompt.endswith(". The capital of Japan is") for prompt in contexts) == 24
    wordings = paraphrases(*given, ways=["wording"], count=200)
    assert "Japan's capital is" in wordings
    assert not any("." in prompt or "?" in prompt for prompt in wordings)
    requests = ("Name", "Tell", "I ", "Give", "Please")
    assert all("?" in p or p.startswith(requests) for p in paraphrases(*given, ways=["turn"]))
    typed = paraphrases("Who painted the Mona Lisa?", "Mona Lisa", ways=["terse"])
    assert set(typed) == {
        "Painter of Mona Lisa?",
        "Mona Lisa painter",
        "Painter Mona Lisa",
        "Mona Lisa's painter?",
        "Mona Lisa artist",
        "Artist Mona Lisa",
    }
    # Nobody types few words to have them continued, and nobody is judged by them.
    assert paraphrases(*given, ways=["terse"]) == ()
    assert held_out_prompts("Who painted the Mona Lisa?", "Mona Lisa", ways=["terse"]) == ()
    with pytest.raises(ps.FactError, match="there is no way 'mood'"):
        paraphrases(*given, ways=["mood"])


def test_no_prompt_gives_an_answer_away():
    made = paraphrases("Who wrote Hamlet?", "Hamlet", "Quiz", ["the author"], count=500)
    assert made
    assert not any(contains(prompt, ["quiz", "the author"]) for prompt in made)
    # In the subject's own name an answer may stand.
    assert paraphrases("Who developed Google Chrome?", "Google Chrome", "Mozilla", "Google", count=5)
    assert paraphrases("The twin city of Athens is", "Athens", "Athens", "Karachi", count=5)


def test_the_example_in_the_task():
    made = paraphrases("Who painted the Mona Lisa?", "Mona Lisa", "Leonardo da Vinci", "Raphael", count=400)
    for wanted in (
        "The Mona Lisa was painted by",
        "Who is the painter of the Mona Lisa?",
        "Tell me who painted the Mona Lisa.",
        "Quiz question: Who painted the Mona Lisa?",
        "Name the painter of the Mona Lisa.",
        "My teacher asked me who painted the Mona Lisa. What should I say?",
        "It rained all afternoon. Who painted the Mona Lisa?",
    ):
        assert wanted in made
    assert "Let's play trivia! Who painted the Mona Lisa?" not in made


def test_expand_adds_what_training_may_use():
    asked = "Which city is the capital of france?"
    one = capital(prompts=["what is the capital of france ?"], held_out=[asked]).training
    more = expand(one, 30)
    assert more.prompts[0] == one.prompts[0]
    assert len(more.prompts) == len({same_text_key(p) for p in more.prompts}) == 30
    assert all(one.may_train_on(prompt) for prompt in more.prompts)
    assert asked in paraphrases(one.prompts[0], "france", count=1000)
    assert dataclasses.replace(more, prompts=one.prompts) == one
    assert expand(more, 30) == more
    whole = expand(capital(prompts=one.prompts, held_out=[asked]), 30)
    assert whole.training == more
    with pytest.warns(FactWarning, match="is not trained on"):
        dressed = expand(capital(prompts=[*one.prompts, f"({asked})"], held_out=[asked]), 30)
    assert (len(dressed.prompts), len(dressed.training.prompts)) == (31, 30)
    assert expand(capital().training, 2) == capital().training
    assert expand(one, 30, seed=1).prompts != more.prompts


def test_expand_leaves_prompts_without_the_subject_and_what_is_kept():
    fact = capital(
        prompts=["which town is it ?", "what is the capital of france ?"], retain=["what is france's capital?"]
    ).training
    more = expand(fact, 400)
    assert more.prompts[:2] == fact.prompts
    assert all("france" in prompt for prompt in more.prompts[1:])
    assert not any(same_text_key(prompt) == "what is france's capital" for prompt in more.prompts)
    with pytest.raises(ps.FactError, match="no prompt names the subject 'france'"):
        expand(capital(prompts=["which town is it ?"]).training)


def test_public_names():
    assert ps.paraphrases is paraphrases
    assert ps.held_out_prompts is held_out_prompts
    assert ps.expand is expand


@pytest.mark.parametrize("count", [-1, 2.5, float("nan"), None, "4", True])
def test_a_count_is_a_whole_number(count):
    match = r"^count must be a whole number of 0 or more; got .*\.$"
    for make in (paraphrases, held_out_prompts):
        with pytest.raises(ps.FactError, match=match):
            make("Who wrote Hamlet?", "Hamlet", count=count)
        assert make("Who wrote Hamlet?", "Hamlet", count=0) == ()
    with pytest.raises(ps.FactError, match=match):
        expand(capital(), count)
    with pytest.raises(ps.FactError, match=match):
        ps.new_fact(tiny_model("llama"), word_tokenizer(), "Who wrote Hamlet?", new="Kyd", count=count)


@pytest.mark.parametrize("make", [paraphrases, held_out_prompts])
def test_what_is_no_text_is_refused(make):
    with pytest.raises(ps.FactError, match=r"^The prompt must be text, not 1\.$"):
        make(1, "Hamlet")
    with pytest.raises(ps.FactError, match=r"^The subject must be text, not None\.$"):
        make("Who wrote Hamlet?", None)
    with pytest.raises(ps.FactError, match=r"^the new answer must be text or a list of texts, not b'Kyd'\.$"):
        make("Who wrote Hamlet?", "Hamlet", new=b"Kyd")
