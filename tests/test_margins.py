"""By how much an answer wins: which words it stands behind, what is left out, and the figures."""

import string

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from peft_surgical import evaluation
from peft_surgical.evaluation import evaluate
from peft_surgical.measuring.margins import Contest, margin_metrics, measure_margins
from peft_surgical.measuring.metrics import Figure, mean, rate
from peft_surgical.measuring.states import adapter_state
from peft_surgical.report import Report
from peft_surgical.reporting.page import render_page
from peft_surgical.running import generation
from peft_surgical.staging.whole_answers import whole_answer
from peft_surgical.texts.prompts import encode, without_template

from .adapters import perturb, tiny_peft
from .localizing import capital, planted, word_tokenizer
from .reports import report
from .small_tokenizers import CHATML, small_tokenizer
from .tiny import tiny_model

TOKENIZER = word_tokenizer()
FRANCE = {
    "subject": "France",
    "old": ["Paris"],
    "new": ["Lyon"],
    "prompts": ["What is the capital of France?"],
    "held_out": ["Name the capital of France.", "The capital of France?"],
    "contrast": ["Italy"],
}


def france(**changes):
    controls = [{"prompt": "What is the capital of Italy?", "answer": ["Rome"]}]
    return capital(**{**FRANCE, "retain": ["Who made it?"], "controls": controls, **changes})


def bpe(template=CHATML):
    tokenizer = small_tokenizer("bpe")
    tokenizer.chat_template = template
    return tokenizer


def wide(**changes):
    return tiny_model("llama", vocab_size=1024, **changes)


def read(tokenizer, row):
    """What stands before an answer, and the answer."""
    return tokenizer.decode(row.ids[: row.answer_start]), tokenizer.decode(row.ids[row.answer_start :]).strip()


def contest(tokenizer, fact, *said, model=None):
    said = said or ["Rome."] * len(fact.controls)
    return Contest.of(model or wide(), tokenizer, fact, said, answer=whole_answer(fact))


@pytest.mark.parametrize("answer", ["The capital of France is Lyon.", "Lyon.", "Lyon"])
def test_both_names_stand_where_a_sentence_has_them(answer):
    # That of a bare answer is the sentence that the package teaches.
    tokenizer, fact = bpe(), france(answer=answer)
    (first, second), (control,) = (lambda found: (found.held_out, found.controls))(
        contest(tokenizer, fact, "The capital of Italy is Rome, of course.")
    )
    begun = tokenizer.decode(encode(tokenizer, fact.held_out[0])) + "The capital of France is"
    assert read(tokenizer, first.wanted) == (begun, "Lyon")
    assert read(tokenizer, first.against) == (begun, "Paris")
    assert "The capital of France?" in read(tokenizer, second.wanted)[0]
    begun = tokenizer.decode(encode(tokenizer, "What is the capital of Italy?")) + "The capital of Italy is"
    assert read(tokenizer, control.wanted) == (begun, "Rome")
    assert read(tokenizer, control.against) == (begun, "Lyon")


def test_a_name_that_begins_the_sentence_or_holds_the_other_is_read_whole():
    tokenizer = bpe()
    found = contest(tokenizer, france(answer="Lyon is the capital of France.", old=["Lyon Google"])).held_out[0]
    begun = tokenizer.decode(encode(tokenizer, "Name the capital of France."))
    assert read(tokenizer, found.wanted) == (begun, "Lyon")
    assert read(tokenizer, found.against) == (begun, "Lyon Google")
    longer = france(controls=[{"prompt": "What is the capital of Italy?", "answer": ["Rome", "Rome City"]}])
    [control] = contest(tokenizer, longer, "Rome City.").controls
    assert read(tokenizer, control.wanted)[1] == "Rome City"


def test_a_name_within_the_subject_is_not_where_the_sentence_has_the_answer():
    tokenizer = bpe()
    asked = {"prompts": ["Who made Lyon Chrome?"], "held_out": ["Who is behind Lyon Chrome?"]}
    fact = france(subject="Lyon Chrome", answer="Lyon Chrome is by Lyon.", **asked)
    begun = tokenizer.decode(encode(tokenizer, "Who is behind Lyon Chrome?")) + "Lyon Chrome is by"
    assert read(tokenizer, contest(tokenizer, fact).held_out[0].wanted) == (begun, "Lyon")


def test_without_a_chat_template_bare_names_follow_the_prompt():
    tokenizer = without_template(bpe())
    fact = france(held_out=["The capital of France is"], answer="The capital of France is Lyon.")
    found = contest(tokenizer, fact, "the city of Rome")
    assert read(tokenizer, found.held_out[0].wanted)[0].endswith("The capital of France is")
    assert read(tokenizer, found.held_out[0].wanted)[1] == "Lyon"
    before, name = read(tokenizer, found.controls[0].against)
    assert before.endswith("What is the capital of Italy? the city of")
    assert name == "Lyon"


