"""Facts that are huge, empty, or written in scripts and signs that programs trip over.

| Input | What comes of it |
|---|---|
| a file of more than 10 MB, or with more than 500,000 values | refused at once |
| a file a little smaller, of 75,000 prompts; text without end | a fact, in seconds |
| 10,000 prompts | a correct result: read, planned, and answered as each would be alone |
| more than 100,000 prompts, 1,000 names, 1,000 characters in a name | refused |
| text that patterns search for ever | an answer in seconds |
| empty strings, white space, invisible characters in any place | refused |
| right-to-left text, emoji, combining and joining characters | a correct result, in every file and on the terminal |

A refusal is one sentence that quotes no more than it must, however long the text is.
"""

import json
import time
from contextlib import contextmanager
from itertools import islice, permutations

import pytest
import yaml

import peft_surgical as ps
from peft_surgical.errors import FactError
from peft_surgical.facts import Control, Fact, PortabilityQuestion, Probe, refusal_for
from peft_surgical.measuring.metrics import says_new, says_old
from peft_surgical.running.generation import generate_answers
from peft_surgical.texts.text import printable

from .command_line import run, said, written
from .localizing import WORDS, capital, planted, word_tokenizer
from .small_tokenizers import CHATML, small_tokenizer
from .tiny import tiny_model


def data(**changes):
    return {**capital().to_dict(), **changes}


@contextmanager
def within(seconds):
    # Of the processor's time, whatever else the machine does.
    started = time.process_time()
    yield
    assert time.process_time() - started < seconds


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"subject: " + b"x" * 10_000_000, "a fact file may have 10,000,000 bytes at most"),
        (b"old: [" + b"a," * 4_900_000 + b"]", "more than 500,000 values"),
        (b'{"a":' * 1_500_000, "nested more than 20 levels deep"),
        (b"? " * 4_900_000, "nested more than 20 levels deep"),
        (b"\0" * 9_000_000, "is not valid YAML"),
    ],
    ids=["large", "values", "JSON", "YAML", "zeros"],
)
def test_a_file_of_ten_megabytes(content, words, tmp_path):
    path = tmp_path / "fact.yaml"
    path.write_bytes(content)
    with within(10):
        line = said(run("edit", path, "--out", tmp_path / "out"), 2)
    assert words in line
    assert len(line) < 400
    assert written(tmp_path) == ["fact.yaml"]


@pytest.mark.parametrize("dump", [json.dumps, None], ids=["JSON", "YAML"])
def test_a_file_that_is_just_small_enough(dump, tmp_path):
    prompts = [f"question number {i} about france, which is {'very ' * 12}long" for i in range(75_000)]
    path = tmp_path / "fact.yaml"
    if dump is None:
        short = yaml.safe_dump({key: value for key, value in data().items() if key != "prompts"})
        path.write_text(short + "prompts:\n" + "".join(f"  - {prompt}\n" for prompt in prompts))
    else:
        path.write_text(dump(data(prompts=prompts)))
    assert 8_000_000 < path.stat().st_size <= 10_000_000
    with within(30):
        assert Fact.from_file(path).prompts == tuple(prompts)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"prompts": [f"france {i}" for i in range(100_001)]},
            "'prompts' holds 100,001 prompts; 100,000 are the most",
        ),
        ({"old": [f"paris {i}" for i in range(1_001)]}, "'old' holds 1,001 names; 1,000 are the most"),
        ({"contrast": [f"italy {i}" for i in range(1_001)]}, "'contrast' holds 1,001 names"),
        ({"subject": "france " * 200_000}, "in 'subject' has 1,399,999 characters; 1,000 are the most"),
        ({"new": ["lyon " * 200_000]}, "in 'new' has 999,999 characters"),
        ({"controls": [{"prompt": "?a", "answer": ["rome " * 2_000]}]}, "in 'controls' has 9,999 characters"),
        ({"answer": "x" * 1_000_000}, "holds no name from 'new' (lyon)"),
        ({"answer": "lyon paris " * 100_000}, "holds a name from 'old' (paris)"),
        ({"held_out": ["x " * 500_000, "x " * 500_000]}, "stands twice in 'held_out'"),
        ({"k" * 1_000_000: 1}, "unknown key 'kkk"),
        ({"subject": 10**5_000}, "'subject' is a number too long to be a text"),
    ],
)
def test_too_much(changes, words):
    with within(10), pytest.raises(FactError) as caught:
        Fact.from_dict(data(**changes), source="f")
    assert words in str(caught.value)
    assert len(str(caught.value)) < 500


