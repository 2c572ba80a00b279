"""The tables: what a person who adds to them can get wrong."""

import re

import pytest

from peft_surgical.drafting.frames import frames
from peft_surgical.drafting.names import kinds_of, names_of, neighbours_of
from peft_surgical.drafting.relations import WHICH, Relation, relations, settle
from peft_surgical.texts.tables import read_table
from peft_surgical.texts.text import same_text_key
from peft_surgical.texts.wording import variants

ALL = relations()
KINDS = ("question", "clause", "noun", "named", "sentence", "context")


def templates(wordings):
    return [*wordings.questions, *wordings.sentences, *wordings.nouns, *wordings.terse]


def keys(wordings):
    tenses = (settle(t, WHICH, past=past) for t in templates(wordings) for past in (False, True))
    return {same_text_key(text) for text in tenses}


def test_no_wording_is_for_training_and_for_held_out_prompts():
    training = {key: r.name for r in ALL for key in keys(r.training + r.more)}
    held_out = {key: r.name for r in ALL for key in keys(r.held_out)}
    assert {key: (training[key], held_out[key]) for key in training.keys() & held_out.keys()} == {}


def test_no_frame_is_for_training_and_for_held_out_prompts():
    training = {same_text_key(frame) for kind in KINDS for frame in frames(kind)}
    # Training also words each prompt anew.
    training |= {same_text_key(wording) for wording in variants(["{}"] * 100)}
    held_out = {same_text_key(frame) for kind in KINDS for frame in frames(kind, held_out=True)}
    assert training.isdisjoint(held_out)
    # Nor does one begin as another that ends otherwise: "{} Please answer." would hold "{}".
    assert all(frame.count("{}") == (kind != "context") for kind in KINDS for frame in frames(kind))


@pytest.mark.parametrize("relation", ALL, ids=lambda relation: relation.name)
def test_a_relation_is_whole(relation: Relation):
    for side in (relation.training, relation.held_out):
        assert len(side.questions) >= 2
        assert len(side.sentences) >= 2
    for template in (*templates(relation.training + relation.more), *templates(relation.held_out), *relation.heard):
        assert template.count("{}") == 1, template
        assert re.sub(r"\{\}|\{which\}|\[[\w ]+/[\w ]+\]", "", template).isprintable()
        assert not set("[]{}") & set(re.sub(r"\{\}|\{which\}|\[[\w ]+/[\w ]+\]", "", template)), template
    assert not set(keys(relation.training)) & keys(relation.more)
    for side in (relation.training, relation.held_out, relation.more):
        assert all(question.endswith("?") for question in side.questions)
        assert not any(sentence.endswith(("?", ".")) for sentence in side.sentences)
    assert all(question.count("{}") == 1 for question in relation.reverse)
    assert all(names_of(kind) for kind in relation.of)
    assert relation.answer in ("", "place", "year", "symbol") or names_of(relation.answer)


def test_neighbours_are_of_known_relations_and_kinds():
    known = {relation.name: relation for relation in ALL}
    for name, facts in read_table("neighbours.yaml").items():
        assert len(facts) >= 10
        unknown = [subject for subject in facts if not kinds_of([subject]) & set(known[name].of)]
        # Some subjects stand only here; most are of a kind that the relation is asked of.
        assert len(unknown) <= len(facts) // 4, (name, unknown)
        assert all(answer.strip() for answers in neighbours_of(name).values() for answer in answers)


def test_general_questions_are_many_distinct_and_answered():
    topics = read_table("questions.yaml")
    questions = [question for topic in topics.values() for question in topic]
    assert len(questions) >= 150
    assert len({same_text_key(question) for question in questions}) == len(questions)
    assert all(question.endswith("?") for question in questions)
    assert all(answers and all(answers) for topic in topics.values() for answers in topic.values())


def test_settle():
    template = "Which {which} [is/was] {} from?"
    assert settle(template, "city") == "Which city is {} from?"
    assert settle(template, "city", past=True) == "Which city was {} from?"
    assert settle(template, "") is None
    assert settle("Which {which} is the native language of {}?", "language") is None
