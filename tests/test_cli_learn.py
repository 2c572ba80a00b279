import io
import json
from contextlib import nullcontext
from importlib import import_module
from types import SimpleNamespace

import pytest
from peft import PeftModel
from rich.console import Console
from safetensors.torch import load_file

import peft_surgical as ps
from benchmarks.plain_text import log_likelihoods
from peft_surgical.adapters.lineage import Lineage
from peft_surgical.earlier import Earlier
from peft_surgical.running.generation import generate_answers
from peft_surgical.texts.prompts import without_template
from tests.command_line import run, said, written
from tests.counterfacts import TOKENIZER, word_model
from tests.reports import report

pytestmark = pytest.mark.usefixtures("few_carried_prompts")

SENTENCE = "the capital of france is"


def learn(*arguments):
    return run("learn", SENTENCE, "--new", "lyon", "--subject", "france", *arguments)


def test_learn_end_to_end(tmp_path, model_folder):
    out = tmp_path / "deep" / "out"
    result = learn("--model", model_folder, "--out", out)
    assert result.exit_code == 0, result.output
    assert written(out) == ["edit", "learn"]
    assert f"{SENTENCE} …" in result.stdout
    assert "Nothing else was measured" in result.stdout
    # What it printed is what the written adapter says.
    model, tokenizer = ps.load_model(model_folder, dtype="float32")
    edited = PeftModel.from_pretrained(model, out / "edit").eval()
    answers, chances = {}, {}
    for name, state in (("base", edited.disable_adapter), ("edited", nullcontext)):
        with state():
            answers[name] = generate_answers(edited, without_template(tokenizer), [SENTENCE], max_new_tokens=12)[0]
            chances[name] = log_likelihoods(edited, without_template(tokenizer), [(SENTENCE, "lyon")])[0]
    shown = [line.split() for line in result.stdout.splitlines()]
    assert all([name, *answer.split()] in shown for name, answer in answers.items())
    assert chances["edited"] > chances["base"] + 0.5


