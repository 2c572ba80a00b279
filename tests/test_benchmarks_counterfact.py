import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import peft_surgical as ps
from benchmarks import counterfact, known_cases, measuring
from benchmarks.baselines import METHODS, fitting
from benchmarks.baselines.base import Base
from benchmarks.cases import Case, read_cases
from benchmarks.chat import main as chat
from benchmarks.counterfact import main
from benchmarks.facts import main as facts
from benchmarks.journal import read_records
from benchmarks.keys import main as keys
from benchmarks.one_sentence import main as one_sentence
from benchmarks.plain_text import greedily_follows, log_likelihoods
from benchmarks.selection import main as selection
from benchmarks.speed.__main__ import main as speed
from benchmarks.unseen import main as unseen
from peft_surgical.errors import FactError
from peft_surgical.sentence import sample_contexts
from peft_surgical.texts.prompts import without_template

from .adapters import logits
from .counterfacts import TOKENIZER, case_dicts, greedy_word, some_case, word_model, write_cases

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "counterfact_dev.jsonl"


@pytest.fixture
def files(tmp_path):
    """A checkpoint, a file of cases, and where results go."""
    model, folder = word_model(), tmp_path / "model"
    model.save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder, write_cases(tmp_path / "cases.jsonl", case_dicts(model)), tmp_path / "out" / "results.jsonl"


def invoke(files, *arguments, cases=3):
    folder, data, out = files
    given = ["--data", data, "--model", folder, "--out", out, "--cases", cases, "--contexts", 2, *arguments]
    return CliRunner().invoke(main, list(map(str, given)))


def last_line(result):
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout.strip().splitlines()[-1])


def edits(monkeypatch):
    """Counts what is edited from now on."""
    counted, real = [], measuring.edit_and_measure

    def counting(model, tokenizer, method, case, *rest):
        counted.append((method.name, case.case_id))
        return real(model, tokenizer, method, case, *rest)

    monkeypatch.setattr(counterfact, "edit_and_measure", counting)
    return counted


def test_a_run_from_the_command_line(files):
    found = last_line(invoke(files, "--method", "ft", "--method", "rome", "--learning-rate", "ft=0.02"))
    assert list(found) == ["base", "ft", "rome"]
    for figures in found.values():
        assert {"es", "ps", "ns", "score", "new_answer_rate", "old_answer_rate", "seconds_per_edit"} <= set(figures)
        assert all(set(figure) == {"value", "n", "low", "high"} for figure in figures.values())
        assert {figures[name]["n"] for name in ("es", "ps", "ns", "score")} == {3}
    # What the base is known to say is what it says; an edit to the prompt shows on the prompt.
    assert found["base"]["es"]["value"] == 0
    assert found["base"]["old_answer_rate"]["value"] == 1
    assert found["ft"]["es"]["value"] == 1
    assert found["ft"]["new_answer_rate"]["value"] == 1
    records = read_records(files[2])
    assert records[0]["kind"] == "header"
    assert records[0]["run"]["dtype"] == "float32"
    assert records[0]["run"]["seed"] == 0
    assert {"command", "versions", "machine"} <= set(records[0])
    assert len(next(r for r in records if r["kind"] == "contexts")["contexts"]) == 2
    cases = [r for r in records if r["kind"] == "case"]
    assert len(cases) == 9
    assert {r["settings"].get("learning_rate") for r in cases if r["method"] == "ft"} == {0.02}


def test_the_edited_cases_are_the_first_known_ones(files):
    last_line(invoke(files, "--method", "base", "--seed", "5"))
    shuffled, _ = read_cases(files[1], 5)
    model = word_model()
    known = [case.case_id for case in shuffled if greedy_word(model, case.prompt) == case.old]
    assert [r["case_id"] for r in read_records(files[2]) if r["kind"] == "case"] == known[:3]
    assert [c.case_id for c in shuffled] != [c.case_id for c in read_cases(files[1], 6)[0]]


