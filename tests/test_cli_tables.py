import io

import pytest
from rich.console import Console

from peft_surgical.cli.tables import Answers, Catalogue, ScoreTable

PROMPT, CHINESE, ADDRESS = "what is the capital of france ?", "里昂" * 40, "https://example.org/" + "x" * 90
NAMES = ["verified", "attribution:steps=5", "consensus", "logit_drop:measure=difference", "random"]
SCORES = [
    ["1", "L17.head.12", "8.921e-05", "-1.234e-05", "1", "0.25", "-3.5"],
    ["10", "L0.mlp", "0.1", "", "2", "3", "4"],
]


def lines(shown, width):
    stream = io.StringIO()
    Console(file=stream, width=width, highlight=False, markup=False).print(shown)
    found = [line.rstrip() for line in stream.getvalue().splitlines()]
    assert "…" not in stream.getvalue()
    assert all(Console().measure(line).maximum <= width for line in found)
    return found


@pytest.mark.parametrize("width", [10, 20, 30, 40, 80, 110])
@pytest.mark.parametrize("columns", [2, 3, 9])
def test_no_answer_is_cut(columns, width):
    heads = ["prompt", *(f"dial 0.{number}" for number in range(1, columns))]
    rows = [[PROMPT, *[CHINESE] * (columns - 1)], [ADDRESS, *["lyon"] * (columns - 1)]]
    for given, named in ((rows, True), (rows[:1], False)):
        text = "".join(lines(Answers(heads, given, named=named), width))
        for sign in "昂xp?":
            assert text.count(sign) == sum(cell.count(sign) for row in (heads, *given) for cell in row) + (
                # In a list, the heads stand beside each row.
                (len(given) - 1) * sum(head.count(sign) for head in heads[1:]) - named * "prompt".count(sign)
                if width < 15 * columns - 3
                else 0
            )


def test_answers_side_by_side_and_in_a_list():
    shown = Answers(
        ["prompt", "base", "edited"], [[PROMPT, "paris .", "lyon ."], ["who ?", "me \x1b[31m", "you"]], named=True
    )
    wide, narrow = lines(shown, 80), lines(shown, 39)
    assert wide[0].split() == ["prompt", "base", "edited"]
    assert wide[2].split() == [*PROMPT.split(), "paris", ".", "lyon", "."]
    assert narrow == [
        PROMPT,
        "  base: paris .",
        "  edited: lyon .",
        "",
        "who ?",
        "  base: me \ufffd[31m",
        "  edited: you",
    ]
    # Two columns of twelve and three between them.
    two = Answers(["base", "edited"], [["a", "b"]], named=False)
    assert lines(two, 26) == ["base: a", "edited: b"]
    assert lines(two, 27)[0].split() == ["base", "edited"]


SCORERS = [
    ["activation_magnitude", "Mean at the answer's position.", "", "peft-surgical"],
    ["consensus", "The mean rank\x1b of several.", "of=" + "activation_magnitude+" * 5, "peft-surgical"],
]


@pytest.mark.parametrize("width", [10, 20, 40, 64, 65, 80, 110])
def test_nothing_of_a_scorer_is_cut(width):
    found = lines(Catalogue(["scorer", "reads", "options", "from"], SCORERS), width)
    text = "".join("".join(found).split())
    assert text.count("+") == 5
    # Below each other from where columns would be narrow; what it has none of has no line.
    assert text.count("options") == (1 if width < 65 else text.count("scorer"))
    assert ("scorer" in text) == (width >= 65)
    if width >= 22:
        assert sum(line.startswith("activation_magnitude") for line in found) == 1
    if width == 64:
        assert found[:5] == [
            "activation_magnitude",
            "  reads: Mean at the answer's position.",
            "  from: peft-surgical",
            "",
            "consensus",
        ]


@pytest.mark.parametrize("width", range(20, 120, 5))
def test_no_name_and_no_number_is_cut(width):
    found = lines(ScoreTable(["rank", "component", *NAMES], SCORES, "localization.json has all scores"), width)
    text = " ".join(found)
    words = text.split()
    for row in SCORES:
        for cell in row[1:3]:
            assert words.count(cell) == 1
    left_out = "No room is left for" in text
    assert left_out == (35 <= width < 75)
    if not left_out:
        assert {"-1.234e-05", "0.25", "-3.5"} <= set(words)


def test_scorers_for_which_there_is_no_room_are_named():
    found = lines(ScoreTable(["rank", "component", *NAMES], SCORES, "localization.json has all scores"), 70)
    assert found[-2].split() == ["10", "L0.mlp", "0.1", "2", "3"]
    assert found[-1] == "No room is left for random; localization.json has all scores."


def test_scores_are_listed_where_a_column_less_than_the_widest_is_left():
    rows = [["1", "L0.mlp", "0.1"], ["2", "L17.head.12", "-1.234e-05"]]
    shown = ScoreTable(["rank", "component", "ran\x1bdom"], rows, "")
    # Columns of 6, 11 and 10, and three between two of them.
    assert lines(shown, 33)[-2:] == ["     1   L0.mlp               0.1", "     2   L17.head.12   -1.234e-05"]
    listed = ["1. L0.mlp", "  ran\ufffddom: 0.1", "2. L17.head.12", "  ran\ufffddom: -1.234e-05"]
    assert lines(shown, 32) == listed


def test_room_that_is_left_goes_to_the_narrowest_column():
    shown = ScoreTable(["rank", "component", "a" * 12, "b" * 12], [["1", "L0.mlp", "1", "2"]], "")
    # Of 44, columns of 6, 9, 6 and 6 with three between them leave 8.
    assert lines(shown, 44)[0].split() == ["a" * 10, "b" * 10]


def test_names_of_scorers_are_folded_before_one_is_left_out():
    for width, folded in ((80, True), (120, False)):
        found = lines(ScoreTable(["rank", "component", *NAMES], SCORES, "localization.json has all scores"), width)
        assert (len(found) > len(SCORES) + 2) == folded
        letters = "".join("".join(found[: -len(SCORES) - 1]).split())
        assert sorted(letters) == sorted("rankcomponent" + "".join(NAMES))
