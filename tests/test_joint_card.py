import io
from dataclasses import replace

from rich.console import Console

from peft_surgical.measuring.metrics import Figure, rate
from peft_surgical.reporting.joint_card import cells
from peft_surgical.reporting.joint_table import summarize_together
from peft_surgical.together import FactTogether, Together

from .localizing import capital


def stages(after, now, kept=None):
    """A fact whose new answer is given so often of four, and kept by so many of two controls."""
    found = {"base": {"old_answer_rate": rate([True] * 3 + [False])}}
    for state, count in (("after", after), ("all", now)):
        found[state] = {
            "new_answer_rate": rate([True] * count + [False] * (4 - count)),
            "old_answer_rate": rate([False] * 4),
            **({} if kept is None else {"control_kept": rate([True] * kept + [False] * (2 - kept))}),
        }
    return found


TOGETHER = Together(
    facts=(
        FactTogether("france", capital(), {}, stages(4, 3), {"controls": {"about_another": 2}}, {}),
        FactTogether(
            "it|aly",
            capital(subject="it|aly", prompts=["where is it|aly ?"], held_out=["where it|aly ?"]),
            {},
            stages(1, 0, kept=1),
            {"controls": {"trained_by_another": 1}, "held_out": {"trained_by_another": 3}},
            {},
        ),
    ),
    pooled={
        "base": {"old_answer_rate": rate([True] * 6 + [False] * 2)},
        "after": {"new_answer_rate": rate([True] * 5 + [False] * 3)},
        "all": {"new_answer_rate": rate([True] * 3 + [False] * 5), "control_kept": rate([True, False])},
    },
    unrelated={"kl_per_token": Figure(0.25, 100, 0.125, 0.5)},
    failed={"japan": "no prompt names\x1b the subject."},
    model="m",
    dtype="float32",
    seed=3,
    versions={},
)


def test_answers_are_counted_whole_whatever_a_float_makes_of_their_share():
    # 0.29 * 100 is 28.999…, and 0.58 * 100 is 57.999….
    shown = {
        state: {"new_answer_rate": rate([n < hits for n in range(100)])}
        for state, hits in (("after", 29), ("all", 58))
    }
    assert cells(shown)[0] == "29 → 58 of 100"


def test_the_card_has_each_fact_right_after_its_edit_and_with_all():
    card = TOGETHER.to_markdown()
    assert card.startswith("2 facts were rewritten, each on top of those before it.")
    assert "| france: paris → lyon | 4 → 3 of 4 | 0 → 0 of 4 | – | – |" in card
    assert "| it\\|aly: paris → lyon | 1 → 0 of 4 | 0 → 0 of 4 | 1 → 1 of 2 | – |" in card
    assert "| each right after its edit | 62% [31–86], n 8 | – | – | – |" in card
    assert "| with all edits | 38% [14–69], n 8 | – | 50% [9–91], n 2 | – |" in card
    for sentence in (
        "The base gives the old answer to 6 of 8 held-out questions.",
        "On 100 tokens of unrelated text, with all edits: KL to base, nats/token 0.25",
        "Left out: 2 controls about what another of these facts changes.",
        "Left out: 1 control and 3 held-out prompts that another fact's edit was trained on or held to.",
        "Not edited: japan (no prompt names\ufffd the subject).",
        "In float32, seed 3.",
    ):
        assert sentence in card


def test_the_edits_in_the_base_are_told_as_on_the_card_of_one():
    edits = [{"base": {}, "adapters": [{"name": "japan/edit"}]}]
    told = replace(TOGETHER, settings={"base_edits": edits})
    sentence = "The base carries 1 edit, merged into its weights: japan/edit."
    assert sentence in told.to_markdown()
    stream = io.StringIO()
    Console(file=stream, width=100).print(summarize_together(told, "out"))
    assert sentence in stream.getvalue()
    assert "The base carries" not in TOGETHER.to_markdown()


def test_nothing_is_said_of_what_there_is_not():
    whole = tuple(replace(one, left_out={}) for one in TOGETHER.facts)
    card = replace(TOGETHER, facts=whole, pooled={}, unrelated={}, failed={}).to_markdown()
    for words in ("Left out", "Not edited", "unrelated text", "The base gives"):
        assert words not in card
    assert "| with all edits | – | – | – | – |" in card
    # What is known of one of the two states is no change from the one to the other.
    _, other = TOGETHER.facts
    gone = {**other.stages, "all": {"new_answer_rate": other.stages["all"]["new_answer_rate"]}}
    some = replace(other, stages=gone, left_out={"held_out": {"trained_by_another": 1}})
    card = replace(TOGETHER, facts=(some,)).to_markdown()
    assert "| it\\|aly: paris → lyon | 1 → 0 of 4 | – | – | – |" in card
    assert "Left out: 1 held-out prompt that another fact's edit" in card


def test_one_fact_is_told_of_as_one():
    one = replace(TOGETHER, facts=TOGETHER.facts[:1])
    card = one.to_markdown()
    assert card.startswith("1 fact was rewritten. Each cell: right after the fact's own edit, and with all edits.")
    stream = io.StringIO()
    Console(file=stream, width=100).print(summarize_together(one, "out"))
    assert "Right after each fact's edit → with all edits" in stream.getvalue()


def test_the_table_is_cut_in_no_terminal():
    for width in (100, 50, 30):
        stream = io.StringIO()
        Console(file=stream, width=width).print(summarize_together(TOGETHER, "out"))
        shown = stream.getvalue()
        assert "…" not in shown
        assert "\x1b" not in shown
    stream = io.StringIO()
    Console(file=stream, width=100).print(summarize_together(TOGETHER, "out"))
    for words in ("with all 2 edits", "4 → 3 of 4", "62% [31–86]", "38% [14–69]", "In out: a folder a fact"):
        assert words in stream.getvalue()


def test_what_is_left_out_is_counted_over_facts_and_reasons():
    assert TOGETHER.left_out("controls") == 3
    assert TOGETHER.left_out("controls", "about_another") == 2
    assert TOGETHER.left_out("held_out") == 3
    assert repr(TOGETHER) == "Together(france, it|aly in 'm', float32)"
    assert TOGETHER.to_dict()["pooled"]["all"]["control_kept"]["n"] == 2
