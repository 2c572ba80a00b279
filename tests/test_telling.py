from dataclasses import replace

import pytest

from peft_surgical.keying.keys import Marked
from peft_surgical.keying.telling import named_by_any, run_from, told_apart
from peft_surgical.staging.retained import base_rows
from peft_surgical.staging.trained_rows import training_rows
from peft_surgical.texts.prompts import EncodedAnswer, encode_answer
from peft_surgical.texts.subjects import subject_ends
from peft_surgical.texts.topics import relation_prompts

from .counterfacts import TOKENIZER, word_model
from .test_keyed import FACT, RECIPE

pytestmark = pytest.mark.usefixtures("few_carried_prompts")


def test_a_few_kept_questions_about_the_subject_are_the_subject_and_none_is_what_it_is_told_from():
    model = word_model()
    fact = replace(FACT, aliases=("italy",), retain=("the sky is", "where is france ?", "what is italy ?"))
    recipe = replace(RECIPE, neighbours=0, general=0)
    prompts, rows = training_rows(model, TOKENIZER, fact, recipe, fact.answer)
    own = Marked(rows, subject_ends(TOKENIZER, prompts, "france", rows))
    named = named_by_any(TOKENIZER, fact, prompts, own)
    kept = base_rows(model, TOKENIZER, fact, recipe, 0, False, besides=relation_prompts(fact))
    near = kept.rows[: kept.near]
    starts, _ = run_from(named, kept.rows)
    names, kinds, _ = told_apart(model, TOKENIZER, fact, own, named, starts, kept, namesakes=recipe.namesakes, seed=0)
    france, italy = TOKENIZER.convert_tokens_to_ids(["france", "italy"])
    for kind, token in zip(names, (france, italy), strict=True):
        assert {row.ids[i] for row, marks in zip(kind.rows, kind.marks, strict=True) for i in marks} == {token}
    asked = [[token for token in (france, italy) if token in row.ids[: row.answer_start]] for row in near]
    about = [row for row, tokens in zip(near, asked, strict=True) if france in tokens]
    # Three of its own rows name it, and one question goes with three.
    for times, few in ((1, about[:1]), (2, [about[0], about[len(about) // 2]])):
        more = Marked([*own.rows] * times, [*own.marks] * times)
        [fires, *_], *_ = told_apart(model, TOKENIZER, fact, more, named, starts, kept, namesakes=0, seed=0)
        assert fires.rows == [*more.rows, *few]
        assert fires.marks[: len(more.marks)] == more.marks
    # All else that is near counts, but for first tokens.
    rest = [
        [i for i in range(1, len(row.ids)) if row.ids[i] not in tokens]
        for row, tokens in zip(near, asked, strict=True)
    ]
    assert kinds[0] == Marked(near, rest)
    # And what of its own rows stands before they are run, again but for first tokens.
    for start, last in ((1, kinds[-2]), (2, Marked.whole([EncodedAnswer(row.ids[:2], 2) for row in rows]))):
        early = told_apart(
            model, TOKENIZER, fact, own, named, [start] * len(rows), kept, namesakes=recipe.namesakes, seed=0
        )
        assert early[1][-1] == last
    # What a text begins with counts too, unless it is one of the subject's names.
    begun = {row.ids[0] for row in (*rows, *kept.rows)}
    assert begun > {row.ids[0] for row in rows}
    for marks, held in (([1], True), ([0], False)):
        named = Marked(rows, [marks] * len(rows))
        *_, first = told_apart(model, TOKENIZER, fact, own, named, starts, kept, namesakes=0, seed=0)
        assert (begun <= first.tokens()) == held


def test_another_subject_whose_name_holds_the_subject_s_is_told_apart():
    fact = replace(FACT, contrast=("new france", "japan"), retain=("where is new france ?", "where is france ?"))
    recipe = replace(RECIPE, neighbours=6, general=0)
    prompts, rows = training_rows(model := word_model(), TOKENIZER, fact, recipe, fact.answer)
    own = Marked(rows, subject_ends(TOKENIZER, prompts, "france", rows))
    kept = base_rows(model, TOKENIZER, fact, recipe, 0, False, besides=relation_prompts(fact))
    starts, _ = run_from(own, kept.rows)
    [names], kinds, _ = told_apart(model, TOKENIZER, fact, own, own, starts, kept, namesakes=0, seed=0)
    new, france = TOKENIZER.convert_tokens_to_ids(["new", "france"])
    assert any(new in row.ids[: row.answer_start] for row in kept.rows)

    def found(texts):
        marks = zip(texts.rows, texts.marks, strict=True)
        return {row.ids[i - 1] == new for row, own in marks for i in own if row.ids[i] == france}

    assert (found(names), found(kinds[0])) == ({False}, {True})


def test_another_subject_whose_name_holds_another_name_of_the_subject_s_is_not_named():
    fact = replace(FACT, aliases=("zealand",), contrast=("new zealand",))
    prompts = ["where is new zealand ?", "where is zealand ?"]
    rows = [encode_answer(TOKENIZER, prompt, "lyon") for prompt in prompts]
    assert named_by_any(TOKENIZER, fact, prompts, Marked(rows, [[], [0]])).marks == [[], [0, 2]]


def test_where_a_row_begins_to_run():
    def row(*ids, answer):
        return EncodedAnswer(ids, answer)

    rows = [row(1, 2, 3, 4, 5, 6, answer=5), row(1, 2, 7, 8, 9, answer=4), row(1, 2, 9, 8, 7, answer=3)]
    kept = [row(1, 2, 5, 5, answer=3)]
    # At the name; before the answer, where the name goes on into it; where rows no longer begin alike.
    assert run_from(Marked(rows, [[3, 5], [4], []]), kept) == ([3, 3, 2], 2)
    # A name in what all begin with.
    assert run_from(Marked(rows, [[1], [1], []]), kept) == ([1, 1, 1], 1)
    assert run_from(Marked(rows, [[0], [3], [2]]), []) == ([0, 3, 2], 0)
    # At the latest before the answer, be it the same in all.
    assert run_from(Marked([rows[0]] * 2, [[], []]), []) == ([4, 4], 4)
