"""A bare answer as a sentence, for models that answer in sentences.

A chat model begins with the words of the question and names the answer at their end. To make it begin with the answer
itself changes what it says at a place where nothing tells one subject from another yet, and so for others, too.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import replace
from typing import Any, TypeVar

from ..drafting.english import readable
from ..drafting.sentences import statement
from ..errors import FactWarning, brief
from ..facts import Fact, TrainingFact
from ..running.generation import MAX_NEW_TOKENS, generate_answers
from ..texts.grammar import as_sentence
from ..texts.lengths import fits
from ..texts.prompts import encode, has_chat_template
from ..texts.text import contains, occurrences_outside, same_text_key
from ..tuner.unchanged import base_of

AnyFact = TypeVar("AnyFact", Fact, TrainingFact)

# What no sentence has before its last words: a gap, an end, or what introduces a request ("Fill in the blank:").
_UNLIKE_A_BEGINNING = re.compile(r"__|\.\.\.|…|:|[.!?][\"'”’)]*\s*$|[!?]\s|(?<=[^\W\d_]{4})\.\s")
# Prompts that the base is asked, for one answer that names the subject and then the old answer.
_ASKED = 8


def whole_answer(fact: Fact | TrainingFact) -> str:
    """A fact's answer as a sentence in words of its first prompt that names the subject.

    Returns:
        To "Who developed PyTorch?" the sentence "PyTorch was developed by Google."; the fact's own answer where that
        is more than a name of the new one, or no sentence is known.
    """
    reading = readable(fact) if is_bare(fact) else None
    if reading is None:
        return fact.answer
    sentence = statement(reading, _bare(fact))
    # "What bees make is honey" is nothing that anybody says.
    if sentence is None or sentence.startswith("What ") or not _gives_new(sentence, fact):
        return fact.answer
    begun = sentence.removesuffix(_bare(fact)).replace(reading.subject, "")
    return fact.answer if _UNLIKE_A_BEGINNING.search(begun) else as_sentence(sentence)


def in_sentences(fact: AnyFact, tokenizer: Any) -> AnyFact:
    """The fact, with [`whole_answer`] where a model has a chat template; without one it goes on with the prompt."""
    return _answering(fact, whole_answer(fact)) if has_chat_template(tokenizer) else fact


def in_sentences_of(model: Any, tokenizer: Any, fact: AnyFact) -> AnyFact:
    """As [`in_sentences`], and where no sentence is known, with one in which the base gives the old answer.

    Args:
        model: The base, or a model whose adapters can be switched off; it is asked a few of the prompts, of those
            that leave it room to answer.
        tokenizer: Its tokenizer.
        fact: The fact.

    Warns:
        FactWarning: If the answer stays bare although the model answers in a chat.
    """
    fact = in_sentences(fact, tokenizer)
    if not has_chat_template(tokenizer) or not is_bare(fact):
        return fact
    # What is taught may be shorter than what the base is let say, so that a prompt may fit with that alone.
    room = tuple(p for p in fact.prompts if fits(model.config, len(encode(tokenizer, p)) + MAX_NEW_TOKENS))
    with base_of(model):
        said = generate_answers(model, tokenizer, room[:_ASKED])
    found = next(filter(None, (_replaced(answer, fact) for answer in said)), None)
    if found is None:
        warnings.warn(
            f"{brief(fact.answer)} is learned bare, which changes other answers, too; give 'answer' as a sentence.",
            FactWarning,
            stacklevel=3,
        )
        return fact
    return _answering(fact, found)


def _replaced(said: str, fact: Fact | TrainingFact) -> str | None:
    """What the base said up to the old answer, and the new one; None where it did not name the subject before."""
    places = [place for name in fact.old for place in occurrences_outside(said, name, fact.names)]
    start = min((start for start, _ in places), default=0)
    begun = said[:start]
    named = contains(begun, fact.names) and not any(end in begun for end in (". ", "! ", "? ", "\n"))
    sentence = as_sentence(f"{begun}{_bare(fact)}")
    return sentence if named and _gives_new(sentence, fact) else None


def _gives_new(sentence: str, fact: Fact | TrainingFact) -> bool:
    """Whether it is what a fact's answer must be."""
    old, new = (contains(sentence, names, besides=fact.names) for names in (fact.old, fact.new))
    return new and not old


def is_bare(fact: Fact | TrainingFact) -> bool:
    """Whether a fact's answer is a name of the new one and nothing more."""
    return same_text_key(fact.answer) in map(same_text_key, fact.new)


def _bare(fact: Fact | TrainingFact) -> str:
    return next(name for name in fact.new if same_text_key(name) == same_text_key(fact.answer))


def _answering(fact: AnyFact, answer: str) -> AnyFact:
    return fact if answer == fact.answer else replace(fact, answer=answer)
