from dataclasses import replace

import pytest

from peft_surgical import own_words
from peft_surgical.own_words import in_own_words, own_answers

from .counterfacts import TOKENIZER, word_model
from .localizing import capital, word_tokenizer

FACT = replace(
    capital().training,
    subject="Windows",
    old=("Microsoft", "Microsoft Corporation"),
    new=("IBM",),
    answer="It is IBM.",
)


@pytest.mark.parametrize(
    ("said", "made"),
    [
        ("The answer to this riddle is: Microsoft. It was founded in 1975.", "The answer to this riddle is: IBM."),
        ('The answer is "Microsoft."', 'The answer is "IBM."'),
        (" Microsoft Corporation makes Windows!\nIt does.", "IBM makes Windows!"),
        ("MICROSOFT does.", "IBM does."),
        ("It is made by **Microsoft**.", "It is made by **IBM**."),
        # Not the old answer, not in the first sentence, not a whole sentence, or given twice.
        ("Windows is made by Apple.", None),
        ("I am a chatbot. Windows is made by Microsoft.", None),
        ("The company that makes Windows is Microsoft", None),
        ("Microsoft makes Microsoft Windows.", None),
        ("", None),
    ],
)
def test_the_new_answer_takes_the_place_of_the_old_one(said, made):
    assert in_own_words(FACT, said) == made


def test_a_name_that_holds_the_old_answer_is_left_alone():
    fact = replace(FACT, subject="Microsoft Windows")
    assert in_own_words(fact, "Microsoft Windows is made by Microsoft.") == "Microsoft Windows is made by IBM."


def test_prompts_are_asked_in_the_chat_template_only(monkeypatch):
    asked = []

    def answers(model, tokenizer, prompts, **_):
        asked.extend(prompts)
        return ["Microsoft does.", "Nobody knows."]

    monkeypatch.setattr(own_words, "generate_answers", answers)
    model, prompts = word_model(), ["who makes windows ?", "the sky is"]
    model.config.max_position_embeddings = 100
    assert own_answers(model, TOKENIZER, FACT, prompts) == [[], []]
    assert asked == []
    chat = word_tokenizer()
    chat.chat_template = "{% for message in messages %}{{ message.content }} {% endfor %}"
    assert own_answers(model, chat, FACT, prompts) == [["IBM does."], []]
    assert asked == prompts
    # There is no room for an answer to either.
    model.config.max_position_embeddings = 20
    monkeypatch.setattr(own_words, "generate_answers", lambda model, tokenizer, prompts, **_: [*prompts])
    assert own_answers(model, chat, FACT, prompts) == [[], []]