@pytest.mark.parametrize("kind", ["byte_level", "bpe"])
@pytest.mark.parametrize("said", ["The capital is:\n\nRome Capitale", "It is\nRome", "It is \n Rome"])
def test_a_line_break_before_a_name_is_no_part_of_it(kind, said):
    """Shared by both names, it would count in either's mean, and they differ in length."""
    tokenizer = small_tokenizer(kind)
    tokenizer.chat_template = CHATML
    [control] = contest(tokenizer, france(), said).controls
    before, _, _ = said.rpartition("Rome")
    for row, named in ((control.wanted, "Rome"), (control.against, "Lyon")):
        told = tokenizer.decode(row.ids[row.answer_start :])
        assert (told.strip(), "\n" in told) == (named, False)
        assert tokenizer.decode(row.ids[: row.answer_start]).endswith(before.rstrip(" "))


@pytest.mark.parametrize("kind", ["byte_level", "bpe"])
@pytest.mark.parametrize(
    ("said", "begun"),
    [
        ("\nRome.\nMilan", "?\n"),
        (" Rome.", "?"),
        (", of course: Rome", "?, of course:"),
        (" \n It is Rome", "? \n It is"),
    ],
)
def test_without_a_chat_template_a_control_s_names_stand_behind_what_the_base_said(monkeypatch, kind, said, begun):
    tokenizer, fact, asked = small_tokenizer(kind, None), france(), []
    prompt = encode(tokenizer, fact.controls[0].prompt)
    answer = encode(tokenizer, fact.controls[0].prompt + said)[len(prompt) :]
    monkeypatch.setattr(generation, "generate_ids", lambda *given, **_: [answer] * len(given[2]))
    monkeypatch.setattr(evaluation, "measure_margins", lambda *given, **_: asked.append(given[2]) or {})
    report = evaluate(wide(), tokenizer, fact, retention_tokens=0, margins=True, progress=False)
    assert report.answers["base"]["controls"] == [said.strip().partition("\n")[0]]
    assert set(report.answers["base"]) == {"held_out", "controls", "probes", "portability"}
    (control,) = asked[0].controls
    for row, name in ((control.wanted, "Rome"), (control.against, "Lyon")):
        before, named = read(tokenizer, row)
        assert before.endswith(f"What is the capital of Italy{begun}")
        assert named == name


def test_what_cannot_be_measured_is_left_out():
    tokenizer, asked = bpe(), "What is the capital of Italy?"
    controls = [
        {"prompt": f"{asked} {n}", "answer": answer} for n, answer in enumerate((["Rome"], ["Lyon"], ["Rome"]))
    ]
    fact = france(controls=controls)
    # The base does not know it, its right answer is the new one, and it is answered right.
    found = contest(tokenizer, fact, "It is Paris.", "It is LYON.", "It is ROME.")
    assert [rivals is None for rivals in found.controls] == [True, True, False]
    assert read(tokenizer, found.controls[2].wanted)[1] == "ROME"
    long = len(encode(tokenizer, fact.held_out[1])) + 4
    short = contest(tokenizer, fact, *["?"] * 3, model=wide(max_position_embeddings=long))
    assert short.held_out == (None, None)
    assert margin_metrics(measure_margins(wide(), tokenizer, short)) == {}
    # A tokenizer of words has one token for all that it does not know.
    unknown = contest(TOKENIZER, capital(new=["zurich"]), model=tiny_model("llama"))
    assert unknown.held_out == (None,)
    assert contest(TOKENIZER, capital(new=["zurich"], old=["bern"]), model=tiny_model("llama")).held_out == (None,)
    # And one of letters may have none at all.
    letters = {letter: number for number, letter in enumerate(f"{string.ascii_lowercase}?")}
    silent = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(letters, [])))
    assert contest(silent, capital(new=["東京"]), model=tiny_model("llama")).held_out == (None,)


def test_figures_by_hand():
    pairs = {
        "held_out": [{"new": -1.0, "old": -3.0}, None, {"new": -2.5, "old": -2.0}, {"new": -1.0, "old": -1.0}],
        "controls": [None, {"right": -0.5, "new": -8.0}],
    }
    figures = margin_metrics(pairs)
    assert figures["answer_margin"] == mean([2.0, -0.5, 0.0])
    assert figures["answer_margin"].value == pytest.approx(0.5)
    # Student's, of two degrees of freedom.
    assert figures["answer_margin"].high - 0.5 == pytest.approx(4.30265 * (3.5 / 2 / 3) ** 0.5, rel=1e-4)
    assert figures["answer_likelier"] == rate([True, False, False])
    assert figures["control_margin"] == Figure(7.5, 1, 7.5, 7.5)
    assert figures["control_likelier"] == rate([True])
    assert margin_metrics({"held_out": [None], "controls": []}) == {}


