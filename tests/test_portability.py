import pytest

from peft_surgical.measuring.metrics import rate
from peft_surgical.measuring.portability import as_before, follows, portability_metrics

from .localizing import capital

QUESTIONS = [
    {"kind": "alias", "prompt": "capital of the hexagon ?", "answer": ["lyon", "lyons"], "before": ["paris"]},
    {"kind": "one_hop", "prompt": "which river ?", "answer": ["rhône", "saône"], "before": ["seine"]},
    {"kind": "one_hop", "prompt": "which region ?", "answer": ["auvergne-rhône-alpes"], "before": ["île-de-france"]},
    {"kind": "one_hop", "prompt": "which delta is downstream ?", "answer": ["camargue"]},
    {"kind": "reversal", "prompt": "lyon is whose capital ?", "answer": ["france"]},
]
FACT = capital(portability=QUESTIONS)


@pytest.mark.parametrize(
    ("answer", "right", "before"),
    [
        ("The Rhône.", True, False),
        ("the SAÔNE and the Rhône", True, False),
        ("The Seine", False, True),
        ("Not the Seine but the Rhône", False, True),
        ("Rhônes", False, False),
        ("", False, False),
    ],
)
def test_an_answer_counts_if_it_has_none_of_before(answer, right, before):
    assert follows(answer, FACT.portability[1], FACT) is right
    assert as_before(answer, FACT.portability[1], FACT) is before


def test_saying_the_subject_again_is_no_answer_but_to_a_reversal():
    fact = capital(
        subject="Google Chrome",
        old=["Google"],
        new=["Opera"],
        answer="Opera.",
        portability=[
            {"kind": "alias", "prompt": "Who makes Chrome?", "answer": ["Opera"], "before": ["Google"]},
            {"kind": "reversal", "prompt": "Which browser does Opera make?", "answer": ["Google Chrome"]},
            {"kind": "one_hop", "prompt": "Which metal is on its logo?", "answer": ["Chrome"]},
        ],
    )
    alias, reversal, metal = fact.portability
    short = capital(
        subject="Chrome",
        aliases=["Google Chrome"],
        old=["Google"],
        new=["Opera"],
        portability=[
            {"kind": "alias", "prompt": "Who makes it?", "answer": ["Opera"], "before": ["Google"]},
            {"kind": "reversal", "prompt": "Which browser does Opera make?", "answer": ["GC", "Chrome"]},
        ],
    )
    assert follows("Google Chrome is made by Opera.", short.portability[0], short)
    assert follows("Google Chrome.", short.portability[1], short)
    assert follows("Google Chrome is made by Opera.", alias, fact)
    assert not follows("Google Chrome is made by Google, not Opera.", alias, fact)
    assert follows("Opera makes Google Chrome.", reversal, fact)
    assert not follows("On the logo of Google Chrome there is none.", metal, fact)
    assert follows("On the logo of Google Chrome there is chrome.", metal, fact)


def test_figures_by_hand():
    answers = ["Lyon", "The Seine, or the Rhône", "Île-de-France", "the Camargue", "Spain"]
    assert portability_metrics(FACT, answers) == {
        "portability": rate([True, False, False, True, False]),
        "portability_alias": rate([True]),
        "portability_one_hop": rate([False, False, True]),
        "portability_reversal": rate([False]),
        # Of the three with an answer before.
        "portability_before": rate([False, True, True]),
    }


def test_only_what_there_is():
    assert portability_metrics(capital(), []) == {}
    figures = portability_metrics(capital(portability=QUESTIONS[-1:]), ["It is France."])
    assert figures == {"portability": rate([True]), "portability_reversal": rate([True])}
    with pytest.raises(ValueError, match="zip"):
        portability_metrics(FACT, ["Lyon"])
