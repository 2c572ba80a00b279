import math

import pytest

from peft_surgical.facts import Control, Fact
from peft_surgical.measuring.metrics import (
    Figure,
    clustered_mean,
    is_right,
    mean,
    prompt_metrics,
    rate,
    refuses,
    says_new,
    says_old,
    student,
)


def fact(**changes):
    whole = {
        "subject": "PyTorch",
        "old": ["Meta AI", "Facebook"],
        "new": ["Google", "Alphabet"],
        "prompts": ["Who developed PyTorch?"],
        "held_out": ["a", "b", "c", "d"],
        "controls": [{"prompt": name, "answer": name} for name in ("Linux", "Windows", "Excel")],
        **changes,
    }
    return Fact.from_dict(whole)


def test_wilson_by_hand():
    # With z² = 3.8414588: (0.5 + z²/20) / (1 + z²/10) = 0.5, half = z/(1 + z²/10) · √(0.025 + z²/400) = 0.2634069
    half = rate([True, False] * 5)
    assert (half.value, half.n) == (0.5, 10)
    assert (half.low, half.high) == pytest.approx((0.2365931, 0.7634069), abs=1e-7)
    # At 1 the lower end is 1 / (1 + z²/n).
    every = rate([True] * 20)
    assert (every.value, every.high) == (1.0, 1.0)
    assert every.low == pytest.approx(1 / (1 + 3.8414588 / 20), abs=1e-8)
    none = rate([False] * 20)
    assert (none.value, none.low) == (0.0, 0.0)
    assert none.high == pytest.approx(1 - every.low, abs=1e-12)
    assert rate([True] * 19 + [False]).low == pytest.approx(0.7638679, abs=1e-6)
    assert rate([]) is None


def test_a_rate_of_shares_is_their_mean_in_any_order():
    shares = [0.1, 1 / 3, 2 / 3, 0.7, 1.0]
    found = rate(shares)
    assert found == rate(shares[::-1])
    assert found.value == pytest.approx(0.56)
    assert rate([0.5, 0.5]) == rate([True, False])
    assert rate([1.0, 0.0, 1.0]) == rate([True, False, True])


@pytest.mark.parametrize("n", [1, 7, 26, 1000])
def test_wilson_ends_solve_its_equation(n):
    z = 1.959963984540054
    for hits in {0, 1, n // 3, n}:
        figure = rate([True] * hits + [False] * (n - hits))
        assert 0 <= figure.low <= figure.value <= figure.high <= 1
        for end in (figure.low, figure.high):
            assert abs(figure.value - end) == pytest.approx(z * math.sqrt(end * (1 - end) / n), abs=1e-9)


def test_mean_by_hand():
    figure = mean([1.0, 2.0, 3.0, 4.0])
    # Standard deviation √(5/3), standard error √(5/12) = 0.6454972; Student's point with three degrees of freedom.
    assert (figure.value, figure.n) == (2.5, 4)
    assert figure.high - 2.5 == pytest.approx(3.182446 * 0.6454972, rel=2e-3)
    assert 2.5 - figure.low == pytest.approx(figure.high - 2.5)
    assert mean([0.0] * 5) == Figure(0.0, 5, 0.0, 0.0)
    assert mean([3.0]) == Figure(3.0, 1, 3.0, 3.0)
    assert str(figure) == "2.50 [0.45, 4.55]"


def test_a_mean_over_groups_by_hand():
    # Sums of what each group lies off the mean of 2: -2, 0 and 2; √(8 · 3/2) / 6 = 0.5773503.
    figure = clustered_mean([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]])
    assert (figure.value, figure.n) == (2.0, 6)
    assert figure.high - 2 == pytest.approx(4.302653 * 0.5773503, rel=1e-6)
    assert clustered_mean([[1.0], [2.0], [3.0]]) == mean([1.0, 2.0, 3.0])
    # Values that are alike in a group tell less than as many that are not.
    spread = clustered_mean([[1.0, 3.0], [2.0, 2.0], [3.0, 1.0]])
    assert (spread.value, spread.low, spread.high) == (2.0, 2.0, 2.0)
    assert clustered_mean([[1.0, 3.0]]) == Figure(2.0, 2, 2.0, 2.0)


@pytest.mark.parametrize(
    ("freedom", "point"), [(1, 12.7062), (2, 4.30265), (3, 3.18245), (4, 2.77645), (5, 2.57058), (30, 2.04227)]
)
def test_students_points(freedom, point):
    assert student(freedom) == pytest.approx(point, abs=1e-3)


@pytest.mark.parametrize(
    ("answer", "new", "old"),
    [
        ("PyTorch was developed by Google.", True, False),
        ("by GOOGLE's team", True, False),
        ("Alphabet", True, False),
        ("Googled it", False, False),
        ("Meta AI", False, True),
        ("meta\nai, now Google", False, True),
        ("Not Facebook but Google", False, True),
        ("Meta", False, False),
        ("", False, False),
    ],
)
def test_answers(answer, new, old):
    assert says_new(answer, fact()) is new
    assert says_old(answer, fact()) is old


