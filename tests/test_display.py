from dataclasses import replace

import pytest

from peft_surgical.localizing.display import render_localization
from peft_surgical.localizing.results import Localization
from peft_surgical.localizing.scores import Scores
from peft_surgical.sites import ModelShape
from tests.reports import FACT, report
from tests.test_page import Page

SHAPE = ModelShape("llama", n_layers=3, n_heads=4, n_kv_heads=2, d_head=8, d_mlp=48, d_model=32)
HOSTILE = "<img src=x onerror=alert(1)>&\x1b[2J\u202e"


def localization(**changes):
    made = Localization(
        model="tiny/model",
        dtype="float32",
        shape=SHAPE,
        subject="France",
        scorers=("lookup", "attribution"),
        tables={
            "lookup": Scores({"L0.mlp": 0.25, "L1.head.2": 1.5, "L2.mlp": -3.0}),
            "attribution": Scores({"L0.mlp": 7.125, "L1.head.2": 0.5}),
        },
        corruption=(),
        seed=0,
    )
    return replace(made, **changes)


def test_the_best_components_with_every_score():
    page = Page(render_localization(localization()))
    assert page.rows() == [
        ["rank", "component", "lookup", "attribution"],
        ["1", "L1.head.2", "1.5", "0.5"],
        ["2", "L0.mlp", "0.25", "7.125"],
        ["3", "L2.mlp", "-3", ""],
    ]
    assert page.texts("strong") == ["France in tiny/model (float32)"]
    assert page.texts("div")[-1] == "The best 3 of 3 components by lookup; larger scores matter more."


def test_the_primary_scorer_ranks_whichever_table_comes_first():
    page = Page(render_localization(localization(scorers=("attribution", "lookup"))))
    assert [row[1] for row in page.rows()] == ["component", "L0.mlp", "L1.head.2"]
    # Numbers stand at the right of their columns, and so do their names.
    styles = [dict(attributes).get("style", "") for tag, attributes, *_ in page.elements if tag == "th"]
    assert [bool(style) for style in styles] == [True, False, True, True, False, False]


def test_no_more_than_the_ten_best():
    names = [f"L{layer}.head.{head}" for layer in range(3) for head in range(4)]
    tables = {"lookup": Scores({name: -float(place) for place, name in enumerate(names)})}
    page = Page(render_localization(localization(tables=tables)))
    assert [row[1] for row in page.rows()] == ["component", *names[:10]]
    assert "The best 10 of 12 components" in page.texts("div")[-1]


def test_a_primary_scorer_that_failed_is_told_and_the_next_one_ranks():
    tables = {"attribution": localization().tables["attribution"]}
    page = Page(render_localization(localization(tables=tables, errors={"lookup": "it gave a NaN."})))
    assert [row[1] for row in page.rows()] == ["component", "L0.mlp", "L1.head.2"]
    assert page.texts("div")[-1] == "lookup has no scores: it gave a NaN."
    # Also one that was not asked for by name.
    asked = Page(render_localization(localization(scorers=("lookup",), tables=tables, errors={"lookup": "no."})))
    assert asked.rows() == page.rows()
    nothing = Page(render_localization(localization(tables={}, errors={"lookup": "it gave a NaN."})))
    assert nothing.rows() == []
    assert nothing.texts("div")[-1] == "lookup has no scores: it gave a NaN."


@pytest.mark.parametrize("field", ["model", "dtype", "subject", "scorer", "error"])
def test_markup_and_control_codes_in_a_localization_stay_text(field):
    tables = localization().tables
    changes = {
        "scorer": {"scorers": (HOSTILE,), "tables": {HOSTILE: tables["lookup"]}},
        "error": {"errors": {HOSTILE: HOSTILE}},
    }
    text = render_localization(localization(**changes.get(field, {field: HOSTILE})))
    page = Page(text)
    assert "img" not in {tag for tag, *_ in page.elements}
    assert "&lt;img src=x onerror=alert(1)&gt;&amp;" in text
    assert "\x1b" not in text
    assert "\u202e" not in text


def test_a_report_shows_its_figures_and_its_verdict():
    page = Page(report()._repr_html_())
    rows = {row[0]: row[1:] for row in page.rows()}
    # By hand: one of three held-out answers of the edited model is Lyon, three of three of the base are Paris.
    assert rows["answer Lyon"] == ["3", "0% [0–56]", "0% [0–56]", "33% [6–79]"]
    assert rows["answer Paris"] == ["3", "100% [44–100]", "33% [6–79]", "33% [6–79]"]
    assert report().verdict() in " ".join(page.texts("div"))


def test_markup_in_a_fact_stays_text_in_a_report():
    markup = "<img src=x onerror=alert(1)>"
    fact = replace(FACT, subject=markup, new=(markup,), answer=markup)
    text = report(fact=fact)._repr_html_()
    page = Page(text)
    assert "img" not in {tag for tag, *_ in page.elements}
    assert text.count("&lt;img src=x onerror=alert(1)&gt;") >= 3


def test_a_notebook_shows_a_localization():
    assert localization()._repr_html_() == render_localization(localization())
