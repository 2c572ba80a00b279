import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from benchmarks import journal as module
from benchmarks.journal import Journal, commit, configuration_digest, read_records, surroundings, weights_digest
from peft_surgical.errors import OutputError

from .localizing import planted, word_tokenizer

RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results"
RUN, ABOUT = {"seed": 0, "data": {"left_out": []}}, {"command": "python"}


def test_records_are_there_at_once(tmp_path):
    path = tmp_path / "new" / "results.jsonl"
    journal = Journal(path, RUN, ABOUT)
    journal.append({"kind": "case", "said": "São Paulo\n"})
    assert read_records(path) == journal.records
    assert [json.loads(line)["kind"] for line in path.read_text().splitlines()] == ["header", "case"]
    assert journal.of_kind("case") == [{"kind": "case", "said": "São Paulo\n"}]
    with pytest.raises(ValueError, match="Out of range float"):
        journal.append({"kind": "case", "value": float("nan")})


def test_a_journal_goes_on(tmp_path):
    path = tmp_path / "results.jsonl"
    Journal(path, RUN, ABOUT).append({"kind": "case", "number": 1})
    whole = path.read_text()
    # Longer than what is written in its place; and a value that is new and not given is as good as none.
    path.write_text(whole + '{"kind": "case", "num' + "0" * 1000)
    journal = Journal(path, {**RUN, "known_facts": None}, {"command": "again"})
    journal.append({"kind": "case", "number": 2})
    assert path.read_text().startswith(whole)
    assert path.read_text().endswith('"number": 2}\n')
    assert [r["kind"] for r in read_records(path)] == ["header", "case", "resumed", "case"]
    assert [r["number"] for r in journal.of_kind("case")] == [1, 2]
    assert journal.of_kind("resumed") == [{"kind": "resumed", "command": "again"}]


def test_a_line_that_was_cut_inside_of_a_character_is_dropped(tmp_path):
    path = tmp_path / "results.jsonl"
    Journal(path, RUN, ABOUT)
    whole = path.read_bytes()
    path.write_bytes(whole + '{"kind": "case", "said": "São'.encode()[:-2])
    assert [r["kind"] for r in read_records(path)] == ["header"]
    Journal(path, RUN, ABOUT).append({"kind": "case", "said": "São"})
    assert path.read_bytes().startswith(whole)
    assert [r["kind"] for r in read_records(path)] == ["header", "resumed", "case"]


def test_a_header_that_was_cut_short_is_begun_again(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text('{"kind": "header", "ru')
    assert [r["kind"] for r in Journal(path, RUN, ABOUT).records] == ["header"]
    assert [r["kind"] for r in read_records(path)] == ["header"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("my notes", "is not a benchmark's file"),
        ("my notes\n", "line 1: not JSON"),
        ('{"kind": "case"}\n', "line 1: this is not a benchmark's file"),
        ('{"kind": "header"}\n[]\n', "line 2: this is not a benchmark's file"),
    ],
)
def test_other_files_are_left_alone(tmp_path, content, message):
    path = tmp_path / "notes.txt"
    path.write_text(content)
    with pytest.raises(OutputError, match=message):
        Journal(path, RUN, ABOUT)
    assert path.read_text() == content


def test_another_run_is_refused(tmp_path):
    path = tmp_path / "results.jsonl"
    Journal(path, RUN, ABOUT)
    before = path.read_text()
    with pytest.raises(OutputError, match=r"holds a run with seed 0, and this run has 1; name another file"):
        Journal(path, {**RUN, "seed": 1}, ABOUT)
    assert path.read_text() == before
    with pytest.raises(OutputError, match=r"holds a run with seed 0, and this run has None; name another file"):
        Journal(path, {"data": RUN["data"]}, ABOUT)
    assert path.read_text() == before
    with pytest.raises(OutputError, match="cannot read"):
        Journal(tmp_path, RUN, ABOUT)


def test_one_run_writes_a_file_at_a_time(tmp_path):
    path = tmp_path / "results.jsonl"
    first = Journal(path, RUN, ABOUT)
    with pytest.raises(OutputError, match=r"another run is writing .*results\.jsonl; wait for its end"):
        Journal(path, RUN, ABOUT)
    first.append({"kind": "case"})
    assert read_records(path) == first.records
    del first
    assert [r["kind"] for r in Journal(path, RUN, ABOUT).records] == ["header", "case", "resumed"]


