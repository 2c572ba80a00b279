import itertools
import json
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner

import peft_surgical as ps
from benchmarks import together
from benchmarks.baselines import METHODS, Batched, build, build_batched
from benchmarks.baselines.folded import Weights, keep
from benchmarks.baselines.restoring import weights_restored
from benchmarks.cases import read_cases
from benchmarks.journal import read_records
from benchmarks.known_facts import KnownFact
from benchmarks.measuring import likelihoods
from benchmarks.together import Run, Way, about_none, main

from .counterfacts import TOKENIZER, case_dicts, some_case, word_model, write_cases


@pytest.fixture
def files(tmp_path):
    """A checkpoint, a file of cases, and where results go."""
    model, folder = word_model(), tmp_path / "model"
    model.save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder, write_cases(tmp_path / "cases.jsonl", case_dicts(model)), tmp_path / "out" / "results.jsonl"


def invoke(files, *arguments, after=(1, 3)):
    folder, data, out = files
    given = ["--data", data, "--model", folder, "--out", out, "--contexts", 2, "--cases", 3, *arguments]
    return CliRunner().invoke(main, [*map(str, given), *(f"--after={count}" for count in after)])


def last_line(result):
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout.strip().splitlines()[-1])


NAMES = ("France", "Spain", "Japan")


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


class Adds:
    """Adds the number of requests to one weight."""

    name = "adds"

    def __init__(self):
        self.asked = []

    def recipe(self, model):
        return {}

    def edit(self, model, tokenizer, request, seed):
        return self._added(model, [request])

    @contextmanager
    def _added(self, model, requests):
        self.asked.append([request.prompt for request in requests])
        with weights_restored([weight := model.get_output_embeddings().weight]):
            with torch.no_grad():
                weight.add_(len(requests))
            yield


class AddsTogether(Adds):
    """The same for a batch."""

    name = "adds_together"

    def edit_batch(self, model, tokenizer, requests, seed):
        return self._added(model, requests)


def a_run(counts=(1, 3), others=()):
    model = word_model()
    asked = [f"The capital of {name} is" for name in NAMES]
    cases = [some_case(case_id=n, subject=NAMES[n], prompt=prompt) for n, prompt in enumerate(asked)]
    return Run(model, TOKENIZER, cases, (), others, counts, 0)


@pytest.mark.parametrize("name", ["rome", "ft_l", "lora", "ia3_all", "staged", "surgical", "surgical_keyed"])
def test_an_edit_that_stays_says_what_it_said_while_it_acted(name, files):
    """Of weights it is the same to the bit; adapters are folded in by one rounding."""
    model = word_model().requires_grad_(False)
    [case, *_], _ = read_cases(files[1], 0)
    before = weights(model)
    method = build(name)
    with method.edit(model, TOKENIZER, case.request(()), 0):
        acting = likelihoods(model, TOKENIZER, case)
    assert_same(weights(model), before)
    keep(model, method.edit(model, TOKENIZER, case.request(()), 0))
    assert weights(model).keys() == before.keys()
    changed = {key for key, value in weights(model).items() if not torch.equal(value, before[key])}
    assert changed
    found = likelihoods(model, TOKENIZER, case)
    for part, pair in found.items():
        for answer, value in pair.items():
            if name in ("rome", "ft_l"):
                assert value == acting[part][answer]
            assert value == pytest.approx(acting[part][answer], abs=1e-4)


def test_an_edit_that_is_refused_leaves_the_weights(files):
    model = word_model()
    before = weights(model)

    class Refuses(Adds):
        def edit(self, *args):
            raise ps.SelectionError("no.")

    with pytest.raises(ps.SelectionError):
        keep(model, Refuses().edit())
    assert_same(weights(model), before)


def test_weights_come_back_and_act_for_a_while():
    model = word_model()
    before = weights(model)
    base = Weights(model.parameters())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    now = weights(model)
    with base.acting():
        assert_same(weights(model), before)
    assert_same(weights(model), now)
    base.put_back()
    assert_same(weights(model), before)


@pytest.mark.parametrize("way", [Way(Adds()), Way(AddsTogether(), True)])
def test_each_is_edited_once_upon_the_others(way, monkeypatch):
    # A clock that ticks when it is read: each writing takes a second, and what else is done none.
    monkeypatch.setattr(together, "time", SimpleNamespace(perf_counter=itertools.count().__next__))
    method = way.method
    plan = a_run()
    before, weight = weights(plan.model), plan.model.get_output_embeddings().weight
    first, seen = weight.clone(), []
    for count, seconds, refused, found in plan.edited(way):
        assert torch.allclose(weight - first, torch.full_like(weight, count), atol=1e-5)
        assert (refused, set(found["cases"])) == ([], {str(number) for number in range(count)})
        assert seconds == (1 if way.at_once else count)
        seen.append(count)
    assert seen == [1, 3]
    # One after another each once; a batch begins anew from the base.
    assert [len(asked) for asked in method.asked] == ([1, 3] if way.at_once else [1, 1, 1])
    assert_same(weights(plan.model), before)


