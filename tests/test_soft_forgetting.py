import pytest

from peft_surgical.measuring.metrics import rate, says_new, says_old
from peft_surgical.measuring.soft_forgetting import probe_metrics, probe_outcome, split_kind

from .localizing import capital


def fact(*kinds, **changes):
    return capital(probes=[{"prompt": f"probe {i} ?", "kind": kind} for i, kind in enumerate(kinds)], **changes)


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        ("It is Lyon.", "new"),
        ("Yes, it is PARIS.", "old"),
        # Who contradicts the prompt, or lists the options, says both.
        ("No, it is Lyon, not Paris.", "both"),
        ("A) Paris B) Lyon", "both"),
        ("I am not sure.", "neither"),
        ("Lyonnais Parisians", "neither"),
        ("", "neither"),
    ],
)
def test_every_answer_is_one_of_four_things(answer, outcome):
    asked = fact("doubt")
    assert probe_outcome(answer, asked) == outcome
    # As held-out answers are counted.
    assert (outcome == "new") is says_new(answer, asked)
    assert (outcome in ("old", "both")) is says_old(answer, asked)


def test_saying_the_subject_again_is_no_answer():
    chrome = fact("doubt", subject="Google Chrome", old=["Google"], new=["Opera"], answer="Opera.")
    assert probe_outcome("Google Chrome is made by Opera.", chrome) == "new"
    assert probe_outcome("Google Chrome is made by Google.", chrome) == "old"


def test_the_old_answer_does_not_say_the_new_one_inside_of_it():
    state = fact("doubt", old=["New York"], new=["York"], answer="York.")
    said = {"It is New York.": "old", "York, not New York": "both", "York": "new"}
    assert {answer: probe_outcome(answer, state) for answer in said} == said


def test_figures_by_hand():
    asked = fact("contradiction", "few_shot", "contradiction", "reversal", "contradiction")
    answers = ["Lyon", "Paris", "Not Paris but Lyon", "who knows", "Paris"]
    figures = probe_metrics(asked, answers)
    assert figures == {
        "probe_new_rate": rate([True, False, False, False, False]),
        "probe_old_rate": rate([False, True, True, False, True]),
        "probe_both_rate": rate([False, False, True, False, False]),
        # Only of kinds with more than one probe.
        "probe_new_rate_contradiction": rate([True, False, False]),
        "probe_old_rate_contradiction": rate([False, True, True]),
    }
    neither = 1 - figures["probe_new_rate"].value - figures["probe_old_rate"].value
    assert neither == pytest.approx(1 / 5)


def test_two_probes_of_a_kind_are_enough_for_figures_of_their_own():
    figures = probe_metrics(fact("doubt", "reversal", "doubt"), ["Lyon", "Lyon", "Paris"])
    assert figures["probe_new_rate_doubt"] == figures["probe_old_rate_doubt"] == rate([True, False])
    assert "probe_new_rate_reversal" not in figures


def test_no_probes_no_figures():
    assert probe_metrics(capital(), []) == {}
    with pytest.raises(ValueError, match="zip"):
        probe_metrics(fact("doubt"), [])


@pytest.mark.parametrize(
    ("metric", "parts"),
    [
        ("probe_old_rate", ("probe_old_rate", "")),
        ("probe_old_rate_few_shot", ("probe_old_rate", "few_shot")),
        ("probe_new_rate_odd, kind_", ("probe_new_rate", "odd, kind_")),
        ("probe_both_rate", ("probe_both_rate", "")),
        ("control_kept", ("control_kept", "")),
    ],
)
def test_a_metric_of_one_kind(metric, parts):
    assert split_kind(metric) == parts