def test_a_run_goes_on_where_it_was_interrupted(files, monkeypatch):
    whole = last_line(invoke(files, "--method", "ft_l"))
    out, lines = files[2], files[2].read_text().splitlines(keepends=True)
    # The last edit is cut short, as a crash leaves it.
    out.write_text("".join(lines[:-2]) + lines[-2][:40])
    counted, asked = edits(monkeypatch), []
    monkeypatch.setattr(known_cases, "greedily_follows", lambda *_: asked.append(1))
    again = last_line(invoke(files, "--method", "ft_l"))
    assert len(counted) == 2
    assert not asked, "the base was asked again what it knows"
    counted.clear()
    assert last_line(invoke(files, "--method", "ft_l")) == again
    assert counted == []

    def timeless(found):
        return {name: {k: v for k, v in f.items() if k != "seconds_per_edit"} for name, f in found.items()}

    assert timeless(again) == timeless(whole)
    kinds = [record["kind"] for record in read_records(out)]
    assert kinds.count("header") == 1
    assert kinds.count("resumed") == 2


def test_more_cases_and_methods_are_added_to_a_run(files, monkeypatch):
    last_line(invoke(files, "--method", "ft_l", cases=2))
    counted = edits(monkeypatch)
    found = last_line(invoke(files, "--method", "ft_l", "--method", "ia3_all", cases=3))
    assert {method: f["es"]["n"] for method, f in found.items()} == {"base": 3, "ft_l": 3, "ia3_all": 3}
    assert sorted(method for method, _ in counted) == ["base", "ft_l", "ia3_all", "ia3_all", "ia3_all"]


def test_known_cases_are_found_in_batches(files, monkeypatch):
    monkeypatch.setattr(known_cases, "BATCH", 4)
    last_line(invoke(files, "--method", "base", cases=2))
    first = [r for r in read_records(files[2]) if r["kind"] == "known"]
    last_line(invoke(files, "--method", "base", cases=5))
    more = [r for r in read_records(files[2]) if r["kind"] == "known"]
    assert more[: len(first)] == first
    assert len(more) > len(first)
    shuffled, _ = read_cases(files[1], 0)
    model = word_model()
    asked = shuffled[: sum(r["checked"] for r in more)]
    expected = [c.case_id for c in asked if greedy_word(model, c.prompt) == c.old]
    assert [number for record in more for number in record["known"]] == expected


def test_a_run_with_too_few_known_cases_says_so(files):
    result = invoke(files, "--method", "base", cases=1000)
    assert "cases only; asked for 1000" in result.stderr
    assert 0 < last_line(result)["base"]["es"]["n"] < 1000


def test_cases_of_another_run_are_left_out(files, tmp_path):
    last_line(invoke(files, "--method", "base"))
    tuned = {r["case_id"] for r in read_records(files[2]) if r["kind"] == "case"}
    other = (*files[:2], tmp_path / "other.jsonl")
    last_line(invoke(other, "--method", "base", "--exclude", files[2]))
    edited = {r["case_id"] for r in read_records(other[2]) if r["kind"] == "case"}
    assert len(edited) == 3
    assert not edited & tuned


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "grace"], "'grace' is not one of 'base'"),
        (["--learning-rate", "rome"], "'rome' is not of the form METHOD=LR"),
        (["--learning-rate", "grace=1"], "there is no method 'grace'"),
        (["--learning-rate", "base=1", "--method", "base"], "'base' has no learning rate"),
        (["--learning-rate", "rome=1", "--method", "ft"], "a learning rate is given for 'rome', which does not run"),
        (["--data", "absent.jsonl"], "cannot read absent.jsonl: No such file"),
    ],
)
def test_what_is_refused(files, arguments, message):
    result = invoke(files, *arguments)
    assert result.exit_code != 0
    assert message in " ".join(result.output.split())
    assert not files[2].exists()


def test_results_of_other_settings_are_not_mixed(files):
    last_line(invoke(files, "--method", "ft_l"))
    before = files[2].read_text()
    for arguments, message in (
        (["--seed", "1"], "holds a run with seed 0, and this run has 1"),
        (
            ["--method", "ft_l", "--learning-rate", "ft_l=1"],
            "holds ft_l with learning_rate 0.01, and this run has 1.0",
        ),
    ):
        result = invoke(files, *arguments)
        assert result.exit_code == 1
        assert message in result.output
    # Nor is it noted there that the refused run was tried.
    assert files[2].read_text() == before


