import io
from dataclasses import replace

import pytest
from rich.console import Console

from peft_surgical.facts import Control, Probe
from peft_surgical.measuring.metrics import Figure
from peft_surgical.reporting.summary import figure_text, label, printable, summarize
from tests.reports import ANSWERS, FACT, report

FILES = [("unlearn/, learn/", "the two stages"), ("report.html", "every answer")]


def shown(made, *, width=80, terminal=False, files=FILES, out="out"):
    stream = io.StringIO()
    console = Console(file=stream, width=width, highlight=False, markup=False, force_terminal=terminal)
    console.print(summarize(made, out, files))
    return stream.getvalue()


def cells(text, row):
    """The words of the table's row that begins with `row`."""
    line = next(line for line in text.splitlines() if line.strip().startswith(row))
    return line.strip().removeprefix(row).split()


def test_figures_stand_beside_their_names():
    text = shown(report())
    assert cells(text, "answer Lyon") == ["3", "0%", "[0–56]", "0%", "[0–56]", "33%", "[6–79]"]
    assert cells(text, "answer Paris") == ["3", "100%", "[44–100]", "33%", "[6–79]", "33%", "[6–79]"]
    assert cells(text, "says it does not know")[1:6:2] == ["0%", "67%", "0%"]
    # Two of the three controls are right in the base; one of these stays so.
    assert cells(text, "still right") == ["2", "–", "100%", "[34–100]", "50%", "[9–91]"]
    assert cells(text, "now say Lyon")[:1] == ["3"]
    # The alias is answered with Lyon after the edit; the river is still the Seine, of two that had an answer before.
    assert cells(text, "portability") == ["3", "33%", "[6–79]", "0%", "[0–56]", "33%", "[6–79]"]
    assert cells(text, "by another name") == ["1", "0%", "[0–79]", "0%", "[0–79]", "100%", "[21–100]"]
    assert cells(text, "still as before") == ["2", "100%", "[34–100]", "100%", "[34–100]", "50%", "[9–91]"]
    assert cells(text, "Paris") == ["1", "100%", "[21–100]", "0%", "[0–79]", "0%", "[0–79]"]
    assert cells(text, "both")[1:6:2] == ["0%", "0%", "0%"]
    assert cells(shown(report(), width=110), "KL to base, nats/token")[2:4] == ["0.012", "[0.011–0.014]"]
    assert cells(text, "perplexity / base's") == ["2,040", "–", "1.004", "1.010"]


def test_fits_eighty_columns_and_names_verdict_and_files():
    text = shown(report())
    assert max(map(len, text.splitlines())) <= 80
    header = next(line for line in text.splitlines() if "base" in line)
    assert header.split() == ["n", "base", "unlearned", "edited"]
    assert " ".join(text.split()).count(report().verdict()) == 1
    assert "In out:" in text
    assert "report.html" in text


@pytest.mark.parametrize("width", [24, 40, 60])
def test_a_narrow_terminal_gets_a_list_in_which_figures_stay_whole(width):
    text = shown(report(), width=width, files=[])
    lines = [line.strip() for line in text.splitlines()]
    assert max(map(len, lines)) <= width
    at = lines.index("answer Lyon (n 3)")
    assert lines[at + 1 : at + 4] == ["base: 0% [0–56]", "unlearned: 0% [0–56]", "edited: 33% [6–79]"]
    assert "Controls (other facts)" in lines
    for figure in ("100% [44–100]", "0.012", "[0.011–0.014]"):
        assert figure in text


