import json

import pytest
import torch

from benchmarks.journal import Journal, read_records, surroundings
from peft_surgical.errors import OutputError

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
    path.write_text(whole + '{"kind": "case", "num')
    journal = Journal(path, RUN, {"command": "again"})
    journal.append({"kind": "case", "number": 2})
    assert path.read_text().startswith(whole)
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


def test_the_machine_is_told():
    found = surroundings(torch.device("cpu"))
    assert found["machine"]["device"] == "cpu"
    assert found["machine"]["threads"] == torch.get_num_threads()
    assert found["machine"]["processor"]
    assert "torch" in found["versions"]
    json.dumps(found)