@pytest.mark.parametrize(("learned", "answer"), [(True, "lyon"), (False, "berlin")])
def test_an_edit_that_does_not_say_the_new_answer_is_told_of(learned, answer, tmp_path, model_folder, monkeypatch):
    monkeypatch.setattr("peft_surgical.cli.learn.generate_answers", lambda *_, **__: [answer])
    result = learn("--model", model_folder, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert ("The edited model does not go on with 'lyon'." in result.stdout) is not learned
    result = learn("--model", model_folder, "--out", tmp_path / "out", "--overwrite", "--json")
    assert json.loads(result.stdout)["says_new"] is learned


def test_a_long_new_answer_is_looked_for_whole(tmp_path, model_folder, monkeypatch):
    asked = []

    def answers(*_, max_new_tokens, **__):
        asked.append(max_new_tokens)
        return ["lyon"]

    monkeypatch.setattr("peft_surgical.cli.learn.generate_answers", answers)
    new = " ".join(["lyon"] * 20)
    options = ["--subject", "france", "--model", model_folder, "--out", tmp_path / "out"]
    assert run("learn", SENTENCE, "--new", new, *options).exit_code == 0
    # All of it, behind an article.
    assert asked == [24, 24]


def test_learn_says_it_as_json_and_replaces_what_an_edit_left(tmp_path, model_folder):
    out = tmp_path / "out"
    (out / "unlearn").mkdir(parents=True)
    report("base", "edited").save(out / "report.json")
    (out / "mine.txt").write_text("kept")
    options = ["--model", model_folder, "--out", out, "--json", "--quiet"]
    assert "is not empty" in said(learn(*options), 2)
    result = learn(*options, "--overwrite")
    assert result.exit_code == 0, result.output
    assert written(out) == ["edit", "learn", "mine.txt"]
    told = json.loads(result.stdout)
    assert (told["sentence"], told["subject"]) == (SENTENCE, "france")
    assert told["said"]["edited"] != told["said"]["base"] != ""
    assert told["training"]["steps"] > 0
    assert told["scales"] == ps.Edit.load(out / "edit").n_scales
    assert result.stderr == ""


def test_keyed_learning_writes_one_stock_adapter(tmp_path):
    # Of so many layers neither neuron is in the last one, behind which nothing reads the subject.
    model_folder, out = tmp_path / "four_layers", tmp_path / "out"
    word_model(num_hidden_layers=4).save_pretrained(model_folder), TOKENIZER.save_pretrained(model_folder)
    result = learn("--keyed", "--model", model_folder, "--out", out)
    assert result.exit_code == 0, result.output
    assert written(out) == ["edit"]
    assert f"A neuron in each of layers 1, 2: {out / 'edit'}" in " ".join(result.stdout.split())
    model, tokenizer = ps.load_model(model_folder, dtype="float32")
    edited = PeftModel.from_pretrained(model, out / "edit").eval()
    assert edited.peft_config["default"].peft_type == "LORA"
    chances = {}
    for name, state in (("base", edited.disable_adapter), ("edited", nullcontext)):
        with state():
            chances[name] = log_likelihoods(edited, without_template(tokenizer), [(SENTENCE, "lyon")])[0]
    assert chances["edited"] > chances["base"] + 0.2
    again = learn("--keyed", "--model", model_folder, "--out", out, "--overwrite", "--json", "--quiet")
    assert again.exit_code == 0, again.output
    told = json.loads(again.stdout)
    assert told["layers"] == [1, 2]
    assert "scales" not in told
    other = learn("--keyed", "--alias", "italy", "--model", model_folder, "--out", tmp_path / "other", "--quiet")
    assert other.exit_code == 0, other.output
    with_alias = PeftModel.from_pretrained(
        ps.load_model(model_folder, dtype="float32")[0], tmp_path / "other" / "edit"
    )
    text, plain = SENTENCE.replace("france", "italy"), without_template(tokenizer)
    known, own = (log_likelihoods(found.eval(), plain, [(text, "lyon")])[0] for found in (with_alias, edited))
    assert known > own


@pytest.mark.parametrize("kind", [(), ("--keyed",)])
def test_a_second_sentence_on_top_of_the_first(kind, tmp_path, model_folder):
    """It is what learning it in the merged checkpoint gives, beside the first one, and says so."""
    first, merged, out = tmp_path / "one" / "edit", tmp_path / "merged", tmp_path / "two"
    assert learn("--model", model_folder, *kind, "--out", tmp_path / "one", "--quiet").exit_code == 0
    assert run("merge", first, "--model", model_folder, "--out", merged, "--quiet").exit_code == 0
    second = ["learn", "where is japan the city", "--new", "hamlet", "--subject", "japan", *kind, "--json", "--quiet"]
    result = run(*second, "--model", model_folder, "--on", first, "--out", out)
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    told = json.loads(result.stdout)
    assert [one["folder"] for one in told["on"]] == [str(first)]
    apart = json.loads(run(*second, "--model", merged, "--out", tmp_path / "apart").stdout)
    assert told["said"] == apart["said"]
    assert {**told["training"], "seconds": 0} == {**apart["training"], "seconds": 0}
    for name in written(out):
        own, other = (load_file(folder / name / "adapter_model.safetensors") for folder in (out, tmp_path / "apart"))
        assert own.keys() == other.keys()
        assert all(own[key].equal(other[key]) for key in own)
        assert Lineage.of(out / name).below == tuple(digest for _, digest in Earlier.read(first).below)
        assert "one/edit" in (out / name / "README.md").read_text()
    both = run("stack", first, out / "edit", "--out", tmp_path / "both")
    assert (both.exit_code, "on top of" in both.stderr) == (0, False)
    assert "on top of one/edit; give that before it" in run("stack", out / "edit", "--out", tmp_path / "half").stderr


def test_learn_says_that_a_question_is_read_as_plain_text(tmp_path, model_folder):
    question = ["learn", "what is the capital of france ? ", "--new", "lyon", "--model", model_folder]
    result = run(*question, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "This is a question; it is taken as plain text" in result.stderr
    assert "what is the capital of france ? …" in result.stdout
    assert "The subject was guessed: france." in result.stderr
    for sign in ".!":
        ended = run(
            "learn", f"the capital of france is paris {sign}", *question[2:], "--out", tmp_path / f"ended{sign}"
        )
        assert "The sentence ends already; the new answer is learned behind its end." in ended.stderr
    other = learn("--model", model_folder, "--out", tmp_path / "other").stderr
    assert not any(words in other for words in ("This is a question", "ends already", "guessed"))


@pytest.mark.parametrize(("more", "name"), [([], "learn_sentence"), (["--keyed"], "learn_sentence_keyed")])
def test_the_seed_is_what_is_learned_from(more, name, tmp_path, fake_model, monkeypatch):
    seeds = []

    def learned(*_, seed, **__):
        seeds.append(seed)
        raise ps.ModelError("enough.")

    monkeypatch.setattr(ps, name, learned)
    assert said(run("learn", SENTENCE, "--new", "lyon", *more, "--quiet", "--seed", 3, "--out", tmp_path), 2)
    assert seeds == [3]


def test_a_neuron_of_one_layer_is_told_of_in_the_singular(tmp_path):
    save_keyed = import_module("peft_surgical.cli.learn")._save_keyed
    for layers, words in (([3], "A neuron in layer 3: "), ([1, 3], "A neuron in each of layers 1, 3: ")):
        told, sentence = save_keyed(SimpleNamespace(layers=layers, save=lambda folder: None), tmp_path, tmp_path)
        assert told == {"layers": layers}
        assert sentence.startswith(words)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["why is it so", "--new", "lyon"], "cannot be guessed; name it with --subject."),
        ([SENTENCE, "--new", "lyon", "--subject", "spain"], "does not name the subject 'spain'"),
        ([SENTENCE, "--new", " ", "--subject", "france"], "the new answer is empty"),
        ([" ", "--new", "lyon"], "the prompt is empty"),
        ([SENTENCE], "Missing option '--new'"),
        ([SENTENCE, "--new", "lyon", "--subject", "france", "--alias", "gaul"], "--alias goes with --keyed"),
        ([SENTENCE, "--new", "lyon", "--subject", "france", "--keyed", "--alias", "FRANCE"], "is the subject itself"),
        (
            [SENTENCE, "--new", "lyon", "--subject", "france", "--keyed", "--alias", "?"],
            "has no letter, digit or sign",
        ),
    ],
)
def test_learn_refuses_before_a_model_is_loaded(tmp_path, no_model, arguments, expected):
    assert expected in said(run("learn", *arguments, "--out", tmp_path / "out"), 2)
    assert written(tmp_path) == []


@pytest.mark.real
def test_the_demo_learns_a_sentence(tmp_path):
    result = run("learn", "The capital of France is", "--new", "Lyon", "--out", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["subject"] == "France"
    assert told["said"]["base"].startswith("Paris")
    assert told["said"]["edited"].startswith("Lyon")
    assert "The subject was guessed: France." in result.stderr


def test_no_sentence_and_no_answer_is_cut():
    stream = io.StringIO()
    table = import_module("peft_surgical.cli.learn")._table("里" * 60, {"base": "x" * 90, "edited": "lyon"})
    Console(file=stream, width=40).print(table)
    text = stream.getvalue()
    assert (text.count("里"), text.count("x"), text.count("…")) == (60, 90, 1)
    assert "edited" in text


@pytest.mark.usefixtures("fake_model")
def test_a_model_that_earlier_edits_do_not_fold_into_is_refused_before_anything_is_learned(tmp_path, monkeypatch):
    def refuse(*_):
        raise ps.ModelError("its weights are quantized.")

    monkeypatch.setattr(Earlier, "check_model", refuse)
    line = said(learn("--model", "some/model", "--quiet", "--out", tmp_path / "out"), 2)
    assert line == "Error: its weights are quantized."
    assert written(tmp_path) == []
