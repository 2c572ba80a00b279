import json
import shutil
from contextlib import nullcontext
from dataclasses import replace

import pytest

from peft_surgical import many
from peft_surgical.choice import EDIT_PROJECTIONS
from peft_surgical.errors import FactError, FactWarning, OutputError
from peft_surgical.joint.resuming import Settings, check_folder, planned
from peft_surgical.keyed_edit import edit_keyed
from peft_surgical.many import edit_all
from peft_surgical.merging import merge
from peft_surgical.report import Report

from . import several, test_keyed
from .conftest import fingerprint
from .counterfacts import TOKENIZER
from .localizing import word_tokenizer
from .outputs import contents, leftovers
from .several import FRANCE, ITALY, JAPAN, equal, made
from .small_tokenizers import CHATML
from .test_earlier import base

pytestmark = pytest.mark.usefixtures("few_carried_prompts_throughout")
edits = several.edits


def test_it_goes_on_where_it_was_interrupted(model_folder, tmp_path, edits, monkeypatch):
    found, stop = edits
    out, model = tmp_path / "out", base(model_folder)
    stop.add("italy")
    with pytest.raises(KeyboardInterrupt):
        made(model, [FRANCE, ITALY], out)
    assert {path.name for path in out.iterdir()} == {"france"}
    assert leftovers(out) == []
    assert fingerprint(model) == fingerprint(base(model_folder))
    kept = contents(out)
    stop.clear()

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(many, "measure_retention", interrupt)
        with pytest.raises(KeyboardInterrupt):
            made(model, [FRANCE, ITALY], out)
    assert {path.name for path in out.iterdir()} == {"france", "italy"}
    assert fingerprint(model) == fingerprint(base(model_folder))
    lines = []
    together = made(model, [FRANCE, ITALY], out, tell=lines.append)
    assert found == ["france", "italy"]
    assert all("is there already." in line for line in lines)
    assert {name: content for name, content in contents(out).items() if name in kept} == kept
    # As if it had not been interrupted.
    whole = made(base(model_folder), [FRANCE, ITALY], tmp_path / "whole")
    assert (together.pooled, together.unrelated) == (whole.pooled, whole.unrelated)
    for name in ("france/edit", "italy/edit", "edit"):
        assert equal(out / name, tmp_path / "whole" / name)
    # A fact is added at its end.
    more = made(model, [FRANCE, ITALY, JAPAN], out)
    assert found == ["france", "italy", "france", "italy", "japan"]
    assert [one.name for one in more.facts] == ["france", "italy", "japan"]
    assert (out / "together.json").read_text() != (tmp_path / "whole" / "together.json").read_text()


def test_another_edit_is_refused_and_replaced_when_asked(model_folder, tmp_path, edits):
    found, _ = edits
    out, model = tmp_path / "out", base(model_folder)
    made(model, [FRANCE, ITALY], out)
    (out / "italy" / "own.txt").write_text("mine")
    before = contents(out)
    for facts, options, words in (
        ([FRANCE, ITALY], {"seed": 1}, r"france holds an edit with another seed \(0\), so .* allow overwriting it"),
        ([FRANCE, ITALY], {"recipe": replace(test_keyed.RECIPE, steps=4)}, "another recipe"),
        ([FRANCE, ITALY], {"retention_tokens": 0}, "another amount of unrelated text"),
        ([FRANCE, ITALY], {"kind": False}, r"another kind of edit \(keyed\)"),
        ([FRANCE, replace(ITALY, controls=())], {}, "italy holds an edit with another content of the fact"),
        ([ITALY, FRANCE], {}, "italy holds an edit with other edits before it"),
        ([FRANCE], {}, "out holds italy, which is none of these edits"),
    ):
        with pytest.raises(OutputError, match=words):
            made(model, facts, out, **options)
    another = base(model_folder)
    another.config._name_or_path = "another"
    with pytest.raises(OutputError, match="another base model"):
        made(another, [FRANCE, ITALY], out)
    with pytest.raises(OutputError, match=r"another dtype \(float32\)"):
        made(base(model_folder).bfloat16(), [FRANCE, ITALY], out)
    assert contents(out) == before
    assert found == ["france", "italy"]
    shorter = replace(ITALY, controls=())
    made(model, [FRANCE, shorter], out, overwrite=True)
    assert found == ["france", "italy", "italy"]
    assert Report.load(out / "italy" / "report.json").fact == shorter
    assert (out / "italy" / "own.txt").read_text() == "mine"
    assert leftovers(out) == []
    # What was made on top of a replaced one is, too, unless that comes out the same: nothing trains on controls.
    unasked, other = replace(FRANCE, controls=()), replace(FRANCE, prompts=FRANCE.prompts[:1])
    made(model, [unasked, shorter], out, overwrite=True)
    assert found == ["france", "italy", "italy", "france"]
    made(model, [other, shorter], out, overwrite=True)
    assert found == ["france", "italy", "italy", "france", "france", "italy"]
    kept = contents(out)
    with pytest.raises(OutputError, match="italy holds an edit with other edits before it"):
        made(model, [other, JAPAN, shorter], out)
    # Before anything is made, so that the same facts go on as before.
    assert contents(out) == kept
    made(model, [other, shorter], out)
    assert found == ["france", "italy", "italy", "france", "france", "italy"]