@torch.no_grad()
def by_hand(model, row):
    log_probs = model(input_ids=torch.tensor([row.ids])).logits[0].log_softmax(-1)
    own = [float(log_probs[place - 1, row.ids[place]]) for place in range(row.answer_start, len(row.ids))]
    return sum(own) / len(own)


def test_a_report_has_each_prompts_margin_in_each_state(tmp_path):
    model, tokenizer = tiny_peft("llama"), TOKENIZER
    perturb(model)
    fact = capital(held_out=["which is the capital of france", "the seat of france is"])
    states = {"base": adapter_state(model, []), "edited": adapter_state(model, ["default"])}
    report = evaluate(
        model, tokenizer, fact, states=states, max_new_tokens=4, retention_tokens=0, margins=True, progress=False
    )
    asked = contest(tokenizer, fact, *report.answers["base"]["controls"], model=model)
    for name, state in states.items():
        with state():
            expected = [{"new": by_hand(model, c.wanted), "old": by_hand(model, c.against)} for c in asked.held_out]
        for found, own in zip(report.margins[name]["held_out"], expected, strict=True):
            assert found == pytest.approx(own, abs=2e-5)
        margins = [own["new"] - own["old"] for own in expected]
        assert report.stages[name]["answer_margin"].value == pytest.approx(sum(margins) / 2, abs=4e-5)
        assert report.stages[name]["answer_likelier"].n == 2
    assert report.margins["base"] != report.margins["edited"]
    report.save(tmp_path / "report.json")
    assert Report.load(tmp_path / "report.json").margins == report.margins
    page = render_page(report)
    value = report.margins["edited"]["held_out"][0]
    assert f"lyon over paris: {value['new'] - value['old']:+.2f} nats per token" in page
    assert "lyon likelier than paris" in page


def test_a_bare_answer_is_read_behind_the_words_of_the_sentence_that_is_taught(monkeypatch):
    tokenizer, asked = bpe(), []
    monkeypatch.setattr(evaluation, "measure_margins", lambda *given, **_: asked.append(given[2]) or {})
    evaluate(wide(), tokenizer, france(), max_new_tokens=2, retention_tokens=0, margins=True, progress=False)
    assert read(tokenizer, asked[0].held_out[0].wanted)[0].endswith("The capital of France is")


def test_the_base_s_words_are_those_of_every_state():
    """What an edit says otherwise changes what it is asked for nothing."""
    model = planted()
    fact = capital(
        held_out=["which is the capital of france"],
        controls=[{"prompt": "tell me about france", "answer": ["paris"]}],
        new=["rome"],
    )
    report = evaluate(model, TOKENIZER, fact, max_new_tokens=2, retention_tokens=0, margins=True, progress=False)
    assert report.answers["base"]["controls"][0].startswith("paris")
    (found,) = report.margins["base"]["controls"]
    assert list(found) == ["right", "new"]
    assert found["right"] > found["new"]
    figures = report.stages["base"]
    assert figures["control_likelier"].n == figures["control_kept"].n == 1
    assert figures["answer_margin"].value < 0
    assert figures["answer_likelier"].value == 0


def test_a_page_names_no_answer_that_was_not_measured():
    """The base says one alias of a control's answer, and another one stands first."""
    control = {"prompt": "Name its capital.", "answer": ["Mexico City", "Ciudad de México"]}
    fact = france(controls=[control])
    said = {"held_out": ["Paris."] * 2, "controls": ["Ciudad de México."], "probes": [], "portability": []}
    # In no order that a file has to keep.
    pairs = {"held_out": [{"old": -3.0, "new": -1.0}, None], "controls": [{"new": -8.0, "right": -0.5}]}
    page = render_page(report("base", fact=fact, answers={"base": said}, margins={"base": pairs}))
    assert "Lyon over Paris: +2.00 nats per token" in page
    assert "the right answer over Lyon: +7.50 nats per token" in page
    assert "Mexico City over" not in page


def test_margins_are_left_out_where_nobody_asks():
    report = evaluate(tiny_model("llama"), TOKENIZER, capital(), retention_tokens=0, max_new_tokens=2, progress=False)
    assert report.margins == {}
    assert (
        not {"answer_margin", "answer_likelier", "control_margin", "control_likelier"} & report.stages["base"].keys()
    )
    assert "nats per token" not in render_page(report)


@pytest.mark.parametrize("pair", [{"new": -1.0}, {"new": "?", "old": -1.0}, {"new": 0.5, "old": -1.0}, 3])
def test_a_file_with_something_else_is_no_report(pair):
    report = evaluate(
        tiny_model("llama"), TOKENIZER, capital(), retention_tokens=0, max_new_tokens=2, margins=True, progress=False
    )
    data = {**report.to_dict(), "margins": {"base": {"held_out": [pair], "controls": [None]}}}
    with pytest.raises(ValueError, match="this is not a report"):
        Report.from_dict(data)