@pytest.mark.parametrize("width", range(62, 112, 3))
def test_no_figure_is_broken_within_a_number(width):
    """Intervals as long as those of a real edit: what does not fit folds between value and interval, or is a list."""
    made = report()
    for stage in ("unlearned", "edited"):
        made.stages[stage]["kl_per_token"] = Figure(0.0062, 2040, 0.0056, 0.0069)
        made.stages[stage]["perplexity_ratio"] = Figure(1.013, 2040, 1.006, 1.021)
    text = shown(made, width=width, files=[])
    assert max(map(len, text.splitlines())) <= width
    for word in ("[0.0056–0.0069]", "[1.006–1.021]", "[34–100]"):
        assert text.split().count(word) == shown(made, width=200, files=[]).split().count(word)
    if width >= 80:
        assert cells(text, "answer Paris")[1:3] == ["100%", "[44–100]"]


def test_a_long_name_without_spaces_is_folded():
    made = report()
    made = replace(made, fact=replace(made.fact, old=("里" * 40, *made.fact.old)))
    for width in (62, 80, 110):
        assert "…" not in shown(made, width=width).replace("/…", "")
        assert shown(made, width=width).count("里") == shown(made, width=500).count("里")
    # However much room there is, figures stand close to what they are of.
    table = [line for line in shown(made, width=500).splitlines() if not line.startswith(("France", "Of"))]
    assert max(line.count("里") for line in table) == 15


def test_an_unedited_model_has_no_rows_of_comparison():
    text = shown(report("base"))
    assert "answer Paris" in text
    assert "still right" not in text
    assert "KL" not in text
    assert "edited" not in text
    # But what was measured of it alone has its rows, and those beside it stay.
    made = report("base")
    made.stages["base"]["control_margin"] = Figure(1.5, 3, -0.5, 3.5)
    assert cells(shown(made), "right over Lyon, nats/token") == ["3", "+1.5", "[-0.5…+3.5]"]
    assert cells(shown(made), "still right") == ["2", "–"]