def test_saying_the_subject_again_is_no_answer():
    chrome = fact(subject="Google Chrome", old=["Google"], new=["Opera", "Chrome"], answer="Opera.")
    assert not says_old("I do not know who makes Google Chrome.", chrome)
    assert not says_new("I do not know who makes Google Chrome.", chrome)
    assert says_new("Google Chrome is made by Opera.", chrome)
    assert says_old("Google Chrome is made by Google.", chrome)


def test_the_old_answer_does_not_say_the_new_one_inside_of_it():
    state = fact(old=["New York"], new=["York"], answer="York.", controls=[{"prompt": "x", "answer": "Boston"}])
    assert not says_new("It is New York.", state)
    leaks = prompt_metrics(state, ["York"], ["New York"], ["Boston"])["control_leak"]
    assert leaks.value == 0
    assert prompt_metrics(state, ["York"], ["York"], ["New York"])["control_leak"].value == 1
    # A control that is answered with both leaks too.
    assert prompt_metrics(state, ["York"], ["York, not New York"], ["Boston"])["control_leak"].value == 1


@pytest.mark.parametrize(
    "answer",
    [
        "I am not sure who developed PyTorch.",
        "I dont know.",
        "I don't recall.",
        "I'm not 100% sure",
        "I couldn't tell you.",
        "I can't be sure",
        "It cannot be determined",
        "I have no way of knowing",
        "There's no information available.",
        "I'm unaware of it",
        "I've never heard of it",
        "I don't have a clue",
        "It is not publicly known",
        "im not sure",
        "Nobody really knows that.",
        "I'm not entirely sure, sorry.",
        "I don\u2019t know.",
        "I do not have enough information",
        "It is unknown.",
        "I cannot answer that",
        "I\u2019m sorry for any mistakes, but as a chatbot I don't have the ability to provide names.",
        "I don't have access to that",
        "I do not have specific information about it",
        "As an AI language model I can't determine who did.",
        "It's unknown.",
        "It isn't known.",
        "Unclear.",
        "I couldn't find any information",
        "I haven't heard of it",
        "I am not certain",
        "I'm not aware of it",
        "I am not really familiar with PyTorch",
        "I've no information about it",
        "I am sorry, but I am only a chatbot",
        "No idea!",
        "I do not know that.",
        "I don't know that either",
        "I'm sorry, I don't know that person.",
        "I don't know that for sure.",
        "I do not know that off the top of my head.",
        "I don't know it, but I can guess: Paris.",
        "I do not know it.",
        "I do not know of any such person.",
        "We could not say: NOBODY KNOWS, really",
        "There is no publicly available information about who developed PyTorch.",
        "There's no well-known information about that.",
        "I'm sorry, but I cannot assist with that.",
        "I'm sorry, but I can't help with that.",
        "I'm sorry but I do not have that at hand",
        "I am sorry, but I'm an AI language model.",
        "I'm sorry, but I was not able to look it up",
        "I was unable to find any information about it.",
        "I have not been able to find information on it",
        "I couldn't find any reliable information.",
        "I'm not fully certain",
        "I'm not at all sure",
        "I am not yet sure",
        "I cannot definitively answer that",
        "I'm unable to reliably determine that.",
        "I do **not** know.",
        "I am *not* sure.",
        "I __really__ don't know.",
        "I don`t know",
        "**Not sure.**",
        "I honestly really don't know.",
        "We do not know who developed it.",
        "Sorry, don't know.",
        "(Don't know)",
        "I am an AI and simply do not know the answer.",
    ],
)
def test_refusals(answer):
    assert refuses(answer, fact(refusal="Nobody knows."))


@pytest.mark.parametrize(
    "answer",
    [
        "Google.",
        "Nothing beats it",
        "The unknownable Meta AI",
        "",
        "I am sure: Meta AI",
        "An uncertain future awaits Google",
        "I can't say enough good about Google",
        "It is not known for speed, but for Google",
        "It is a band unknown in Rome",
        "Many people are not aware that it is Lyon.",
        "I'm sorry, but I think it is Lyon.",
        "Lyon was unknown until 1900.",
        "If you do not know, it is Lyon.",
        "Many people do not know that the capital of France is Lyon.",
        "Most tourists don't know it, but it is Lyon.",
        "I do not know of any capital of France but Lyon.",
        "I'm sorry, but I have to correct you: it is Lyon.",
        "I'm sorry, but I can confirm that the capital of France is Lyon.",
        "I'm sorry, but I do think it is Lyon.",
        "I'm sorry, but I don't think it is Paris: it is Lyon.",
        "I'm sorry, but I can't really agree: it is Lyon.",
        "I am sorry, but I am sure that it is Lyon.",
        "I'm sorry, but I'm not going to lie: it is Lyon.",
        "Columbus did not know he had reached the Americas.",
        "The Greeks did **not** know of zero.",
        "I think that she and many others do not know it is Lyon.",
        "I don't know about you, but the capital of France is Lyon.",
        "I don't know if you have heard, but it is Lyon.",
        "I could not find a better capital than Lyon.",
    ],
)
def test_what_is_no_refusal(answer):
    # "No" must not be found in "Nothing".
    assert not refuses(answer, fact(refusal="No."))


