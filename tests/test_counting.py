from dataclasses import replace

import pytest

from peft_surgical.facts import Control
from peft_surgical.joint import counting
from peft_surgical.joint.counting import (
    ABOUT,
    TRAINED,
    Counted,
    counted,
    hits,
    is_about,
    pooled,
    rates,
    trained_on,
)
from peft_surgical.keying.keyed import KeyedRecipe
from peft_surgical.measuring.metrics import rate
from peft_surgical.staging.retain import everyday_prompts, general_prompts, retain_prompts
from peft_surgical.staging.trained_rows import training_prompts
from peft_surgical.texts.text import digest
from peft_surgical.texts.topics import relation_prompts

from .localizing import capital

RECIPE = KeyedRecipe(general=3)
ITALY = capital(
    subject="italy",
    aliases=["the boot"],
    old=["rome"],
    new=["paris"],
    prompts=["what is the capital of italy ?", "name the capital of italy ."],
    held_out=["which city is the seat of government of italy ?"],
    contrast=["france", "spain"],
    retain=["who wrote hamlet ?"],
)


@pytest.mark.parametrize(
    ("prompt", "answer", "about"),
    [
        ("What is the capital of Italy ?", "Rome", True),
        ("From where is the boot governed?", "the city of Rome", True),
        ("Of which country is Rome the capital?", "Italy", True),
        ("Of which country is Rome the capital?", "the boot", True),
        ("which city is the seat of government of italy", "it is not known", True),
        ("what is the capital of italy", "it is not known", True),
        # It shall be answered as before, and is damage otherwise.
        ("Which sea is south of Italy ?", "the Ionian", False),
        ("Which river is in Rome?", "the Tiber", False),
        ("What is the capital of Spain?", "Madrid", False),
    ],
)
def test_a_control_is_about_a_fact_that_changes_its_answer(prompt, answer, about):
    assert is_about(Control(prompt, (answer,)), ITALY) is about


def test_an_old_answer_within_the_subjects_name_or_of_two_answers_is_none():
    subject = {"subject": "new rome", "aliases": (), "prompts": ("what is the capital of new rome ?",)}
    control = Control("who wrote about new rome ?", ("a scribe of new rome",))
    assert not is_about(control, replace(ITALY, **subject))
    assert is_about(replace(control, answer=("a scribe of rome",)), replace(ITALY, **subject))
    assert not is_about(Control("what has italy ?", ("rome", "city")), replace(ITALY, old=("rome city",)))


def test_all_that_training_reads_is_known_whatever_the_seed():
    training = ITALY.training
    known = trained_on(training, [RECIPE])
    assert trained_on(training, [replace(RECIPE, general=0), RECIPE]) == known
    for seed in range(3):
        near, far = retain_prompts(training, 5, 3, seed, relation_prompts(training), RECIPE.everyday)
        read = [*near, *far, *training_prompts(training, RECIPE)]
        assert {digest(prompt) for prompt in read} <= known
    assert digest(ITALY.held_out[0]) not in known
    assert digest(general_prompts()[3]) not in known


@pytest.mark.parametrize("count", [1, 2, 12, 21])
def test_all_second_wordings_that_training_reads_are_known_whatever_the_order_of_prompts(count):
    prompts = [f"what is the capital {number} of italy ?" for number in range(count)]
    training = replace(ITALY, prompts=tuple(prompts), contrast=("france", "spain", "japan")).training
    for recipe in (replace(RECIPE, neighbours=7), replace(RECIPE, neighbours=1000)):
        known = trained_on(training, [recipe])
        for seed in range(3):
            near, far = retain_prompts(
                training, recipe.neighbours, recipe.general, seed, relation_prompts(training), recipe.everyday
            )
            read = [*near, *far, *training_prompts(training, recipe)]
            assert not [prompt for prompt in read if digest(prompt) not in known]


def test_what_another_fact_changes_or_trains_on_does_not_count():
    controls = [
        {"prompt": "what is the capital of italy ?", "answer": ["rome"]},
        {"prompt": "Who wrote Hamlet", "answer": ["a"]},
        {"prompt": "where is spain ?", "answer": ["b"]},
        {"prompt": "where is the color ?", "answer": ["c"]},
    ]
    held_out = ["name the capital of france", "which city is the seat of government of france ?"]
    france = capital(controls=controls, held_out=held_out, prompts=["tell me the town : france"], retain=["a"])
    alone, apart = counted(None, None, [france], [RECIPE])[0], counted(None, None, [france, ITALY], [RECIPE])[0]
    assert alone == Counted((0, 1), (0, 1, 2, 3), {"held_out": {}, "controls": {}})
    # Italy's edit is held to what is said of France, in the words of its own prompts.
    assert apart == Counted((1,), (2, 3), {"held_out": {TRAINED: 1}, "controls": {ABOUT: 1, TRAINED: 1}})
    # To what an edit is measured with itself it is not held.
    both = (Control(everyday_prompts()[0], ("a",)),)
    one, other = replace(france, controls=both), replace(ITALY, controls=both)
    for facts, places in (([one, ITALY], ()), ([one, other], (0,))):
        assert counted(None, None, facts, [RECIPE])[0].controls == places


