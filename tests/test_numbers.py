import pytest

from peft_surgical.errors import FactError
from peft_surgical.facts import Fact
from peft_surgical.texts.text import contains


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("It is 1,300 metres (1 300 metres) high.", ["300 metres"]),
        ("8,849 m", ["849 m", "849 metres", "49 m"]),
        ("8 849 m and 8\u202f849 m", ["849 m"]),
        ("about 2.5%, in German 2,5 %", ["5%", "5 %"]),
        ("about 1.5 million people, 1,5 Millionen", ["5 million", "5 Millionen"]),
        ("It ran 9.58 seconds.", ["58 seconds", "8 seconds"]),
        ("Python 3.10.2 beta", ["2 beta", "10.2 beta"]),
        ("1.5万", ["5万"]),
        ("$1,500, $1.50 and $1 500", ["$1", "$ 1"]),
        ("$1,000,000 or $1,000.50", ["$1000", "$1,000"]),
        ("It is -40.5 degrees.", ["-40", "40.5"]),
        ("-4,000", ["-4"]),
        ("Windows 8.1", ["Windows 8"]),
        ("1 in 5.5", ["1 in 5"]),
        ("3.1 in 5", ["1 in 5"]),
    ],
)
def test_a_name_does_not_stand_within_a_larger_number(text, names):
    assert not [name for name in names if contains(text, [name])]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("It is 300 metres high.", ["300 metres"]),
        ("8,849 m.", ["8849 m", "8,849 m", "8 849 m"]),
        ("It is $1.", ["$1", "1"]),
        ("7\n100 people", ["7", "100"]),
        ("5\t100\n\n200", ["5", "100", "200"]),
        ("Apollo 11 100 km away", ["Apollo 11"]),
        ("$1, or $1,000", ["$1", "$1000"]),
        ("$3 billion and 3.5 billion", ["3 billion", "3.5 billion"]),
        ("5%, 5.5%", ["5%", "5.5%"]),
        ("Windows 8. It came in 2012.", ["Windows 8"]),
        ("on 08.05.1945 AD", ["1945 AD"]),
        ("the answers 1,2,3 apples", ["3 apples"]),
        ("1. 5 million people", ["5 million"]),
        ("It is -40. So cold.", ["-40"]),
        ("9:58 seconds", ["9:58", "9:58 seconds"]),
        ("-Lyon, -$5", ["Lyon", "$5"]),
    ],
)
def test_what_stands_beside_a_number_is_no_part_of_it(text, names):
    assert [name for name in names if not contains(text, [name])] == []


@pytest.mark.parametrize(
    "text",
    [
        *("-5", "It is -5.", "x=-5", "(-5)", "**-5**", "__-5__", "$-5$", "$$-5$$", "\\boxed{-5}", "`-5`", "[-5, 3]"),
        *('"-5"', "\u201c\u22125\u201d", "'-5'", ":-5", "**Answer:**-5", "|-5|", "[3,-5]", "10^-5", "\u2248-5", "-5%"),
    ],
)
def test_a_negative_number_is_not_the_positive_one(text):
    assert not contains(text, ["5", "5%"])
    assert contains(text, ["-5"])


@pytest.mark.parametrize(
    "text",
    [
        *(
            "F-5",
            "1939-5",
            "(a)-5",
            "[1]-5",
            "*F*-5",
            '"F"-5',
            "`F`-5",
            "4$-5$",
            "4%-5%",
            "4\u00b0-5\u00b0",
            "a.m.-5 p.m.",
        ),
        *("the end--5 came", "- 5", "+5", "x = 5"),
    ],
)
def test_a_hyphen_is_no_minus(text):
    assert contains(text, ["5"])


@pytest.mark.parametrize(
    ("old", "new"), [("330 metres", "1,330 metres"), ("5%", "2.5%"), ("$1", "$1.50"), ("-40", "-40.5"), ("5", "-5")]
)
def test_a_fact_may_move_to_a_number_that_ends_alike(old, new):
    texts = {"prompts": ("How high is Foo?",), "held_out": ("Give the height of Foo.",)}
    assert Fact(subject="Foo", old=(old,), new=(new,), **texts).new == (new,)
    with pytest.raises(FactError, match="contains"):
        Fact(subject="Foo", old=(old,), new=(f"about {old}",), **texts)