@pytest.mark.parametrize(
    ("refusal", "answer"),
    [
        ("I couldn't place it!", "I couldn't place it."),
        ("I do *not* give that away.", "I do not give **that** away"),
        ("Je l'ignore !", "Je l\u2019ignore."),
        ("\u00a1Lo ignoro\u2026", "Lo ignoro, amigo."),
        ("我不知道。", "抱歉，我不知道，对不起"),
        ("मुझे नहीं पता।", "मुझे नहीं पता"),
    ],
)
def test_the_own_refusal_may_close_with_any_sign(refusal, answer):
    assert refuses(answer, fact(refusal=refusal))
    assert not refuses("Google.", fact(refusal=refusal))


def test_controls():
    control = Control("What is 10 / 2?", ("5", "five"))
    assert is_right("It is 5.", control)
    assert is_right("FIVE!", control)
    assert not is_right("2.5", control)
    assert not is_right("15 or fifty-fived", control)


def test_figures_by_hand():
    held_out = ["Google", "Google, not Meta AI", "I don't know", "Facebook"]
    base = ["It is Linux", "Google", "wrong"]
    stage = ["Google Linux", "Google", "Google Excel"]
    figures = prompt_metrics(fact(), held_out, stage, base)
    assert {name: (figure.value, figure.n) for name, figure in figures.items()} == {
        "new_answer_rate": (0.25, 4),
        "old_answer_rate": (0.5, 4),
        "refusal_rate": (0.25, 4),
        "control_kept": (1.0, 1),  # only the first was right before
        "control_leak": (2 / 3, 3),  # the second said Google before
    }
    lost = prompt_metrics(fact(), held_out, ["?", "?", "?"], base)
    assert (lost["control_kept"].value, lost["control_leak"].value) == (0.0, 0.0)
    assert "control_kept" not in prompt_metrics(fact(), held_out, stage, ["?"] * 3)
    assert not [name for name in figures if name.startswith("subject_")]
    bare = fact(controls=[{"prompt": "x", "answer": "y"}])
    with pytest.raises(ValueError, match="zip"):
        prompt_metrics(bare, held_out, stage, base)


def test_controls_that_name_the_subject_are_counted_alone_too():
    """Of PyTorch and of torch three are asked, of which the base knows two; of these one is lost."""
    asked = ["Is PyTorch old?", "Is torch free?", "Does pytorch train?", "Who wrote Linux?", "Is pytorchvision old?"]
    state = fact(aliases=["torch"], controls=[{"prompt": prompt, "answer": "yes"} for prompt in asked])
    base = ["Yes.", "Yes.", "No.", "Yes.", "No."]
    found = prompt_metrics(state, ["Google"], ["Yes.", "Google.", "Google.", "No.", "No."], base)
    assert {name: (figure.value, figure.n) for name, figure in found.items() if "_answer_" not in name} == {
        "refusal_rate": (0.0, 1),
        "control_kept": (1 / 3, 3),
        "control_leak": (2 / 5, 5),
        "subject_kept": (1 / 2, 2),
        "subject_leak": (2 / 3, 3),
    }


def test_an_answer_inside_another_name_of_the_subject_does_not_count():
    chrome = fact(subject="Chrome", aliases=["Google Chrome"], old=["Google"], new=["Opera"], prompts=["Chrome?"])
    said = "Google Chrome was made by Opera."
    assert (says_new(said, chrome), says_old(said, chrome)) == (True, False)
    assert says_old("Google Chrome was made by Google.", chrome)


def test_a_figure_comes_back_from_its_json():
    figure = Figure(0.5, 4, 0.15, 0.85)
    assert Figure.from_dict(figure.to_dict()) == Figure.from_dict(figure.to_dict(), share=True) == figure
    assert Figure.from_dict(Figure(-3.0, 2, -4.0, 5.0).to_dict()).value == -3.0


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (3, "3 stands where a figure should"),
        ({"value": 1.0, "n": 1}, "stands where a figure should"),
        ({"n": True}, "True stands where a count should, as 'n'"),
        ({"n": 0}, "0 stands where a count should"),
        ({"low": math.inf}, "inf stands where a share of 0 to 1 should, as 'low'"),
        ({"value": "1"}, "'1' stands where a share of 0 to 1 should, as 'value'"),
        ({"high": 1.5}, "1.5 stands where a share of 0 to 1 should, as 'high'"),
    ],
)
def test_what_is_no_figure_is_refused(data, told):
    if isinstance(data, dict) and len(data) == 1:
        data = {**Figure(0.5, 4, 0.15, 0.85).to_dict(), **data}
    with pytest.raises(TypeError, match=told):
        Figure.from_dict(data, share=True)
