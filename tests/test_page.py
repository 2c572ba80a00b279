import html.parser
import json
from dataclasses import replace

import pytest

from peft_surgical.errors import SurgicalError
from peft_surgical.measuring.metrics import Figure
from peft_surgical.report import Report
from peft_surgical.reporting.page import render_page, render_table
from peft_surgical.reporting.page_answers import mark
from tests.reports import ANSWERS, FACT, HELD_OUT, report

# The smallest PNG: one transparent pixel.
PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d4944415478da63fccff0bf1e000583027f"
    "94ad7deb0000000049454e44ae426082"
)
VOID = {"meta", "img", "br", "line", "circle", "rect", "path"}


class Page(html.parser.HTMLParser):
    """The page as a list of (tag, attributes, text inside it so far); raises where tags do not nest."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements, self.open = [], []
        self.feed(text)
        self.close()
        assert not self.open, f"left open: {[tag for tag, *_ in self.open]}"

    def handle_starttag(self, tag, attributes):
        element = [tag, dict(attributes), ""]
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attributes):
        self.elements.append([tag, dict(attributes), ""])

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        for element in self.open:
            element[2] += data

    def rows(self):
        """The cells of every table row."""
        found = []
        for tag, _, text in self.elements:
            if tag == "tr":
                found.append([])
            elif tag in ("th", "td") and found:
                found[-1].append(" ".join(text.split()))
        return found

    def texts(self, tag, kind=None):
        return [
            " ".join(text.split())
            for name, attributes, text in self.elements
            if name == tag and (kind is None or kind in (attributes.get("class") or "").split())
        ]


def test_well_formed_and_self_contained():
    made = report(settings={"command": "peft-surgical edit fact.yaml --out out"})
    page = Page(render_page(made, picture=PIXEL))
    assert page.texts("h1") == ["France: Paris → Lyon"]
    assert page.texts("p", "verdict") == [report().verdict()]
    assert page.texts("pre") == ["peft-surgical edit fact.yaml --out out"]
    tags = {tag for tag, *_ in page.elements}
    assert not tags & {"script", "link", "iframe", "object", "form", "base"}
    for tag, attributes, _ in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on"), f"<{tag} {name}>"
            if name in ("src", "href"):
                assert value.startswith("data:image/png;base64,iVBOR")
    style = " ".join(text for tag, _, text in page.elements if tag == "style")
    assert "url(" not in style
    assert "@import" not in style


def test_settings_are_folded_away_and_as_the_report_has_them():
    settings = {"command": "peft-surgical", "recipe": {"learn": {"steps": 3, "compute_dtype": "<b>é"}}}
    page = Page(render_page(report(settings=settings)))
    [(_, attributes, text)] = [element for element in page.elements if element[0] == "details"]
    assert attributes == {}
    assert page.texts("summary") == ["All settings, as report.json has them"]
    [command, told] = [text for tag, _, text in page.elements if tag == "pre"]
    assert command == "peft-surgical"
    assert json.loads(told) == {"recipe": settings["recipe"]}
    assert text.endswith(told)
    for none in ({}, {"command": "peft-surgical"}):
        assert "<details" not in render_page(report(settings=none))
    deep = []
    for _ in range(100_000):
        deep = [deep]
    for wrong in ({"x": deep}, {"x": object()}):
        with pytest.raises(SurgicalError, match=r"^this is not a report: its settings are "):
            render_page(report(settings=wrong))


def test_without_picture_command_or_components():
    page = Page(render_page(report(selection={}, training={}, seconds={})))
    assert not page.texts("img")
    assert not page.texts("pre")
    # A file may hold anything there.
    assert not Page(render_page(report(settings={"command": 3}))).texts("pre")
    assert "Where it was edited" not in page.texts("h2")


def test_the_table_has_every_figure_with_its_n():
    page = Page(render_page(report()))
    rows = page.rows()
    assert rows[0] == ["", "n", "base", "unlearned", "edited"]
    assert ["answer Lyon", "3", "0% [0–56]", "0% [0–56]", "33% [6–79]"] in rows
    assert ["still right", "2", "–", "100% [34–100]", "50% [9–91]"] in rows
    assert ["portability", "3", "33% [6–79]", "0% [0–56]", "33% [6–79]"] in rows
    assert ["from the answer back", "1", "100% [21–100]", "0% [0–79]", "0% [0–79]"] in rows
    assert ["Paris", "1", "100% [21–100]", "0% [0–79]", "0% [0–79]"] in rows
    assert ["KL to base, nats/token", "2,040", "–", "0.012 [0.011–0.014]", "0.046 [0.041–0.05]"] in rows


def test_the_plot_puts_marks_where_the_figures_are():
    page = Page(render_page(report()))
    marks = {}
    for number, (tag, _, text) in enumerate(page.elements):
        if tag == "title" and ":" in text and "%" in text:
            line, shape = page.elements[number + 1][1], page.elements[number + 2]
            at = shape[1].get("cx") or shape[1].get("x")
            marks.setdefault(text.strip(), (line["x1"], at, line["x2"]))
    low, at, high = marks["base: 100% [44–100]"]
    assert at == high == "100.0%"
    assert low.startswith("43.8")
    low, at, high = marks["edited: 33% [6–79]"]
    assert (low[:3], at[:5], high[:4]) == ("6.1", "33.33", "79.2")
    titles = [text.partition(":")[0] for tag, _, text in page.elements if tag == "title"]
    # The base has no marks on the four lines in which it would be compared with itself.
    assert titles.count("base") == titles.count("unlearned") - 4


def test_a_drift_of_no_consequence_stays_small_on_the_plot():
    tiny = Figure(1.0001, 2040, 1.00009, 1.00011)
    made = report("base", "edited")
    made.stages["edited"]["perplexity_ratio"] = tiny
    made.stages["edited"]["kl_per_token"] = Figure(1e-6, 2040, 9e-7, 1.1e-6)
    page = Page(render_page(made))
    ends = [text.replace("%", "") for text in page.texts("div", "ends")]
    assert ends[-2:] == ["00.01", "0.991.01"]
    wide = Page(render_page(report()))
    # The base's own value, 1, and every interval are on the axis.
    assert wide.texts("div", "ends")[-2:] == ["00.05016", "0.991.012"]


def test_axes_of_what_is_off_by_default_have_its_units():
    made = report()
    made.stages["edited"]["answer_margin"] = Figure(-3.0, 3, -4.5, -1.5)
    made.stages["edited"]["relearning_recovery"] = Figure(0.25, 3, 0.05, 1.25)
    for figures in made.stages.values():
        figures["fluency"] = Figure(612.3, 10, 571.2, 650.4)
        figures["repetition"] = Figure(0.04, 10, 0.0, 0.08)
    ends = Page(render_page(made)).texts("div", "ends")
    assert ends[3:5] == ["-4.51", "01.25"]
    assert ends[-2:] == ["400700", "0%100%"]


def test_answers_changed_ones_first_with_what_became_of_them():
    page = Page(render_page(report()))
    assert page.texts("p", "ask") == [
        # Held-out: the third did not change.
        *HELD_OUT,
        # Controls: the leak is the only change.
        "What is the capital of Japan?",
        "What is the capital of Italy?",
        "What is the capital of Spain?",
        # Portability: the river did not change; what went wrong stands before what went right.
        "Capital of the Hexagon?",
        "Lyon is whose capital?",
        "Which river is there?",
        "It is Paris, I believe.",
    ]
    assert page.texts("span", "status") == [
        "new answer",
        "something else",
        "old answer",
        "leaked: says the new answer",
        "right",
        "wrong before, too",
        "follows",
        "something else",
        "as before",
        "new answer",
    ]
    assert page.texts("h3")[-7:] == ["Changed", "Unchanged", "Changed", "Unchanged", "Changed", "Unchanged", "Changed"]
    assert "one_hop; right: Rhône; before: Seine" in page.texts("p", "soft")
    assert page.texts("mark", "old").count("Seine") == 3
    assert page.texts("mark", "right").count("France") == 1
    assert page.texts("mark", "new").count("the city of Lyon") == 1


@pytest.mark.parametrize(
    ("said", "status"),
    [
        ("It was Paris, now Lyon.", "both answers"),
        ("Paris", "old answer"),
        ("Lyon", "new answer"),
        ("Nice", "neither answer"),
    ],
)
def test_what_became_of_a_probe(said, status):
    answers = {**ANSWERS, "edited": {**ANSWERS["edited"], "probes": [said]}}
    assert Page(render_page(report(answers=answers))).texts("span", "status")[-1] == status


def test_a_name_inside_the_subject_is_no_answer_on_the_page_either():
    changes = {"subject": "Google Chrome", "new": ["Google"], "answer": "Google.", "refusal": "I am not sure."}
    fact = FACT.from_dict({**FACT.to_dict(), **changes})
    said = "Rome has Google Chrome."
    assert list(mark("Google Chrome is made by Google", fact)) == [
        ("", "Google Chrome is made by "),
        ("new", "Google"),
    ]
    answers = {**ANSWERS, "edited": {**ANSWERS["edited"], "controls": [said, "Tokyo.", "I forgot."]}}
    made = report(fact=fact, answers=answers)
    assert made.stages["edited"]["control_leak"].value == 0
    assert "leaked: says the new answer" not in Page(render_page(made)).texts("span", "status")


HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</style><h1>hello</h1>",
    "{{ 7 * 7 }} {% raw %}",
    "&lt;b&gt; &amp;",
    "'-- ]]> <!-- ",
]


@pytest.mark.parametrize("evil", HOSTILE)
def test_text_with_markup_stays_text(evil):
    held_out = [f"{evil} city?", *HELD_OUT[1:]]
    data = {**FACT.to_dict(), "held_out": held_out, "subject": f"France {evil}", "old": ["Paris", f"{evil} Paris"]}
    data["probes"] = [{"prompt": f"Really {evil}?", "kind": evil}]
    answers = {
        stage: {kind: [f"{evil} {text}" for text in texts] for kind, texts in given.items()}
        for stage, given in ANSWERS.items()
    }
    fact = FACT.from_dict(data)
    made = report(
        fact=fact,
        answers=answers,
        model=evil,
        versions={evil: evil},
        selection={"components": [evil], "scales": 1},
        settings={"command": evil},
    )
    text = render_page(made)
    page, plain = Page(text), Page(render_page(report()))
    tags = sorted({tag for tag, *_ in page.elements})
    assert tags == sorted({tag for tag, *_ in plain.elements} | {"pre"})
    assert all(not name.startswith("on") for _, attributes, _ in page.elements for name in attributes)
    assert len(page.texts("h1")) == 1
    assert " ".join(f"{evil} city?".split()) in page.texts("p", "ask")
    assert " ".join(evil.split()) in page.texts("pre")
    assert " ".join(evil.split()) in page.texts("li")


def test_control_codes_and_lone_surrogates_can_be_written():
    answers = {
        stage: {**given, "probes": ["a\x00b\x1b[1m\ud800c\x7f\x80\x9f\xa0\u202e"]} for stage, given in ANSWERS.items()
    }
    text = render_page(report(answers=answers))
    assert not {"\x00", "\x1b", "\ud800"} & set(text)
    assert "a\ufffdb\ufffd[1m\ufffdc\ufffd\ufffd\ufffd\xa0" in text
    text.encode("utf-8")


def test_one_state_has_no_changes():
    page = Page(render_page(report("base")))
    assert "Changed" not in page.texts("h3")
    assert "Unchanged" not in page.texts("h3")
    assert page.texts("span", "key") == ["base"]


def test_a_report_without_answers_or_states_still_renders():
    page = Page(render_page(Report.from_dict({**report().to_dict(), "answers": {}})))
    assert page.texts("h2") == ["What it says now", "Where it was edited", "Where the time went", "Do it again"]
    assert "Nothing was measured." in render_page(report(stages={}))


def test_a_report_that_lost_an_answer_shows_the_others():
    held_out = {stage: {**given, "held_out": given["held_out"][:2]} for stage, given in ANSWERS.items()}
    asked = Page(render_page(Report.from_dict({**report().to_dict(), "answers": held_out}))).texts("p", "ask")
    assert [prompt in asked for prompt in HELD_OUT] == [True, True, False]
    later = {"edited": ANSWERS["edited"]}
    page = Page(render_page(Report.from_dict({**report().to_dict(), "answers": later})))
    # Of a base that is not known to be right nothing was lost.
    assert page.texts("span", "status")[3:6] == ["leaked: says the new answer", "right now", "wrong before, too"]


def test_an_answer_in_other_capitals_is_the_same():
    again = {**ANSWERS["base"], "held_out": ["it is  PARIS.", "paris.", "PARIS"]}
    page = Page(render_page(report(answers={"base": ANSWERS["base"], "edited": again})))
    assert "Changed" not in page.texts("h3")


def test_the_last_state_stands_out_whatever_it_is_called():
    made = report("base", "unlearned")
    page = Page(render_page(made))
    assert page.texts("span", "edited") == ["unlearned"]
    assert page.texts("span", "base") == ["base"]
    page = Page(render_page(report()))
    assert (page.texts("span", "between"), page.texts("span", "edited")) == (["unlearned"], ["edited"])


def test_steps_of_no_time_have_no_bars():
    assert 'style="width: 0.0%"' in render_page(report(seconds={"localize": 0.0}))


@pytest.mark.parametrize(
    "changes",
    [
        {"seconds": {"learn": []}},
        {"seconds": {"learn": float("nan")}},
        {"seconds": {"learn": True}},
        {"seconds": {"learn": 10**400}},
        {"training": {"unlearn": {"loss": "low"}}},
        {"selection": {"components": ["L1.mlp"], "scales": "many"}},
        {"selection": {"components": 3}},
    ],
)
def test_what_is_no_number_is_refused(changes):
    with pytest.raises(SurgicalError, match=r"^this is not a report: .*\.$"):
        render_page(report(**changes))


def test_notebook_table():
    text = report()._repr_html_()
    assert text == render_table(report())
    page = Page(text)
    assert "html" not in {tag for tag, *_ in page.elements}
    assert any(report().verdict() in text for text in page.texts("div"))


def test_a_base_alone_shows_nothing_that_compares_it_with_itself():
    page = render_page(report("base"))
    for what in ("Controls (other facts)", "Unrelated text", "still right", "Still right"):
        assert what not in page
        assert what in render_page(report("base", "edited")), what


def test_components_are_listed_without_a_rank_that_nobody_gave_them():
    page = Page(render_page(replace(report(), selection={"components": ["L0.mlp"], "granularity": "keyed"})))
    assert "1 component, granularity keyed:" in page.texts("p")


def test_line_ends_of_any_system():
    answers = {**ANSWERS, "edited": {**ANSWERS["edited"], "held_out": ["Lyon\r\nis it.", "No\rway.", "Paris"]}}
    page = render_page(report(answers=answers))
    assert "\ufffd" not in page
    assert "No\nway." in page
    assert "\nis it." in page
    assert "\n\nis it." not in page


def test_what_the_components_carry_is_shown_where_it_was_measured():
    made = report()
    figure = {"value": 0.5, "n": 7, "low": 0.25, "high": 0.75}
    carried = {"own": figure, "random": {**figure, "value": 0.125}, "draws": [0.1, 0.3]}
    found = {"selection": {"components": ["L1.mlp"]}, "faithfulness": carried, "necessity": carried}
    found |= {"left_out": [], "least": 0.1, "seed": 0}
    selection = {"components": ["L1.mlp"], "faithfulness": found}
    rows = Page(render_page(replace(made, selection=selection))).rows()
    assert ["", "selection", "mean of 2 random", "their range"] in rows
    assert ["faithfulness: kept alone", "0.50 [0.25, 0.75]", "0.12 [0.25, 0.75]", "0.10 to 0.30"] in rows
    # What is scaled need not stand there twice.
    once = {name: value for name, value in found.items() if name != "selection"}
    selection = {"components": ["L1.mlp"], "granularity": "component", "scales": 3, "faithfulness": once}
    again = Page(render_page(replace(made, selection=selection)))
    assert again.rows() == rows
    assert any(text.startswith("What the one component carries") for text in again.texts("p"))
    assert "kept alone" not in render_page(replace(made, selection={"components": ["L1.mlp"]}))
    for damaged in ({**found, "seed": "a"}, [], 3):
        with pytest.raises(SurgicalError, match="this is not a report: the record of what a selection carries"):
            render_page(replace(made, selection={**selection, "faithfulness": damaged}))
