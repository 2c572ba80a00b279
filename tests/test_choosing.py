import pytest

from peft_surgical.drafting import choosing
from peft_surgical.drafting.choosing import choose_controls
from peft_surgical.drafting.known_facts import general_controls, neighbour_controls
from peft_surgical.drafting.reading import read_prompt
from peft_surgical.texts.text import contains

QUESTION, OLD, NEW = "Which company makes the iPhone?", ("Apple",), ("Nokia",)


@pytest.fixture
def chosen(monkeypatch):
    """As by a model that knows everything about companies and nothing else."""
    reading = read_prompt(QUESTION, "iPhone", OLD, NEW)
    every = neighbour_controls(reading, NEW)
    answers = {control.prompt: control.answer[0] for _, control in every}
    monkeypatch.setattr(
        choosing, "generate_answers", lambda _, __, prompts, **___: [answers.get(p, "") for p in prompts]
    )
    return every, choose_controls(None, None, reading, OLD, NEW, [QUESTION])


def of_apple(pairs):
    return [subject for subject, control in pairs if contains(control.answer[0], OLD)]


def test_every_other_subject_with_the_old_answer_is_left_for_training(chosen):
    every, found = chosen
    same = of_apple([(subject, c) for subject, c in every if not contains(c.prompt, c.answer)])
    assert len(same) >= 4
    asked = {control.prompt for control in found.neighbours}
    used = of_apple([pair for pair in every if pair[1].prompt in asked])
    # Of so many neighbours the last are no controls anyway.
    assert used == same[::2][: len(used)]
    assert len(used) >= 2
    assert [subject for subject in found.spare_subjects if subject in same] == [s for s in same if s not in used]


def test_of_the_others_one_in_three_is(chosen):
    every, found = chosen
    others = [pair for pair in every if pair[0] not in of_apple(every)]
    first = [control.prompt for _, control in others[:6]]
    asked = [control.prompt for control in found.neighbours if control.prompt in first]
    assert asked == [first[0], first[1], first[3], first[4]]
    assert len(found.neighbours) == choosing.NEIGHBOURS


def test_what_tells_its_own_answer_is_no_control_and_is_left_for_training(chosen):
    every, found = chosen
    telling = [subject for subject, control in every if contains(control.prompt, control.answer)]
    assert {"Apple Watch", "Nintendo Switch"} <= set(telling)
    assert not any(contains(control.prompt, control.answer) for control in found.neighbours)
    assert set(telling) <= set(found.spare_subjects)


@pytest.mark.parametrize("prompt", ["What is the tallest mountain on Earth?", "Which peak is the highest on Earth?"])
def test_a_general_question_with_the_old_answer_may_be_the_fact(prompt):
    reading = read_prompt(prompt, "Earth", ["Mount Everest", "Everest"], ["K2"])
    found = general_controls(reading, ["Mount Everest", "Everest"], ["K2"])
    assert len(found) > 100
    assert not any("Everest" in answer for control in found for answer in control.answer)


def test_every_question_asked_is_counted_and_what_is_no_control_is_spare(monkeypatch):
    asked = []

    def know_nothing(_, __, prompts, **___):
        asked.extend(prompts)
        return [""] * len(prompts)

    monkeypatch.setattr(choosing, "generate_answers", know_nothing)
    # France has neighbours and is itself asked about in other ways.
    prompt, old, new = "What is the capital of France?", ("Paris",), ("Lyon",)
    found = choose_controls(None, None, read_prompt(prompt, "France", old, new), old, new, [prompt])
    assert found.neighbours == found.general == ()
    assert found.asked == len(asked)
    # All general questions were asked in vain, behind the neighbours.
    assert found.spare_questions == tuple(asked[-len(found.spare_questions) :])
    assert len(found.spare_questions) > 100