def test_only_the_last_of_several_states_stands_out(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    for stages, bold in ((["base"], False), (["base", "edited"], True)):
        line = next(line for line in shown(report(*stages), terminal=True).splitlines() if "answer Paris" in line)
        assert ("\x1b[1m" in line) == bold


def test_the_name_of_a_state_in_wide_letters_is_not_broken():
    name = "東京" * 6
    made = report("base")
    made = replace(made, stages={"base": made.stages["base"], name: made.stages["base"]})
    for width in range(30, 100, 2):
        # Before the verdict, which names it, too.
        assert name in shown(made, width=width, files=[]).partition("In brackets")[0]


def test_colours_only_on_a_terminal_that_wants_them(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[" in shown(report(), terminal=True)
    assert "\x1b[" not in shown(report())


@pytest.mark.parametrize("evil", ["\x1b[31mred", "\x9b31m", "\x07", "[bold]Lyon[/bold]"])
def test_text_stays_text(evil):
    fact = FACT.from_dict({**FACT.to_dict(), "subject": f"France {evil}"})
    text = shown(report(fact=fact))
    assert not {"\x1b", "\x9b", "\x07"} & set(text)
    if evil.startswith("["):
        assert evil in text


@pytest.mark.parametrize(
    ("figure", "text"),
    [
        (Figure(1.0, 20, 0.84, 1.0), "100% [84–100]"),
        (Figure(0.998, 500, 0.99, 0.9996), ">99% [99–>99]"),
        (Figure(0.002, 500, 0.0, 0.01), "<1% [0–1]"),
        (None, "–"),
    ],
)
def test_rates_never_claim_all_or_nothing_falsely(figure, text):
    assert figure_text("new_answer_rate", figure, "edited") == text


def test_rows_only_for_what_a_fact_asks():
    fact = replace(FACT, portability=(), probes=())
    answers = {stage: {**given, "portability": [], "probes": []} for stage, given in ANSWERS.items()}
    text = shown(report(fact=fact, answers=answers))
    assert "What follows from the fact" in shown(report())
    assert not [words for words in ("What follows", "portability", "probes", "both") if words in text]


def test_kinds_of_probe_have_rows_of_their_own():
    kinds = ["doubt", "doubt", "few \x1bshots"]
    fact = replace(FACT, probes=tuple(Probe(f"{number}?", kind) for number, kind in enumerate(kinds)))
    said = {"base": ["Paris", "Paris", "Paris"], "unlearned": ["Paris", "?", "?"], "edited": ["Lyon", "?", "Paris"]}
    answers = {stage: {**given, "probes": said[stage]} for stage, given in ANSWERS.items()}
    text = shown(report(fact=fact, answers=answers))
    assert cells(text, "doubt: old") == ["2", "100%", "[34–100]", "50%", "[9–91]", "0%", "[0–66]"]
    assert cells(text, "doubt: only new")[1::2] == ["0%", "0%", "50%"]
    assert "few" not in text
    twice = replace(fact, probes=tuple(replace(probe, kind=kinds[-1]) for probe in fact.probes))
    text = shown(report(fact=twice, answers=answers))
    assert "few \ufffdshots: old" in text


def test_controls_that_name_the_subject_stand_below_all():
    fact = replace(FACT, controls=(*FACT.controls, Control("What is eaten in France?", ("bread",))))
    said = {"base": "Bread.", "unlearned": "Bread.", "edited": "Lyon."}
    answers = {stage: {**given, "controls": [*given["controls"], said[stage]]} for stage, given in ANSWERS.items()}
    text = shown(report(fact=fact, answers=answers))
    every, own = text.split("Those that name the subject")
    assert cells(every, "now say Lyon") == ["4", "–", "0%", "[0–49]", "50%", "[15–85]"]
    assert cells(own, "now say Lyon") == ["1", "–", "0%", "[0–79]", "100%", "[21–100]"]
    assert cells(own, "still right")[::2] == ["1", "100%", "0%"]
    assert "Those that" not in shown(report())


def test_the_base_is_not_compared_with_itself():
    figure = Figure(1.0, 9, 0.7, 1.0)
    assert figure_text("control_kept", figure, "base") == "–"
    assert figure_text("control_kept", figure, "edited") == "100% [70–100]"
    assert figure_text("old_answer_rate", figure, "base") == "100% [70–100]"


def deep():
    """A report with what is off by default."""
    made = report()
    made.stages["edited"]["relearning_recovery"] = Figure(1.25, 3, 0.4, 2.4)
    for stage, figures in made.stages.items():
        figures["fluency"] = Figure(612.3 if stage == "base" else 598.7, 10, 571.2, 650.4)
        figures["repetition"] = Figure(0.04, 10, 0.0, 0.08)
    return made


def test_what_is_off_by_default_has_rows_where_it_was_measured():
    text = shown(deep(), width=110)
    # A ratio may be more than 1, so it is not in percent.
    assert cells(text, "Paris relearned / base's") == ["3", "–", "–", "1.25", "[0.40–2.40]"]
    assert cells(text, "n-gram entropy, bits × 100") == ["10", *["612", "[571–650]"], *["599", "[571–650]"] * 2]
    assert cells(text, "4-grams said before") == ["10", *["4%", "[0–8]"] * 3]
    assert max(map(len, shown(deep()).splitlines())) <= 80
    for name in ("relearned", "n-gram", "4-grams", "Text about"):
        assert name not in shown(report())


def test_label_of_an_unknown_metric_is_its_name():
    assert label("portability", report()) == "portability"
    assert label("of_tomorrow", report()) == "of_tomorrow"
    assert printable("né\t✓\n") == "né\t✓\n"


def test_a_figure_with_many_digits_is_short():
    assert figure_text("perplexity_ratio", Figure(1.25e9, 9, 0.9e9, 3e9), "edited") == "1.25e+09 [9e+08–3e+09]"
    # Of one whose interval alone is long, all are.
    assert figure_text("perplexity_ratio", Figure(9e3, 9, 8e3, 1.2e4), "edited") == "9000 [8000–1.2e+04]"
    assert figure_text("perplexity_ratio", Figure(1.25, 9, 1.0, 1.5), "edited") == "1.250 [1.000–1.500]"