def test_results_of_another_algorithm_or_of_other_weights_are_not_mixed(files, monkeypatch):
    last_line(invoke(files, "--method", "ft_l"))
    before = files[2].read_text()
    with monkeypatch.context() as patch:
        patch.setattr(fitting, "TARGET_LOSS", 0.5)
        result = invoke(files, "--method", "ft_l")
    assert result.exit_code == 1
    assert "holds ft_l with recipe.target_loss 0.01, and this run has 0.5; name another file" in result.output
    model = word_model()
    model.lm_head.weight.data[5] += 1
    model.save_pretrained(files[0])
    result = invoke(files, "--method", "ft_l")
    assert result.exit_code == 1
    assert "holds a run with weights_sha256" in result.output
    assert files[2].read_text() == before


def test_results_that_do_not_say_how_they_were_trained_are_read_and_not_gone_on_from(files, tmp_path):
    last_line(invoke(files, "--method", "ft_l"))
    records = read_records(files[2])
    for record in records:
        record.get("settings", {}).pop("recipe", None)
    files[2].write_text("".join(json.dumps(record) + "\n" for record in records))
    result = invoke(files, "--method", "ft_l")
    assert result.exit_code == 1
    assert "holds rows of ft_l that do not say what recipe.steps they were taken with" in result.output
    del records[0]["run"]["weights_sha256"]
    files[2].write_text("".join(json.dumps(record) + "\n" for record in records))
    result = invoke(files, "--method", "ft_l")
    assert result.exit_code == 1
    assert "holds a run without weights_sha256, and this run has weights_sha256" in result.output
    other = (*files[:2], tmp_path / "other.jsonl")
    found = last_line(invoke(other, "--method", "base", "--exclude", files[2]))
    assert found["base"]["es"]["n"] == 3


def test_a_tables_heads_have_the_number_of_cases_that_they_count():
    rates = {"es": ps.Figure(1.0, 20, 0.8, 1.0), "neighbour_kept": ps.Figure(0.75, 8, 0.4, 0.9)}
    head, _, line = counterfact.table({"rome": rates}).splitlines()
    assert "| es (n=20) |" in head
    assert "| neighbour_kept (n=8) |" in head
    assert line.startswith("| rome | 100.0 [80.0, 100.0] | – |")


def test_a_method_that_leaves_something_behind_is_found_out(files, monkeypatch):
    class Sloppy(Base):
        name = "sloppy"

        def edit(self, model, tokenizer, request, seed):
            model.lm_head.weight.data[5] += 1
            return super().edit(model, tokenizer, request, seed)

    monkeypatch.setitem(METHODS, "base", Sloppy)
    result = invoke(files, "--method", "base")
    assert result.exit_code == 1
    assert "the method 'sloppy' left the model changed after the case" in result.output


def test_an_edit_sees_only_what_it_may():
    case = some_case()
    request = case.request(("Yes. ",))
    shown = repr((request, request.prompts))
    assert "governed" not in shown
    assert "Italy" not in shown
    assert "Rome" not in shown
    assert len(request.evaluated) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"case_id": "7"}, "'case_id' must be a whole number, not '7'"),
        ({"rephrase_prompt": None}, "'rephrase_prompt' must be text, not None"),
        ({"target_new": " "}, "'target_new' must be text, not ' '"),
        ({"subject": "Italy"}, "does not name the subject 'Italy'"),
        ({"target_new": "Rome", "ground_truth": " Rome"}, "'target_new' and 'ground_truth' are both ' Rome'"),
    ],
)
def test_cases_are_checked(changes, message, tmp_path):
    with pytest.raises(FactError, match=message):
        some_case(**changes)


def test_lines_of_a_file_are_checked(tmp_path):
    model = word_model()
    dicts = case_dicts(model)[:2]
    for extra, message in (
        ("{", "line 4: "),
        ("[1]", r"line 4: a line must be a JSON object, not \[1\]"),
        (json.dumps(dicts[0]), "line 4: the case 100 stands there twice"),
    ):
        path = write_cases(tmp_path / "cases.jsonl", dicts)
        path.write_text(path.read_text() + "\n" + extra)
        with pytest.raises(FactError, match=message):
            read_cases(path, 0)
    other = json.dumps(dicts[0] | {"target_new": "Zürich"}, ensure_ascii=False)
    for content, message in (
        (b"\n", "holds no case"),
        (json.dumps(dicts).encode(), "is a JSON array; write one object a line"),
        (other.encode("latin-1"), "it is not UTF-8"),
    ):
        path.write_bytes(content)
        with pytest.raises(FactError, match=message):
            read_cases(path, 0)
    path.write_text(json.dumps(dicts[0]), encoding="utf-8-sig")
    assert len(read_cases(path, 0)[0]) == 1