def test_as_much_as_is_allowed():
    numbers = range(1_000)
    with within(30):
        fact = Fact.from_dict(
            data(
                old=[f"paris{i}" for i in numbers],
                new=["lyon", *(f"lyon{i}" for i in range(999))],
                contrast=[f"land{i}" for i in numbers],
                controls=[{"prompt": f"what of land{i} ?", "answer": ["x"]} for i in range(0, 10_000, 2)],
            )
        )
        assert fact.training.contrast == tuple(f"land{i}" for i in range(1, 1_000, 2))


@pytest.mark.parametrize(
    "prompt",
    [
        "who " + "? " * 100_000 + "!",
        "who is " + "?" * 1_000_000 + "x",
        "what is " * 100_000,
        "france " * 200_000,
        " " * 1_000_000 + "france" + " " * 1_000_000,
        "\u0301" * 1_000_000,
        "\ufdfa" * 100_000,
    ],
    ids=range(7),
)
def test_text_that_patterns_search_for_ever(prompt):
    with within(10):
        refusal_for(prompt, "france")
        fact = Fact.from_dict(data(prompts=[prompt]))
        says_old(prompt, fact), says_new(prompt, fact)


def test_a_longer_name_that_stands_everywhere():
    fact = Fact.from_dict(data(subject="lyon lake", answer="lyon lake " * 20_000 + "lyon"))
    with within(10):
        assert says_new(fact.answer, fact)
        assert not says_new("lyon lake " * 20_000, fact)


def test_ten_thousand_prompts(tmp_path):
    prompts = [" ".join(words) + " france ?" for words in islice(permutations(WORDS[:18], 4), 10_000)]
    path = tmp_path / "fact.yaml"
    path.write_text(yaml.safe_dump(data(prompts=prompts)))
    result = run("edit", path, "--out", tmp_path / "out", "--dry-run")
    assert result.exit_code == 0
    assert "on 10,000 prompts" in result.stdout.replace("10000", "10,000")
    fact = Fact.from_file(path)
    model, tokenizer = planted(), word_tokenizer()
    answers = generate_answers(model, tokenizer, fact.prompts, max_new_tokens=2, batch_size=500)
    assert len(answers) == 10_000
    for number in (0, 4_999, 9_999):
        assert generate_answers(model, tokenizer, [fact.prompts[number]], max_new_tokens=2) == [answers[number]]
    found = ps.localize(model, tokenizer, fact, ["lookup"], prompts=50, progress=False)
    assert [record["prompt"] for record in found.corruption] == prompts[:50]


NOTHING = ["", " ", "\t\n", "\u200b", "\ufeff", "\u2060 \u00ad"]
LISTS = ("old", "new", "prompts", "held_out", "contrast", "retain", "aliases")


@pytest.mark.parametrize("nothing", NOTHING)
@pytest.mark.parametrize("key", ["subject", *LISTS, "controls", "probes", "portability"])
def test_nothing_where_something_should_be(key, nothing):
    listed = {key: [nothing] for key in LISTS}
    control, probe = {"prompt": "where ?", "answer": [nothing]}, {"prompt": nothing, "kind": "doubt"}
    question = {"kind": "alias", "prompt": "where ?", "answer": ["x"], "before": [nothing]}
    written_so = {"controls": [control], "probes": [probe], "portability": [question]}
    made_so = {"controls": [Control("where ?", (nothing,))], "probes": [Probe(nothing, "doubt")]}
    made_so["portability"] = [PortabilityQuestion("where ?", "alias", (nothing,))]
    words = r"empty|has no letter|nothing to look for"
    with pytest.raises(FactError, match=words):
        Fact.from_dict(data(**{key: {"subject": nothing, **listed, **written_so}[key]}))
    with pytest.raises(FactError, match=words):
        Fact(**{**vars(capital()), key: {"subject": nothing, **listed, **made_so}[key]})


