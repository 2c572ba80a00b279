"""Classes of tokens, worked out by hand, with plain and chat tokenizers."""

import pytest

from peft_surgical.localizing.corruption import named_spans, template_tokens
from peft_surgical.localizing.token_classes import CLASSES, token_classes
from peft_surgical.texts.prompts import answer_tokens, encode

from .localizing import capital, word_tokenizer
from .small_tokenizers import CHATML, small_tokenizer

SHORT = {
    ".": "before",
    "F": "subject_first",
    "M": "subject_middle",
    "L": "subject_last",
    "S": "subsequent",
    "f": "further",
    "t": "template",
    "=": "last",
}


def classes(length, *spans, template=range(0)):
    found = token_classes(length, [range(*span) for span in spans], template)
    return "".join(next(sign for sign, name in SHORT.items() if name == each) for each in found)


def test_every_class_has_words():
    assert list(CLASSES) == list(SHORT.values())
    assert len(set(CLASSES.values())) == len(CLASSES)


@pytest.mark.parametrize(
    ("length", "spans", "template", "expected"),
    [
        (10, [(2, 6)], range(0), "..FMMLSff="),
        (10, [(2, 4)], range(0), "..FLSffff="),
        # Of one token it is the last, which ROME counts as the first, too.
        (6, [(2, 3)], range(0), "..LSf="),
        # At the beginning nothing is before it.
        (4, [(0, 2)], range(0), "FLS="),
        # The last token is the last whatever else it is.
        (4, [(2, 3)], range(0), "..L="),
        (4, [(3, 4)], range(0), "...="),
        (4, [(2, 4)], range(0), "..F="),
        (4, [(2, 6)], range(0), "..F="),
        # Named twice, each counts, and what is between them is behind the first.
        (12, [(1, 3), (6, 8)], range(0), ".FLSffFLSff="),
        (8, [(1, 2), (2, 3), (4, 5)], range(0), ".LLSLSf="),
        # The template's tokens before the prompt are before the subject; those behind it have a class of their own.
        (12, [(2, 3), (9, 10)], range(5, 8), "..LSftttfLS="),
        (6, [(2, 3)], range(3, 5), "..LSt="),
        (6, [(2, 3)], range(3, 6), "..LSt="),
    ],
)
def test_by_hand(length, spans, template, expected):
    assert classes(length, *spans, template=template) == expected


def of_prompt(tokenizer, fact, prompt):
    """Each token that is read, with its class."""
    asked = encode(tokenizer, prompt)
    ids = answer_tokens(tokenizer, prompt, fact).ids
    spans = [span for part in named_spans(tokenizer, fact, prompt, asked) for span in part if span.start < len(ids)]
    tail = template_tokens(tokenizer)[1]
    found = token_classes(len(ids), spans, range(len(asked) - tail, len(asked)))
    return [(tokenizer.decode([token]), each) for token, each in zip(ids, found, strict=True)]


def test_of_words():
    fact = capital(
        subject="new zealand",
        answer="the capital of new zealand is lyon .",
        prompts=["what is the capital of new zealand ?"],
    ).training
    assert of_prompt(word_tokenizer(), fact, fact.prompts[0]) == [
        *((word, "before") for word in ["what", "is", "the", "capital", "of"]),
        ("new", "subject_first"),
        ("zealand", "subject_last"),
        ("?", "subsequent"),
        ("the", "further"),
        ("capital", "further"),
        ("of", "further"),
        ("new", "subject_first"),
        ("zealand", "subject_last"),
        ("is", "last"),
    ]


def test_of_a_chat_the_template_s_tokens_are_told_apart():
    fact = capital(
        subject="France",
        old=["Paris"],
        new=["Lyon"],
        answer="The capital of France is Lyon.",
        prompts=["What is the capital of France?"],
        held_out=["Name the capital of France."],
    ).training
    found = of_prompt(small_tokenizer("byte_level", CHATML), fact, fact.prompts[0])
    text = {name: [token for token, own in found if own == name] for name in CLASSES}
    assert "".join(text["before"]).startswith("<|im_start|>user\nWhat is the capital of")
    assert text["subject_last"] == [" France", " France"]
    assert (text["subject_first"], text["subject_middle"], text["last"]) == ([], [], [" is"])
    assert text["subsequent"] == ["?"]
    assert "".join(text["template"]) == "<|im_end|>\n<|im_start|>assistant\n"
    assert "".join(text["further"]) == "The capital of"