def test_a_fact_that_can_be_edited_after_all_is_put_below_no_later_one(model_folder, tmp_path, edits):
    found, stop = edits
    out, model = tmp_path / "out", base(model_folder)
    with pytest.warns(FactWarning, match="names the subject"):
        nowhere = replace(JAPAN, subject="atlantis", source="japan.yaml")
    town = replace(FRANCE, subject="the town", prompts=("what is the capital of the town ?",), source="town.yaml")
    stop.add("the town")
    # Of an interrupted run it is not known what could not be edited.
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            made(model, [FRANCE, nowhere, ITALY, town], out)
        assert {path.name for path in out.iterdir()} == {"france", "italy"}
    for whole in (False, True):
        if whole:
            assert [*made(model, [FRANCE, nowhere, ITALY], out).failed] == ["japan"]
        kept = contents(out)
        with pytest.raises(OutputError, match="italy holds an edit that was made without japan, which is not written"):
            made(model, [FRANCE, JAPAN, ITALY], out)
        assert contents(out) == kept
        assert leftovers(out) == []
        assert fingerprint(model) == fingerprint(base(model_folder))
    more = made(model, [FRANCE, ITALY, JAPAN], out)
    assert [one.name for one in more.facts] == ["france", "italy", "japan"]
    assert found.count("france") == found.count("italy") == 1


def test_what_one_that_cannot_be_edited_any_more_left_is_removed_with_what_is_replaced(model_folder, tmp_path):
    out, model = tmp_path / "out", base(model_folder)
    italy, japan = (replace(fact, source=f"{fact.subject}.yaml") for fact in (ITALY, JAPAN))
    made(model, [FRANCE, italy, japan], out, retention_tokens=0)
    (out / "japan" / "own.txt").write_text("mine")
    with pytest.warns(FactWarning, match="names the subject"):
        nowhere = [replace(fact, subject="atlantis") for fact in (italy, replace(japan, prompts=japan.prompts[:1]))]
    kept = contents(out)
    with pytest.raises(OutputError, match="italy holds an edit with another content"):
        made(model, [FRANCE, *nowhere], out, retention_tokens=0)
    with pytest.raises(FactError, match="no fact could be edited"):
        made(model, nowhere, out, retention_tokens=0, overwrite=True)
    assert contents(out) == kept
    together = made(model, [FRANCE, *nowhere], out, retention_tokens=0, overwrite=True)
    assert [*together.failed] == ["italy", "japan"]
    assert {path.name for path in out.iterdir()} == {"france", "japan", "edit", "together.json"}
    assert [path.name for path in (out / "japan").iterdir()] == ["own.txt"]


def test_what_was_asked_in_another_way_is_another_edit(model_folder, tmp_path):
    out, model = tmp_path / "out", base(model_folder)
    made(model, [FRANCE], out, retention_tokens=0)
    told = json.loads((out / "together.json").read_text())["settings"]
    own = Report.load(out / "france" / "report.json").settings
    assert told.items() >= {key: own[key] for key in ("chat_template", "max_new_tokens", "hub_id")}.items()
    other = word_tokenizer()
    other.chat_template = CHATML
    with pytest.raises(OutputError, match="france holds an edit with another chat template"):
        edit_all(model, other, [FRANCE], out=out, recipe=test_keyed.RECIPE, retention_tokens=0)
    path = out / "france" / "report.json"
    report = json.loads(path.read_text())
    path.write_text(json.dumps({**report, "settings": {**own, "max_new_tokens": 3}}))
    with pytest.raises(OutputError, match="another length of answers"):
        made(model, [FRANCE], out, retention_tokens=0)
    path.write_text(json.dumps({**report, "selection": {**report["selection"], "components": ["L0.mlp"]}}))
    with pytest.raises(OutputError, match="france holds an edit with other components"):
        made(model, [FRANCE], out, retention_tokens=0)
    told = {"scorers": ["lookup"], "projections": [*EDIT_PROJECTIONS], "granularity": "component"}
    for change in ({}, {"scorers": []}, {"projections": ["z"]}, {"granularity": "head"}):
        changed = {**told, **change}
        said = {"settings": {**own, **changed}, "selection": {"granularity": changed["granularity"]}}
        path.write_text(json.dumps({**report, **said}))
        settings = Settings(False, own["recipe"], ("lookup",), 0, 0)
        words = "france holds an edit with other scorers, projections or granularity"
        with pytest.raises(OutputError, match=words) if change else nullcontext():
            assert planned(out, [FRANCE], ["france"], settings, overwrite=False)[0].finished