@pytest.mark.parametrize("option", ["--model", "--out", "--adapter", "--scorer", "--component", "FACT"])
def test_empty_arguments(option, tmp_path, fact_file, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = ["evaluate" if option == "--adapter" else "edit", "" if option == "FACT" else fact_file]
    given += [] if option == "--out" else ["--out", tmp_path / "out"]
    given += [] if option == "FACT" else [option, ""]
    said(run(*given), 2)
    assert written(tmp_path) == ["fact.yaml"]


FAMILY = "👩\u200d👩\u200d👧"
SCRIPTS = {
    "Arabic": ("فرنسا", "باريس", "ليون", "ما هي عاصمة فرنسا؟", "عاصمة فرنسا هي"),
    "Hebrew": ("צרפת", "פריז", "ליון", "מהי בירת צרפת?", "בירת צרפת היא"),
    "Persian": ("فرانسه", "پاریس", "می\u200cلیون", "پایتخت فرانسه کجاست؟", "پایتخت فرانسه"),
    "Hindi": ("फ़्रांस", "पेरिस", "ल्यों", "फ़्रांस की राजधानी क्या है?", "फ़्रांस की राजधानी"),
    "Japanese": ("フランス", "パリ", "リヨン", "フランスの首都はどこですか。", "フランスの首都は"),
    "emoji": (f"{FAMILY} family", "🗼", "🦁", f"Where is the {FAMILY} family?", f"The {FAMILY} family is at"),
    "combining": (
        "Cafe\u0301",
        "Zu\u0308rich",
        "A\u030angstro\u0308m",
        "Where is the Cafe\u0301?",
        "The Cafe\u0301 is in",
    ),
}


def in_script(script):
    subject, old, new, prompt, held_out = SCRIPTS[script]
    return Fact.from_dict(
        {"subject": subject, "old": [old], "new": [new], "prompts": [prompt], "held_out": [held_out]}
    )


@pytest.mark.parametrize("script", SCRIPTS)
def test_any_script(script, tmp_path):
    _, old, new, _, held_out = SCRIPTS[script]
    fact = in_script(script)
    assert says_old(f"{held_out} {old}.", fact)
    assert says_new(f"{held_out} {new}.", fact)
    assert not says_new(f"{held_out} {old}.", fact)
    for dump in (json.dumps, yaml.safe_dump, lambda value: yaml.safe_dump(value, allow_unicode=True)):
        (tmp_path / "fact.yaml").write_text(dump(fact.to_dict()), encoding="utf-8")
        assert Fact.from_file(tmp_path / "fact.yaml") == fact
    result = run("edit", tmp_path / "fact.yaml", "--out", tmp_path / "out", "--dry-run")
    assert f"from {fact.old[0]} to {fact.new[0]}" in result.stdout


@pytest.mark.parametrize("script", ["Arabic", "Persian", "emoji"])
def test_an_edit_in_any_script(script, tmp_path):
    fact = in_script(script)
    tokenizer = small_tokenizer("byte_level", CHATML)
    tiny_model("llama", vocab_size=len(tokenizer)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    path, out = tmp_path / "fact.yaml", tmp_path / f"out {fact.new[0]}"
    path.write_text(yaml.safe_dump(fact.to_dict(), allow_unicode=True), encoding="utf-8")
    options = ["--scorer", "random", "--top", 2, "--steps", 1, "--retention-tokens", 0]
    result = run("edit", path, "--model", tmp_path / "model", "--out", out, *options)
    assert result.exit_code == 0, result.output
    assert fact.new[0] in result.stdout
    report = ps.Report.load(out / "report.json")
    assert report.fact == fact
    # Of a bare answer to a prompt that can be read.
    taught = f"The {FAMILY} family is located in 🦁." if script == "emoji" else fact.answer
    assert [record["answer"] for record in report.training.values()] == [fact.refusal, taught]
    page = (out / "report.html").read_text(encoding="utf-8")
    assert fact.held_out[0] in page
    assert fact.new[0] in page


def test_what_may_be_printed():
    assert printable(f"a\tb\n{FAMILY} می\u200cلیون \u200fא\u200e") == f"a\tb\n{FAMILY} می\u200cلیون \u200fא\u200e"
    # Colours, titles, and what turns the direction of the rest of a line.
    assert printable("\x1b[31m\x07\u202e\u2066\x9b\0") == "\ufffd[31m" + "\ufffd" * 5


def test_a_fact_cannot_write_to_the_terminal(tmp_path):
    path = tmp_path / "fact.yaml"
    for changes in ({"subject": "fr\x1b[2Jance"}, {"old": "\x1b]0;title\x07"}):
        path.write_text(yaml.safe_dump(data(**changes)))
        result = run("edit", path, "--out", tmp_path / "out", "--dry-run")
        assert "\ufffd" in result.output or "\\x1b" in result.output
        assert "\x1b" not in result.output