def test_a_run_is_not_gone_on_from_with_another_configuration(files):
    last_line(invoke(files, "--method", "base"))
    config = json.loads((files[0] / "config.json").read_text())
    (files[0] / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 3.0}))
    result = invoke(files, "--method", "base")
    assert result.exit_code == 1
    assert "holds a run with configuration_sha256" in result.output


def test_log_likelihoods_are_those_of_a_plain_forward():
    model = word_model()
    pairs = [("the capital of france is", "new zealand"), ("who wrote", "hamlet"), ("where is", "the city of rome")]
    for (prompt, target), found in zip(pairs, log_likelihoods(model, TOKENIZER, pairs), strict=True):
        start, ids = len(TOKENIZER(prompt)["input_ids"]), TOKENIZER(f"{prompt} {target}")["input_ids"]
        scores = logits(model, torch.tensor([ids]))[0, start - 1 : -1].log_softmax(-1)
        assert found == pytest.approx(float(scores.gather(1, torch.tensor(ids[start:])[:, None]).mean()), abs=1e-5)


def test_a_prompt_is_read_once_for_all_targets_of_one_token():
    model, read = word_model(), []
    model.get_input_embeddings().register_forward_pre_hook(lambda _, args: read.append(tuple(args[0].shape)))
    pairs = [("who wrote", "hamlet"), ("where is", "rome"), ("who wrote", "lyon"), ("who wrote", "new zealand")]
    found = log_likelihoods(model, TOKENIZER, pairs)
    # "who wrote" for two of them, "where is", and "who wrote new", padded to the longest.
    assert [rows for rows, _ in read] == [3]
    assert found == [pytest.approx(log_likelihoods(model, TOKENIZER, [pair])[0], abs=1e-5) for pair in pairs]


def test_a_broken_model_has_no_success():
    model = word_model()
    model.lm_head.weight.fill_(float("nan"))
    assert log_likelihoods(model, TOKENIZER, [("who wrote", "hamlet")]) == [-1e9]


def test_all_tokens_of_an_answer_must_follow():
    model = word_model()
    prompt = "the capital of france is"
    first = greedy_word(model, prompt)
    second = greedy_word(model, f"{prompt} {first}")
    wrong = "lyon" if second != "lyon" else "rome"
    asked = [(prompt, first), (prompt, f"{first} {second}"), (prompt, f"{first} {wrong}"), (prompt, wrong)]
    assert greedily_follows(model, TOKENIZER, asked) == [True, True, False, False]


def test_the_development_cases_can_be_read():
    if not DATA.is_file():
        pytest.skip(f"the benchmark's data file {DATA.name} is not here")
    cases, _ = read_cases(DATA, 0)
    assert len(cases) == 3000
    assert all(isinstance(case, Case) for case in cases)


@pytest.mark.real
@pytest.mark.slow
def test_rome_rewrites_a_real_case(demo):
    model, tokenizer = demo
    flags = [p.requires_grad for p in model.parameters()]
    model.requires_grad_(False)
    try:
        plain = without_template(tokenizer)
        case = some_case()
        assert greedily_follows(model, plain, [(case.prompt, case.old)]) == [True]
        contexts = sample_contexts(model, plain, 4, 0)
        found = measuring.edit_and_measure(model, plain, METHODS["rome"](), case, contexts, 0)
    finally:
        for parameter, flag in zip(model.parameters(), flags, strict=True):
            parameter.requires_grad_(flag)
    assert found["prompt"]["new"] > found["prompt"]["old"]
    assert found["prompt"]["said"].startswith("Lyon")
    assert found["neighbour"]["old"] > found["neighbour"]["new"]


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_that_no_resampling_begins_with_is_refused_before_any_edit(seed):
    for benchmark in (main, chat, facts, keys, one_sentence, selection, speed, unseen):
        result = CliRunner().invoke(benchmark, ["--seed", str(seed)])
        assert result.exit_code == 2
        assert f"{seed} is not in the range" in result.output