def test_what_is_kept_is_compared_with_the_base():
    plan = a_run(counts=(3,))
    [(_, _, _, nothing)] = plan.edited(Way(build("base")))
    assert nothing["text"]["kl_per_token"]["value"] == 0
    assert nothing["text"]["perplexity_ratio"]["value"] == 1
    [(_, _, _, found)] = plan.edited(Way(build("ft_l")))
    assert found["text"]["kl_per_token"]["value"] > 1e-6


def test_an_edit_that_is_refused_is_told_and_counted():
    second = "The capital of Spain is"

    class RefusesTheSecond(Adds):
        def edit(self, model, tokenizer, request, seed):
            if request.prompt == second:
                raise ps.SelectionError("not told apart.")
            return self._added(model, [request])

    plan = a_run()
    weight = plan.model.get_output_embeddings().weight
    first = weight.clone()
    for count, _, refused, found in plan.edited(Way(RefusesTheSecond())):
        assert refused == ([] if count == 1 else [1])
        assert len(found["cases"]) == count
    assert torch.equal(weight, first)


def test_facts_about_no_case():
    cases = [some_case(subject="France", prompt="The capital of France is")]
    facts = [
        KnownFact("Italy", "The capital of Italy is", "Rome", "P36"),
        KnownFact("France", "The language of France is", "French", "P37"),
        KnownFact("Paris", "Paris is in France and on the", "Seine", "P1"),
        KnownFact("capital", "A capital is a", "city", "P2"),
    ]
    assert [fact.subject for fact in about_none(facts, cases)] == ["Italy"]


def test_a_run_from_the_command_line(files, monkeypatch):
    found = last_line(invoke(files, "--method", "ft_l"))
    assert list(found) == ["base", "ft_l"]
    assert all(list(counts) == ["1", "3"] for counts in found.values())
    assert {metric: found["ft_l"]["3"][metric]["n"] for metric in ("es", "ps", "ns")} == {"es": 3, "ps": 3, "ns": 3}
    assert found["base"]["3"]["es"]["value"] == 0
    assert found["base"]["3"]["kl_per_token"]["value"] == 0
    assert found["ft_l"]["3"]["kl_per_token"]["value"] > 0
    records = read_records(files[2])
    assert [r["count"] for r in records if r["kind"] == "together" and r["method"] == "ft_l"] == [1, 3]
    # What is there is not edited again; another method is added to it.
    monkeypatch.setattr(METHODS["ft_l"], "edit", None)
    again = last_line(invoke(files, "--method", "ft_l", "--method", "rome"))
    assert again["ft_l"] == found["ft_l"]
    assert list(again) == ["base", "ft_l", "rome"]


def test_runs_that_do_not_go_together_are_refused(files):
    last_line(invoke(files, "--method", "ft_l"))
    for arguments, after, told in (
        (("--method", "ft_l", "--learning-rate", "ft_l=0.5"), (1, 3), "learning_rate"),
        (("--method", "ft_l", "--cases", "2"), (1, 2), "holds a run with cases 3, and this run has 2"),
        (("--method", "ft_l"), (4,), "there are 3 cases to edit, so none is measured after 4"),
        (("--method", "ft_l", "--learning-rate", "rome=0.5"), (1, 3), "'rome', which does not run"),
    ):
        result = invoke(files, *arguments, after=after)
        assert result.exit_code == 1
        assert told in result.stderr
    result = invoke((*files[:2], files[2].with_name("other")), "--method", "rome", "--cases", 99)
    assert "cases only; asked for 99" in result.stderr


def test_methods_for_many_get_all_at_once_or_know_of_those_before(files):
    """MEMIT knows of earlier edits what the weights say; AlphaEdit keeps their keys."""
    found = last_line(invoke(files, "--method", "alphaedit", "--at-once", "alphaedit", "--at-once", "ultraedit"))
    assert list(found) == ["base", "alphaedit", "alphaedit, at once", "ultraedit, at once"]
    # It is not made for one request, which has one token to answer with.
    one, three = (r for r in read_records(files[2]) if r.get("method") == "ultraedit")
    assert ([len(r["refused"]) for r in (one, three)], one["text"]["kl_per_token"]["value"]) == ([1, 0], 0)
    assert three["text"]["kl_per_token"]["value"] > 0
    records = [r for r in read_records(files[2]) if r["kind"] == "together" and r["method"] == "alphaedit"]
    one, all_one, at_once, all_at_once = (r["cases"] for r in records)
    assert one == at_once
    assert all_one != all_at_once
    model = word_model()
    [*cases], _ = read_cases(files[1], 0)
    asked = [case.request(()) for case in cases[:3]]
    edited: Batched = build_batched("alphaedit")
    with edited.sequence(model, TOKENIZER, 0) as write:
        for request in asked:
            write([request])
        wanted = weights(model)
    with Way(edited).writing(model, TOKENIZER, 0) as written:
        for request in asked:
            written([request])
        assert_same(weights(model), wanted)


def test_the_table_has_a_row_for_each_count(files):
    rows = [line for line in invoke(files, "--method", "ft_l").stdout.splitlines() if line.startswith("| ft_l ")]
    assert [row.split(" | ")[1] for row in rows] == ["1", "3"]
