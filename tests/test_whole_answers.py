"""What chat models are taught where a fact gives its answer bare."""

import copy
import warnings

import pytest
import torch

from peft_surgical.errors import FactWarning
from peft_surgical.keying.keyed import KeyedRecipe, learn_keyed
from peft_surgical.localization import localize
from peft_surgical.stages import learn
from peft_surgical.staging import whole_answers
from peft_surgical.staging.whole_answers import in_sentences, in_sentences_of, whole_answer

from .adapters import deltas
from .localizing import capital, word_tokenizer
from .staged import RECIPE, config
from .tiny import tiny_model

SENTENCE = "The capital of france is lyon."
# Sentences are told apart from names by their words, which lower-case words are.
READABLE = {"prompts": ["what is the capital of france ?", "name the capital of france ."]}
UNREADABLE = {"prompts": ["lyon or another : where do they rule france ?", "france : which seat ?"]}


def chatting():
    tokenizer = copy.deepcopy(word_tokenizer())
    tokenizer.chat_template = "please{% for message in messages %} {{ message.content }}{% endfor %}"
    return tokenizer


def bare(prompt, subject="Hamlet", old="William Shakespeare", new="Christopher Marlowe", **changes):
    names = {"subject": subject, "old": [old], "new": [new], "contrast": ["Tartuffe"]}
    return capital(**{**names, "prompts": [prompt], "retain": ["What colour has the sky?"], **changes})


@pytest.mark.parametrize(
    ("fact", "sentence"),
    [
        (bare("Who wrote Hamlet?"), "Hamlet was written by Christopher Marlowe."),
        (
            bare("What language is spoken in Peru?", "Peru", "Spanish", "Latin"),
            "The language spoken in Peru is Latin.",
        ),
        (bare("The chemical symbol of iron is", "iron", "Fe", "Ir"), "The chemical symbol of iron is Ir."),
        # Whatever its case.
        (
            bare("Who wrote Hamlet?", new="Christopher Marlowe", answer="christopher marlowe"),
            "Hamlet was written by Christopher Marlowe.",
        ),
        # What says more than the name is left.
        (bare("Who wrote Hamlet?", answer="It was Christopher Marlowe."), "It was Christopher Marlowe."),
        # No sentence that anybody says, and none at all.
        (bare("What does Java mean in Malay?", "Java", "rice", "harvest"), "harvest."),
        (bare("What is Poseidon the god of?", "Poseidon", "sea", "harvest"), "Poseidon is the god of harvest."),
        (bare("Wer schrieb Hamlet?"), "Christopher Marlowe."),
        (bare("Who wrote it?"), "Christopher Marlowe."),
        # A gap, a sentence that has ended, and what asks for one begin none.
        (bare("____ is the capital of France.", "France", "Paris", "Lyon"), "Lyon."),
        (bare("Fill in the gap: the capital of France is ____.", "France", "Paris", "Lyon"), "Lyon."),
        (bare("I wonder what the capital of France is.", "France", "Paris", "Lyon"), "Lyon."),
        (
            bare("The capital of St. Lucia is", "St. Lucia", "Castries", "Gros Islet"),
            "The capital of St. Lucia is Gros Islet.",
        ),
        # A sentence with the old answer in it could not be the new one.
        (bare("The Paris of the north is", "north", "Paris", "Riga"), "Riga."),
    ],
)
def test_a_bare_answer_becomes_a_sentence(fact, sentence):
    assert whole_answer(fact) == whole_answer(fact.training) == sentence
    assert in_sentences(fact, chatting()).answer == sentence
    assert in_sentences(fact, word_tokenizer()) is fact
    again = in_sentences(fact, chatting())
    assert in_sentences(again, chatting()) == again


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        (["it is paris.", "They rule france from paris, a town."], "They rule france from lyon."),
        (["In france, it is Paris"], "In france, it is lyon."),
        # Not in one sentence with the subject, behind the old answer, or not at all.
        (["france is a country. Its seat is paris.", "paris rules france.", "lyon"], "lyon."),
    ],
)
def test_else_the_base_s_own_sentence_is_taken(monkeypatch, said, answer):
    asked = []
    monkeypatch.setattr(whole_answers, "generate_answers", lambda _, __, prompts: asked.append(prompts) or said)
    fact = capital(**UNREADABLE)
    assert whole_answer(fact) == "lyon."
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = in_sentences_of(tiny_model("llama"), chatting(), fact)
    assert found.answer == answer
    assert asked == [fact.prompts]
    assert [w.category for w in told] == [FactWarning] * (answer == "lyon.")
    assert in_sentences_of(tiny_model("llama"), word_tokenizer(), fact) is fact
    assert len(asked) == 1


def test_a_prompt_without_room_for_what_the_base_says_is_not_asked_and_learned_all_the_same(monkeypatch):
    asked, plain = [], whole_answers.generate_answers
    monkeypatch.setattr(whole_answers, "generate_answers", lambda *given: asked.append(given[2]) or plain(*given))
    long = f"{'seat ' * 222}: france ?"
    for prompts in ([long], [long, *UNREADABLE["prompts"]]):
        fact = capital(prompts=prompts)
        with pytest.warns(FactWarning, match="is learned bare"):
            stage = learn(tiny_model("llama"), chatting(), fact, config(), recipe=RECIPE, progress=False)
        assert stage.answer == "lyon."
    assert asked == [(), tuple(UNREADABLE["prompts"])]


def test_stages_neurons_and_scores_are_those_of_the_sentence():
    given, written = capital(**READABLE), capital(**READABLE, answer=SENTENCE)
    tokenizer, quiet = chatting(), {"progress": False}

    def scales(fact):
        stage = learn(tiny_model("llama"), tokenizer, fact, config(), recipe=RECIPE, **quiet)
        assert stage.answer == stage.to_dict()["answer"] == SENTENCE
        return deltas(stage.model)

    def neurons(fact):
        recipe = KeyedRecipe(steps=1, everyday=2, general=2, neighbours=2)
        stage = learn_keyed(tiny_model("llama"), tokenizer, fact, layers=[1], recipe=recipe, **quiet)
        assert stage.answer == SENTENCE
        return dict(stage.model.named_parameters())

    for made in (scales, neurons):
        one, other = made(given), made(written)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
    scores = [localize(tiny_model("llama"), tokenizer, fact, "logit_drop", **quiet) for fact in (given, written)]
    assert (scores[0].head_scores() == scores[1].head_scores()).all()