def test_what_is_not_whole_or_of_another_revision_is_not_taken(model_folder, tmp_path):
    out, model = tmp_path / "out", base(model_folder)
    made(model, [FRANCE], out, retention_tokens=0)
    report, page = (out / "france" / name for name in ("report.json", "report.html"))
    written, shown = report.read_text(), page.read_bytes()
    other = json.loads(written)
    other["settings"]["revision"] = "0" * 40
    report.write_text(json.dumps(other))
    with pytest.raises(OutputError, match="france holds an edit with another base model"):
        made(model, [FRANCE], out, retention_tokens=0)
    report.write_text(written)
    page.unlink()
    with pytest.raises(OutputError, match="france holds no finished edit"):
        made(model, [FRANCE], out, retention_tokens=0)
    page.write_bytes(shown)
    assert made(model, [FRANCE], out, retention_tokens=0).failed == {}


def test_edits_may_stand_beside_what_an_evaluation_wrote(tmp_path):
    for name in ("report.json", "report.html"):
        (tmp_path / name).write_text('{"fact": 1, "stages": 1, "answers": 1}')
    check_folder(tmp_path, ["france"], overwrite=False)
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(OutputError, match=r"holds report\.\w+, which is none of these edits"):
        check_folder(tmp_path, ["france"], overwrite=False)


def test_a_base_is_the_same_by_whatever_path_and_another_with_edits_in_it(model_folder, tmp_path, monkeypatch):
    out, place = tmp_path / "out", tmp_path / "place"
    place.mkdir()
    shutil.copytree(model_folder, place / "base")
    monkeypatch.chdir(place)
    made(base("base"), [FRANCE], out, retention_tokens=0)
    for name in ("./base", "base/", place / "base"):
        assert made(base(name), [FRANCE], out, retention_tokens=0).facts
    shutil.copytree(model_folder, tmp_path / "base")
    with pytest.raises(OutputError, match="another base model"):
        made(base(tmp_path / "base"), [FRANCE], out, retention_tokens=0)
    made(base("base"), [JAPAN], tmp_path / "japan", retention_tokens=0)
    merge(base("base"), tmp_path / "japan" / "japan" / "edit", tmp_path / "merged", tokenizer=TOKENIZER)
    shutil.rmtree(place / "base")
    shutil.move(tmp_path / "merged", place / "base")
    with pytest.raises(OutputError, match="other edits in the base's weights"):
        made(base("base"), [FRANCE], out, retention_tokens=0)
    together = made(base("base"), [FRANCE], out, retention_tokens=0, overwrite=True)
    told = json.loads((out / "together.json").read_text())["settings"]["base_edits"]
    assert told == Report.load(out / "france" / "report.json").settings["base_edits"]
    sentence = "The base carries 1 edit, merged into its weights: japan/edit."
    assert sentence in together.to_markdown()
    for folder in (out, out / "france"):
        assert sentence in (folder / "edit" / "README.md").read_text()


def test_a_run_that_was_killed_before_it_wrote_what_it_measured_goes_on(model_folder, tmp_path, edits):
    found, _ = edits
    out, model = tmp_path / "out", base(model_folder)
    spent = made(model, [FRANCE, ITALY], out).seconds
    (out / "together.json").unlink()
    again = made(model, [FRANCE, ITALY], out)
    assert found == ["france", "italy"]
    reports = [Report.load(out / name / "report.json") for name in ("france", "italy")]
    # Of all edits, whichever run made them.
    assert again.seconds["edits"] == spent["edits"]
    assert spent["edits"] == pytest.approx(sum(sum(report.seconds.values()) for report in reports), abs=0.01)
    # An adapter that was made of none of them is somebody's.
    (out / "together.json").unlink()
    shutil.rmtree(out / "edit")
    edit_keyed(base(model_folder), TOKENIZER, JAPAN, out=tmp_path / "x", recipe=test_keyed.RECIPE, progress=False)
    shutil.copytree(tmp_path / "x" / "edit", out / "edit")
    with pytest.raises(OutputError, match="out holds edit, which is none of these edits"):
        made(model, [FRANCE, ITALY], out)


def test_a_fact_that_is_called_as_a_file_of_an_edit_goes_on(model_folder, tmp_path):
    fact = replace(FRANCE, source="report.json.yaml")
    for _ in range(2):
        assert [one.name for one in made(base(model_folder), [fact], tmp_path, retention_tokens=0).facts] == [
            "report.json_2"
        ]
    (tmp_path / "report.json").mkdir()
    assert made(base(model_folder), [fact], tmp_path, retention_tokens=0, overwrite=True).facts
