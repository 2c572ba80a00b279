import pytest

from benchmarks.counterfact_metrics import figures, harmonic, says_new, says_old, score, successes
from peft_surgical.measuring.metrics import rate

from .counterfacts import some_case


def measured(prompt=(-1.0, -2.0), paraphrase=(-1.0, -2.0), neighbour=(-3.0, -1.0), said=("Lyon", "Lyon", "Rome")):
    """Log-likelihoods as (new, old) and what was said; by default all went well."""
    parts = zip(("prompt", "paraphrase", "neighbour"), (prompt, paraphrase, neighbour), said, strict=True)
    return {part: {"new": new, "old": old, "said": text} for part, (new, old), text in parts}


BASE = measured((-2.0, -1.0), (-2.0, -1.0), said=("Paris", "the river", "Rome"))


def test_successes_by_hand():
    assert successes(measured()) == (True, True, True)
    assert successes(BASE) == (False, False, True)
    assert successes(measured(neighbour=(-1.0, -3.0))) == (True, True, False)
    # A tie is no success on either side.
    assert successes(measured((-1.0, -1.0), (-1.0, -1.0), (-1.0, -1.0))) == (False, False, False)


def test_figures_by_hand():
    cases = [some_case(case_id=number) for number in range(4)]
    edited = [
        measured(),
        measured(paraphrase=(-2.0, -1.0), said=("Lyon, not Paris", "Paris", "Rome")),
        measured(said=("Lyon", "in Lyon", "Lyon")),
        measured(neighbour=(-1.0, -3.0), said=("?", "?", "Lyon")),
    ]
    base = [BASE, BASE, BASE, measured((-2, -1), (-2, -1), said=("Paris", "?", "Lyon"))]
    found = figures(cases, edited, base, [1.0, 2.0, 3.0, 4.0], seed=0)
    assert {name: (figure.value, figure.n) for name, figure in found.items()} == {
        "es": (1.0, 4),
        "ps": (0.75, 4),
        "ns": (0.75, 4),
        "score": (pytest.approx(3 / (1 + 4 / 3 + 4 / 3)), 4),
        "score_neighbour_known": (pytest.approx(3 / (1 + 4 / 3 + 4 / 3)), 4),
        "new_answer_rate": (0.5, 4),  # of the second the old answer stands there, too
        "old_answer_rate": (0.25, 4),
        "paraphrase_new_answer_rate": (0.5, 4),
        "paraphrase_old_answer_rate": (0.25, 4),
        "neighbour_kept": (pytest.approx(2 / 3), 3),  # the base does not say Rome in the fourth
        "neighbour_leak": (0.25, 4),  # in the fourth the base says Lyon already
        "seconds_per_edit": (2.5, 4),
    }
    assert found["ps"] == rate([True, False, True, True])


def test_a_neighbour_that_the_base_gets_wrong_is_no_part_of_the_score_of_known_ones():
    cases = [some_case(case_id=number) for number in range(3)]
    edited = [measured(), measured(paraphrase=(-2.0, -1.0)), measured(neighbour=(-1.0, -3.0))]
    unknown = measured((-2.0, -1.0), (-2.0, -1.0), neighbour=(-1.0, -3.0))
    found = figures(cases, edited, [BASE, BASE, unknown], [], seed=0)
    known = found["score_neighbour_known"]
    assert (known.value, known.n) == (pytest.approx(3 / (1 + 2 + 1)), 2)
    assert found["score"].n == 3
    assert "score_neighbour_known" not in figures(cases, edited, [unknown] * 3, [], seed=0)


def test_rome_score_is_a_harmonic_mean():
    # Meng et al. 2022, table 4: GPT-2 XL with ROME.
    assert harmonic([1.0, 0.964, 0.754]) == pytest.approx(0.892, abs=6e-4)
    assert harmonic([1.0, 0.0, 1.0]) == 0
    assert harmonic([[1.0, 1.0, 0.5], [0.5, 0.5, 0.5]]).tolist() == [0.75, 0.5]


def test_score_interval():
    triples = [(True, True, True)] * 8 + [(True, False, True), (True, True, False)]
    figure = score(triples, seed=0)
    assert (figure.value, figure.n) == (pytest.approx(3 / (1 + 2 / 0.9)), 10)
    assert 0 < figure.low < figure.value < figure.high == 1
    assert score(triples, seed=0) == figure
    assert score(triples, seed=1).value == figure.value
    # With ten times the cases the interval is about √10 times narrower.
    many = score(triples * 10, seed=0)
    assert 2 < (figure.high - figure.low) / (many.high - many.low) < 5
    sure = score([(True, True, True)] * 5, seed=0)
    assert (sure.value, sure.low, sure.high) == (1, 1, 1)
    assert score([], seed=0) is None


def test_what_counts_as_said():
    case = some_case(subject="Toyota Alphard", prompt="Toyota Alphard is made by", ground_truth="Toyota")
    assert says_old("Toyota.", case)
    assert not says_old("the maker of the Toyota Alphard", case)
    assert says_new("Lyon", case)
    assert not says_new("Lyon and Toyota", case)
    assert not says_new("Lyonnais", case)


def test_nothing_to_count():
    assert figures([], [], [], [], seed=0) == {}
    only = figures([some_case()], [measured()], [measured(said=("", "", "?"))], [1.0], seed=0)
    assert "neighbour_kept" not in only
