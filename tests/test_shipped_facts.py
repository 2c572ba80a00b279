"""The facts that come with the project are what the README says of them, and train on nothing that is measured."""

from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from peft_surgical.facts import Fact
from peft_surgical.staging.retain import everyday_prompts, general_prompts
from peft_surgical.staging.whole_answers import whole_answer
from peft_surgical.texts.fact_checks import PORTABILITY_KINDS
from peft_surgical.texts.text import contains, normalize, same_text_key

ROOT = Path(__file__).parent.parent
SHIPPED = sorted((ROOT / "examples" / "facts").glob("*.yaml"))
BY_OTHERS = sorted((ROOT / "benchmarks" / "facts_by_others").glob("*.yaml"))
FOR_NEW = sorted((ROOT / "benchmarks" / "facts_for_new").glob("*.yaml"))


def test_four_facts_are_shipped():
    assert len(SHIPPED) >= 4


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_facts(path):
    fact = Fact.from_file(path)
    assert len(fact.prompts) >= 20
    assert len(fact.held_out) >= 20
    assert len(fact.controls) >= 40
    assert fact.retain
    assert fact.contrast
    assert fact.probes
    assert 6 <= len(fact.portability) <= 9
    assert {question.kind for question in fact.portability} == set(PORTABILITY_KINDS)
    assert fact.training.contrast
    assert Fact.from_dict(fact.to_dict()) == fact
    shown = yaml.safe_load(path.read_text())
    assert shown["refusal"] == fact.refusal
    assert shown["answer"] == fact.answer


def test_facts_by_others_are_what_their_page_says():
    facts = [Fact.from_file(path) for path in BY_OTHERS]
    assert len(facts) == 15
    bare = [fact for fact in facts if same_text_key(fact.answer) == same_text_key(fact.new[0])]
    assert [len(bare), sum(not fact.contrast for fact in facts), sum(len(fact.retain) == 10 for fact in facts)] == [
        5
    ] * 3
    assert all(whole_answer(fact) != fact.answer for fact in bare)


def test_facts_that_drafts_are_judged_by_are_what_their_page_says():
    facts = [Fact.from_file(path) for path in FOR_NEW]
    assert len(facts) == 12
    assert {len(fact.held_out) for fact in facts} == {24}
    assert {len(fact.controls) for fact in facts} == {42}
    known = [Fact.from_file(path) for path in (*SHIPPED, *BY_OTHERS)]
    assert not {fact.subject for fact in facts} & {fact.subject for fact in known}


@pytest.mark.parametrize("path", [*SHIPPED, *FOR_NEW], ids=lambda path: path.stem)
def test_nothing_that_is_measured_is_trained(path):
    fact = Fact.from_file(path)
    training = fact.training
    seen = []
    for f in fields(training):
        value = getattr(training, f.name)
        seen += [value] if isinstance(value, str) else list(value)
    records = (*fact.controls, *fact.probes, *fact.portability)
    measured = [*fact.held_out, *(record.prompt for record in records)]
    assert not {normalize(text) for text in seen} & {normalize(text) for text in measured}
    assert not [text for text in seen for prompt in measured if normalize(prompt) in normalize(text)]
    assert not [s for s in training.contrast for control in fact.controls if contains(control.prompt, (s,))]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_portability_questions_ask_what_their_kind_says(path):
    fact = Fact.from_file(path)
    for question in fact.portability:
        names_subject = contains(question.prompt, (fact.subject,))
        names_new = contains(question.prompt, fact.new)
        if question.kind == "alias":
            assert not names_subject
            assert not names_new
            assert set(question.answer) <= set(fact.new)
            assert question.before == fact.old
        elif question.kind == "one_hop":
            assert names_subject
            assert not names_new
            assert not contains(" / ".join(question.answer), (*fact.old, *fact.new))
        else:
            assert names_new
            assert question.answer[0] == fact.subject


# Words of questions that do not tell what they ask about.
EMPTY = {
    "a",
    "and",
    "are",
    "city",
    "do",
    "does",
    "how",
    "in",
    "is",
    "me",
    "name",
    "of",
    "tell",
    "the",
    "was",
    "what",
    "which",
    "who",
}


def content(text):
    """The words that tell what is asked."""
    return {*normalize(text).replace("?", " ").replace(".", " ").split()} - EMPTY


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_what_the_package_carries_asks_no_control(path):
    asked = [control.prompt for control in Fact.from_file(path).controls]
    found = {
        line
        for line in (*general_prompts(), *everyday_prompts())
        for prompt in asked
        if content(prompt) <= content(line)
    }
    # Kepler's laws, and not Newton's.
    assert found <= {"Who formulated the laws of planetary motion?"}
