import pytest

from peft_surgical.facts import Control
from peft_surgical.reporting.page_answers import mark
from tests.reports import FACT


@pytest.mark.parametrize(
    ("answer", "pieces"),
    [
        ("Not Paris: Lyon.", [("", "Not "), ("old", "Paris"), ("", ": "), ("new", "Lyon"), ("", ".")]),
        ("the city of Lyon", [("new", "the city of Lyon")]),
        ("Parisian Lyons", [("", "Parisian Lyons")]),
        ("PARIS", [("old", "PARIS")]),
        ("Rome, not Paris", [("right", "Rome"), ("", ", not "), ("old", "Paris")]),
        ("", []),
        # As they are counted, in the signs in which they were said.
        ("Ｐａｒｉｓ and L\u00adyon", [("old", "Ｐａｒｉｓ"), ("", " and "), ("new", "L\u00adyon")]),
        ("Lyon\u00b9\u00a0 is", [("new", "Lyon\u00b9"), ("", "\u00a0 is")]),
        ("Not Pari\u0301s.", [("", "Not "), ("old", "Pari\u0301s"), ("", ".")]),
        # A sign that stands for several is marked whole.
        ("Rome Inc\u2026 is", [("right", "Rome Inc\u2026"), ("", " is")]),
    ],
)
def test_mark(answer, pieces):
    found = list(mark(answer, FACT, Control("Italy?", ("Rome", "Rome Inc."))))
    assert found == pieces
    assert "".join(text for _, text in found) == answer


def test_mark_takes_the_longest_alias_at_a_place():
    fact = FACT.from_dict({**FACT.to_dict(), "new": ["Lyon", "Lyon City"]})
    assert list(mark("Lyon City", fact)) == [("new", "Lyon City")]


def test_a_name_inside_the_old_answer_is_no_new_answer_on_the_page_either():
    fact = FACT.from_dict({**FACT.to_dict(), "old": ["Old Lyon"]})
    said = Control("Italy?", ("Grand Old",))
    assert list(mark("Grand Old Lyon", fact, said)) == [("right", "Grand Old"), ("", " Lyon")]