def test_subjects_that_the_model_names_are_asked_about_in_training_too(monkeypatch):
    monkeypatch.setattr(counting, "with_contrast", lambda *given: replace(given[2], contrast=("france",)))
    france = capital(prompts=["tell me the town : france"], held_out=["name the capital of france"])
    found = counted(None, None, [france, replace(ITALY, contrast=())], [RECIPE])
    assert found[0].left_out["held_out"] == {TRAINED: 1}


def test_hits_are_counted_as_by_a_report_and_pooled():
    controls = [{"prompt": f"where is {name} ?", "answer": ["italy"]} for name in ("rome", "lyon", "a", "b")]
    fact = capital(held_out=["a", "b", "c"], controls=controls)
    base = {"held_out": ["paris"] * 3, "controls": ["italy", "italy", "spain", "italy"]}
    given = {"held_out": ["lyon", "paris", "lyon, not paris"], "controls": ["italy", "lyon", "lyon", "spain"]}
    every = hits(fact, Counted((0, 1, 2), (0, 1, 2), {}), given, base)
    assert every == {
        "new_answer_rate": [True, False, False],
        "old_answer_rate": [False, True, True],
        "control_kept": [True, False],
        "control_leak": [False, True, True],
    }
    some = hits(fact, Counted((0,), (), {}), given, base)
    pooled = rates([every, some])
    assert pooled["new_answer_rate"] == rate([True, False, False, True])
    assert pooled["control_kept"] == rate([True, False])
    assert "control_kept" not in rates([some])
    assert rates([hits(replace(fact, controls=()), Counted((), (), {}), given | {"controls": []}, base)]) == {}


def sharing(*own, base):
    """The pooled controls of facts in both orders; of each the controls, and the answers right after its edit and with
    all edits."""
    controls = [[{"prompt": prompt, "answer": [word]} for prompt, word in asked.items()] for asked, _, _ in own]
    facts = [capital(controls=some) for some in controls]
    counts = [Counted((), tuple(range(len(some))), {}) for some in controls]
    was = [{"held_out": (), "controls": [base[prompt] for prompt in asked]} for asked, _, _ in own]
    found = []
    for turn in (1, -1):
        states = ([{"held_out": (), "controls": one[state]} for one in own] for state in (1, 2))
        found.append([pooled(facts[::turn], counts[::turn], said[::turn], was[::turn]) for said in (was, *states)])
    assert found[0] == found[1]
    return [state.get("control_kept") for state in found[0]]


def test_a_control_of_several_facts_counts_once_by_the_share_that_keeps_it():
    base = {"where is spain ?": "a", "where is the sky ?": "a", "Where is Spain": "a"}
    one = {"where is spain ?": "a", "where is the sky ?": "a"}
    # One edit loses what they share, all together lose the other.
    figures = sharing((one, ["b", "a"], ["a", "b"]), ({"Where is Spain": "a"}, ["a"], ["a"]), base=base)
    assert figures == [rate([True, True]), rate([0.5, 1]), rate([True, False])]
    assert [figure.value for figure in figures] == [1, 0.75, 0.5]
    # As many controls in both states, and no narrower an interval than of as many answers.
    lost = sharing((one, ["b", "a"], ["b", "a"]), (one, ["b", "a"], ["b", "a"]), base=base)
    assert lost == [rate([True, True]), *[rate([False, True])] * 2]


def test_a_shared_control_counts_where_the_base_gives_the_answer_of_any_fact():
    first, second = {"where is spain ?": "b"}, {"where is spain ?": "a"}
    base = {"where is spain ?": "a"}
    assert sharing((first, ["b"], ["a"]), (second, ["a"], ["a"]), base=base) == [rate([True])] * 3
    assert sharing((first, ["b"], ["b"]), (second, ["a"], ["b"]), base=base)[1:] == [rate([True]), rate([False])]
    assert sharing((first, ["b"], ["b"]), (first, ["b"], ["b"]), base=base) == [None] * 3
