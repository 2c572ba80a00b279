import re
from dataclasses import replace

import pytest
from huggingface_hub import ModelCard

from peft_surgical.errors import ReportError
from peft_surgical.measuring.metrics import Figure
from peft_surgical.reporting.card import render_markdown, with_measured
from tests.reports import FACT, report
from tests.test_weights import EDITED, EDITS

CARD = b"---\ntags:\n- ia3\n---\n\n# A surgical edit\n\nAn adapter.\n\n## Use\n"


def table(text):
    """The cells of every row of a text's table, split where Markdown does."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_it_says_the_fact_the_verdict_and_every_figure():
    made = report("base", "edited")
    text = made.to_markdown()
    parts = text.split("\n\n")
    assert parts[:2] == ["**France: Paris → Lyon**", made.verdict()]
    head, rule, *rows = table(text)
    assert (head, rule) == (["", "base", "edited"], ["---"] * 3)
    assert rows == [[label, *cells] for label, cells in made.rows()]
    assert ["gives the new answer (n=3)", "0.00 [0.00, 0.56]", "0.33 [0.06, 0.79]"] in rows
    assert parts[3].startswith("In brackets: 95% intervals. n: how many prompts or tokens. Measured: ")
    assert parts[3].endswith(": tiny/model in float32, seed 7, with python 3.11.7, torch 2.13.0.")
    assert len(parts) == 4


def test_the_command_and_the_folders_that_it_names_stay_off_a_card():
    command = "peft-surgical edit /home/me/fact.yaml --model /home/me/model --out /home/me/out"
    settings = {"command": command, "on": [{"folder": "/home/me/earlier"}], "adapters": [{"folder": "/home/me/x"}]}
    made = report(settings=settings, model="/home/me/model")
    for text in (made.to_markdown(), with_measured(CARD, made).decode()):
        assert "/home/me" not in text
        assert "peft-surgical edit" not in text


def test_what_is_not_known_is_left_out():
    text = report(versions={"machine": "x86_64"}, model="/home/me/my model").to_markdown()
    assert text.endswith("Measured: the base model in float32, seed 7, on x86_64.")
    assert "/home" not in text
    assert table(report().to_markdown())[0] == ["", "base", "unlearned", "edited"]


def test_what_the_weights_carry_is_told_without_a_path_of_the_machine():
    on = [{"folder": "/home/me/out/france/edit", "sha256": "x"}, {"folder": "keyed"}]
    settings = {"on": on, "base_edits": EDITS, "edited": {**EDITED, "name": "/home/me/ro*me"}}
    made = report("base", "edited", settings=settings)
    parts = made.to_markdown().split("\n\n")
    assert parts[3] == (
        "Here base is the model with france/edit and keyed folded in. The base carries 2 edits, merged into its"
        " weights: unlearn and learn, then keyed. Edited is the checkpoint ro\\*me, stored in bfloat16: 2 of 272"
        " tensors differ from the base's; both are measured in float32."
    )
    assert parts[4].startswith("In brackets: ")
    assert made.settings == settings
    text = report(settings={"edited": {**EDITED, "name": "org/edited"}}).to_markdown()
    assert "\n\nEdited is the checkpoint org/edited, stored in" in text
    with pytest.raises(ReportError, match="stands where base_edits should"):
        report(settings={"base_edits": 3}).to_markdown()


def measured(**settings):
    return report(settings=settings).to_markdown().rpartition("Measured: ")[2].partition(" in float32")[0]


def test_the_model_is_named_as_it_was_when_it_was_measured(tmp_path, monkeypatch):
    assert measured(hub_id="org/model", revision="v1.0") == "org/model (revision v1.0)"
    assert measured(hub_id=None, revision="v1.0") == "the base model"
    assert measured(hub_id=["x"], revision=3) == "the base model"
    assert measured(hub_id="org/a*b", revision="`") == "org/a\\*b (revision \\`)"
    # That of before goes by what is here.
    assert measured() == "tiny/model"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny" / "model").mkdir(parents=True)
    assert measured() == "the base model"
    assert measured(hub_id="tiny/model") == "tiny/model"


@pytest.mark.parametrize("evil", ["a|b", "<script>", "**x**", "[a](b)", "a\n\n# b", "`x", "&lt;", "\x1b[31m", "_x_"])
def test_names_neither_end_a_table_nor_become_markup(evil):
    fact = FACT.from_dict({**FACT.to_dict(), "subject": f"France {evil}", "new": [evil + " Lyon", "Lyon"]})
    made = report("base", "edited", fact=fact, versions={evil: evil})
    made = replace(made, stages={**made.stages, f"edited {evil}": made.stages["edited"]})
    text, plain = render_markdown(made), render_markdown(report())
    assert text.count("\n\n") == plain.count("\n\n")
    assert all(len(row) == 4 for row in table(text))
    signs = re.findall(r"(?<!\\)(?:\\\\)*[<>`\x1b]|(?<!\\)\]\(|(?<!\\)&", text)
    assert not signs
    # Only at the edge of a word does it mean something.
    assert not re.search(r"(?<![\w\\])_|(?<!\\)_(?!\w)", text)
    assert text.replace("\\", "").count("France ") == 1


def test_names_as_they_mostly_are_stay_as_they_are():
    fact = FACT.from_dict({**FACT.to_dict(), "subject": "L'Hôtel-de_Ville (No. 5)", "new": ["Dún Laoghaire", "Lyon"]})
    assert "**L'Hôtel-de_Ville (No. 5): Paris → Dún Laoghaire**" in report(fact=fact).to_markdown()


def test_the_section_stands_behind_the_title_and_what_else_is_there_stays():
    made = report("base", "edited")
    card = with_measured(CARD, made).decode()
    head, rest = card.split("# A surgical edit\n")
    assert head.encode() + b"# A surgical edit\n" + rest.partition("## The adapter\n")[2].encode() == CARD
    assert rest.startswith(f"\n## What was measured\n\n{made.to_markdown()}\n\n## The adapter\n\nAn adapter.")
    assert ModelCard(card).data.tags == ["ia3"]


def test_a_comment_in_a_card_s_metadata_is_no_title():
    made, head = report("base", "edited"), b"---\n# What it may be used for\nlicense: mit\n---\n"
    card = with_measured(head + b"\n# Mine\n", made)
    assert card.startswith(head + b"\n# Mine\n\n## What was measured")
    assert ModelCard(card.decode()).data.license == "mit"
    assert with_measured(head, made).startswith(head)


@pytest.mark.parametrize("own", [b"", b"mine alone\n", b"\xff is no text\n", b"## no title\r\n"])
def test_a_card_without_a_title_gets_the_section_at_its_end(own):
    made = report("base", "edited")
    assert with_measured(own, made) == own + f"\n## What was measured\n\n{made.to_markdown()}\n".encode()


def test_figures_of_any_size_have_their_interval():
    made = report("base", "edited")
    made.stages["edited"]["kl_per_token"] = Figure(0.00012, 2040, 0.0001, 0.0002)
    label, *cells = table(made.to_markdown())[-2]
    assert label == "KL per token on unrelated text (nats) (n=2,040)"
    assert cells == ["0 [0, 0]", "0.00012 [0.0001, 0.0002]"]