def test_what_is_not_to_be_gone_on_from_is_left_as_it_was(tmp_path):
    path = tmp_path / "results.jsonl"
    Journal(path, RUN, ABOUT).append({"kind": "case"})
    before = path.read_text() + '{"kind": "ca'
    path.write_text(before)

    def refuse(records):
        assert [record["kind"] for record in records] == ["header", "case"]
        raise OutputError("no")

    with pytest.raises(OutputError, match="no"):
        Journal(path, RUN, ABOUT, refuse)
    assert path.read_text() == before


def test_rows_of_other_commits_are_pointed_out(tmp_path, capsys):
    path = tmp_path / "results.jsonl"
    Journal(path, RUN, {"commit": "a"})
    Journal(path, RUN, {"commit": "b"}).append({"kind": "case"})
    assert capsys.readouterr().err == ""
    Journal(path, RUN, {"commit": "b"}).append({"kind": "case"})
    assert capsys.readouterr().err == ""
    Journal(path, RUN, {"commit": "c"}).append({"kind": "case"})
    assert capsys.readouterr().err == f"{path} holds rows of commit b, and this run is of commit c.\n"
    Journal(path, RUN, {"commit": None})
    told = f"{path} holds rows of commit b and commit c, and this run is of no known commit.\n"
    assert capsys.readouterr().err == told


def test_rows_of_other_machines_and_versions_are_pointed_out(tmp_path, capsys):
    path = tmp_path / "results.jsonl"
    first = {"commit": "a", "versions": {"torch": "2.8"}, "machine": {"processor": "Xeon", "threads": 2}}
    Journal(path, RUN, first).append({"kind": "case"})
    Journal(path, RUN, first)
    assert capsys.readouterr().err == ""
    Journal(path, RUN, {**first, "machine": {"processor": "Xeon", "threads": 1}})
    told = capsys.readouterr().err
    assert told == (
        f'{path} holds rows of the machine {{"processor": "Xeon", "threads": 2}}, and this run is of'
        ' {"processor": "Xeon", "threads": 1}.\n'
    )
    Journal(path, RUN, {**first, "versions": {"torch": "2.9"}})
    assert "holds rows of the versions" in capsys.readouterr().err


def test_published_results_can_be_read():
    # Speeds are lines without a header.
    paths = sorted(path for path in RESULTS.glob("*.jsonl") if path.name != "speed.jsonl")
    assert paths
    assert all(len(read_records(path)) > 1 for path in paths)


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not here")
def test_the_commit_is_told(tmp_path, monkeypatch):
    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        done = subprocess.run(
            ["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    monkeypatch.setattr(module, "__file__", str(tmp_path / "journal.py"))
    assert commit() is None
    (tmp_path / "a.py").write_text("1")
    git("init", "-q")
    git("add", "a.py")
    git("commit", "-q", "-m", "a")
    head = git("rev-parse", "HEAD")
    (tmp_path / "out.jsonl").write_text("")
    assert commit() == head
    (tmp_path / "a.py").write_text("2")
    assert commit() == f"{head}+changes"
    monkeypatch.setenv("PATH", "")
    assert commit() is None


def test_weights_are_told_apart():
    model = torch.nn.Linear(2, 2)
    before = weights_digest(model)
    assert weights_digest(model) == before
    model.bias.data[0] += 1
    assert weights_digest(model) != before
    assert weights_digest(model.bfloat16()) != before


def test_the_machine_is_told():
    found = surroundings(torch.device("cpu"))
    assert found["machine"]["device"] == "cpu"
    assert found["machine"]["threads"] == torch.get_num_threads()
    assert found["machine"]["processor"]
    assert "torch" in found["versions"]
    json.dumps(found)


def test_what_else_of_a_checkpoint_decides_answers_is_told_apart():
    model, tokenizer = planted(), word_tokenizer()
    before = configuration_digest(model, tokenizer)
    model.config._name_or_path = "elsewhere"
    assert configuration_digest(model, tokenizer) == before
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    assert configuration_digest(model, tokenizer) != before
    tokenizer.chat_template = None
    model.generation_config.eos_token_id = [3, 4]
    with_ends = configuration_digest(model, tokenizer)
    assert with_ends != before
    model.config.rms_norm_eps = 3.0
    assert configuration_digest(model, tokenizer) not in (before, with_ends)
