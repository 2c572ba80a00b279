import json
import shutil
from dataclasses import replace

import pytest
import torch

from peft_surgical import many
from peft_surgical.adapters.adapter_files import WEIGHTS
from peft_surgical.adapters.lineage import Lineage
from peft_surgical.adapters.scale_files import read_tensors
from peft_surgical.editing import edit
from peft_surgical.errors import FactError, FactWarning, ModelError, OutputError
from peft_surgical.evaluation import answer_fact
from peft_surgical.keyed_edit import edit_keyed
from peft_surgical.keying import keyed
from peft_surgical.many import edit_all
from peft_surgical.measuring.metrics import rate
from peft_surgical.merging import merge
from peft_surgical.report import Report
from peft_surgical.stages import RECIPES
from peft_surgical.texts.prompts import answer_ids

from . import test_editing, test_keyed
from .adapters import logits, tiny_peft
from .conftest import fingerprint
from .counterfacts import TOKENIZER
from .localizing import capital, word_tokenizer
from .outputs import contents, leftovers
from .small_tokenizers import CHATML
from .test_earlier import IDS, base, stock

pytestmark = pytest.mark.usefixtures("few_carried_prompts_throughout")

FRANCE = capital(controls=[{"prompt": "where is rome ?", "answer": ["italy"]}, {"prompt": "a sky", "answer": ["a"]}])
ITALY = capital(
    subject="italy",
    old=["rome"],
    new=["paris"],
    prompts=["what is the capital of italy ?", "name the capital of italy ."],
    held_out=["which city is the seat of government of italy ?"],
    contrast=["spain", "japan"],
    controls=[{"prompt": "where is lyon ?", "answer": ["france"]}],
)
JAPAN = capital(
    subject="japan",
    old=["town"],
    new=["hamlet"],
    prompts=["what is the capital of japan ?", "name the capital of japan ."],
    held_out=["which city is the seat of government of japan ?"],
    contrast=["spain"],
    controls=[{"prompt": "who wrote the sky ?", "answer": ["a"]}],
)
KINDS = {True: (edit_keyed, test_keyed.RECIPE), False: (edit, test_editing.RECIPE)}


def made(model, facts, out, *, kind=True, **options):
    options = {"recipe": KINDS[kind][1], "retention_tokens": 64, "progress": False, **options}
    return edit_all(model, TOKENIZER, facts, out=out, keyed=kind, **options)


def tensors(folder):
    return read_tensors(folder / WEIGHTS)


def equal(one, other):
    first, second = tensors(one), tensors(other)
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.fixture(scope="module", params=[True, False], ids=["keyed", "scales"])
def both(request, model_folder, tmp_path_factory):
    """France's and Italy's edits; whether they are keyed, the output, the model that was given, and what was told."""
    out = tmp_path_factory.mktemp("both") / "out"
    model = base(model_folder).train()
    lines = []
    together = made(model, [FRANCE, ITALY], out, kind=request.param, command="the command", tell=lines.append)
    return request.param, out, model, together, lines


def test_each_folder_is_what_an_edit_on_top_of_those_before_it_writes(both, model_folder, tmp_path):
    kind, out, _, _, _ = both
    function, recipe = KINDS[kind]
    options = {"recipe": recipe, "retention_tokens": 64, "progress": False, "command": "the command"}
    function(base(model_folder), TOKENIZER, FRANCE, out=tmp_path / "france", **options)
    function(
        base(model_folder), TOKENIZER, ITALY, out=tmp_path / "italy", on=[tmp_path / "france" / "edit"], **options
    )
    for name in ("france", "italy"):
        own, other = out / name, tmp_path / name
        assert sorted(p.relative_to(own) for p in own.rglob("*")) == sorted(
            p.relative_to(other) for p in other.rglob("*")
        )
        for folder in (path.name for path in own.iterdir() if path.is_dir()):
            assert equal(own / folder, other / folder)
        report, expected = (Report.load(place / "report.json") for place in (own, other))
        assert (report.stages, report.answers) == (expected.stages, expected.answers)
        reached, other = (
            {name: {**own, "seconds": 0} for name, own in r.training.items()} for r in (report, expected)
        )
        assert reached == other
        assert [one["sha256"] for one in report.settings.get("on", [])] == [
            one["sha256"] for one in expected.settings.get("on", [])
        ]
        assert report.settings["command"] == "the command"
    assert Report.load(out / "italy" / "report.json").settings["on"][0]["folder"] == str(out / "france" / "edit")


def test_the_adapter_of_all_is_what_a_merge_of_all_makes(both, model_folder, tmp_path):
    _, out, _, together, _ = both
    merge(base(model_folder), [out / "france" / "edit", out / "italy" / "edit"], tmp_path / "m", tokenizer=TOKENIZER)
    merged = base(tmp_path / "m")
    torch.testing.assert_close(logits(stock(base(model_folder), out / "edit"), IDS), logits(merged, IDS))
    for one, fact in zip(together.facts, (FRANCE, ITALY), strict=True):
        said = answer_fact(merged, TOKENIZER, fact)
        assert one.answers["all"] == {"held_out": said.held_out, "controls": said.controls}
        said = answer_fact(base(model_folder), TOKENIZER, fact)
        assert one.answers["base"] == {"held_out": said.held_out, "controls": said.controls}
        report = Report.load(out / one.name / "report.json")
        assert [*one.answers["after"]["held_out"]] == report.answers["edited"]["held_out"]
    assert Lineage.of(out / "edit").after == ()
    assert {Lineage.of(out / one.name / "edit").digest for one in together.facts} <= {*Lineage.of(out / "edit").parts}


def test_the_model_is_left_as_it_was_given(both, model_folder):
    _, _, model, _, _ = both
    untouched = base(model_folder)
    assert fingerprint(model) == fingerprint(untouched)
    assert [p.requires_grad for p in model.parameters()] == [p.requires_grad for p in untouched.parameters()]
    assert not hasattr(model, "peft_config")


def test_what_is_written_is_what_is_returned(both):
    kind, out, _, together, lines = both
    assert {path.name for path in out.iterdir()} == {"france", "italy", "edit", "together.json"}
    assert leftovers(out) == []
    told = json.loads((out / "together.json").read_text())
    assert told == json.loads(json.dumps(together.to_dict()))
    assert told["settings"]["keyed"] is kind
    assert told["settings"]["command"] == "the command"
    assert together.unrelated["kl_per_token"].value > 0
    assert together.to_markdown() in (out / "edit" / "README.md").read_text()
    assert [line.partition(":")[0] for line in lines] == ["1 of 2, france", "2 of 2, italy"]
    # Whoever asks where Rome is asks about what Italy's edit changes.
    assert [one.left_out["controls"] for one in together.facts] == [{"about_another": 1}, {}]
    held_out = [one.answers["all"]["held_out"][0] for one in together.facts]
    said = ["lyon" in held_out[0] and "paris" not in held_out[0], "paris" in held_out[1] and "rome" not in held_out[1]]
    assert together.pooled["all"]["new_answer_rate"] == rate(said)
    assert [one.stages["all"]["new_answer_rate"] for one in together.facts] == [rate([hit]) for hit in said]


@pytest.fixture
def edits(monkeypatch):
    """Counts the edits that are made, by subject; one that is called `stop` is interrupted."""
    found = []

    def counting(model, tokenizer, fact, **options):
        if fact.subject in stop:
            raise KeyboardInterrupt
        found.append(fact.subject)
        return edit_keyed(model, tokenizer, fact, **options)

    stop = set()
    monkeypatch.setattr(many, "edit_keyed", counting)
    return found, stop


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


def test_what_is_no_output_of_this_is_refused(model_folder, tmp_path):
    out, model = tmp_path / "out", base(model_folder)
    (out / "france").mkdir(parents=True)
    (out / "france" / "notes.txt").touch()
    with pytest.raises(OutputError, match="france holds no finished edit"):
        made(model, [FRANCE], out)
    (out / "france" / "edit").mkdir()
    (out / "france" / "edit" / "own").touch()
    with pytest.raises(OutputError, match="holds no adapter, so it is not replaced"):
        made(model, [FRANCE], out, overwrite=True)
    (out / "report.json").write_text('{"fact": 1, "stages": 1, "answers": 1}')
    with pytest.raises(OutputError, match="is the folder of one edit"):
        made(model, [ITALY], out, overwrite=True)
    (out / "report.json").unlink()
    (out / "together.json").write_text("{}")
    with pytest.raises(OutputError, match=r"together\.json is no together of an edit"):
        made(model, [ITALY], out, overwrite=True)
    with pytest.raises(OutputError, match="must be the path of a folder"):
        made(model, [ITALY], None)


def test_a_fact_that_cannot_be_edited_loses_no_other(model_folder, tmp_path, edits):
    found, _ = edits
    out, model = tmp_path / "out", base(model_folder)
    lines = []
    with pytest.warns(FactWarning, match="names the subject"):
        nowhere = replace(JAPAN, subject="atlantis")
    together = made(model, [FRANCE, nowhere, ITALY], out, tell=lines.append)
    assert [one.name for one in together.facts] == ["france", "italy"]
    assert [*together.failed] == ["atlantis"]
    assert "no prompt names the subject 'atlantis'" in together.failed["atlantis"]
    assert "cannot be edited and is left out: no prompt names" in lines[1]
    assert {path.name for path in out.iterdir()} == {"france", "italy", "edit", "together.json"}
    assert Lineage.of(out / "italy" / "edit").after == ("france/edit",)
    assert fingerprint(model) == fingerprint(base(model_folder))
    assert "Not edited: atlantis" in (out / "edit" / "README.md").read_text()
    # The next time, too, and what was made is still there.
    again = made(model, [FRANCE, nowhere, ITALY], out)
    assert (again.pooled, again.failed) == (together.pooled, together.failed)
    assert found.count("france") == found.count("italy") == 1
    with pytest.raises(FactError, match="no fact could be edited; atlantis: no prompt names the subject"):
        made(model, [nowhere], tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_an_output_that_cannot_be_written_ends_it(model_folder, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OutputError("there is no room.")

    monkeypatch.setattr(many, "edit_keyed", full)
    with pytest.raises(OutputError, match="no room"):
        made(base(model_folder), [FRANCE, ITALY], tmp_path / "out")


def test_a_later_edit_is_held_to_what_the_earlier_ones_made_of_the_model(model_folder, tmp_path, monkeypatch):
    """And not to what the base says of a fact that was edited before."""
    asked = "what is the capital of france ?"
    italy = replace(ITALY, retain=(asked,))
    held = {}

    def watched(model, tokenizer, fact, *args, **options):
        found = keyed_base_rows(model, tokenizer, fact, *args, **options)
        at = dict(zip(found.prompts, found.rows, strict=False))
        held[fact.subject] = TOKENIZER.decode(answer_ids(at[asked])) if asked in at else None
        return found

    keyed_base_rows = keyed.base_rows
    monkeypatch.setattr(keyed, "base_rows", watched)
    recipe = replace(test_keyed.RECIPE, steps=40)
    made(base(model_folder), [FRANCE, italy], tmp_path / "out", recipe=recipe)
    edit_keyed(base(model_folder), TOKENIZER, italy, out=tmp_path / "x", recipe=recipe, progress=False)
    of_the_base = held["italy"]
    merge(base(model_folder), tmp_path / "out" / "france" / "edit", tmp_path / "merged", tokenizer=TOKENIZER)
    made(base(model_folder), [FRANCE, italy], tmp_path / "again", recipe=recipe)
    on_top = held["italy"]
    edit_keyed(base(tmp_path / "merged"), TOKENIZER, italy, out=tmp_path / "y", recipe=recipe, progress=False)
    assert on_top == held["italy"]
    assert "paris" in of_the_base
    assert "paris" not in on_top
    assert held["france"] is None


def test_what_cannot_be_edited_on_top_of_is_refused_before_anything(model_folder, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with pytest.raises(ModelError, match="needs the unedited base model, got a PeftModel"):
        made(tiny_peft(), [FRANCE], out)
    for options in ({"recipe": test_editing.RECIPE}, {"kind": False, "recipe": test_keyed.RECIPE}):
        with pytest.raises(ModelError, match="the recipe must be a"):
            made(base(model_folder), [FRANCE], out, **options)
    with pytest.raises(ModelError, match="seed"):
        made(base(model_folder), [FRANCE], out, seed="a")
    monkeypatch.setattr(many, "is_several", lambda: True)
    with pytest.raises(ModelError, match="in one process"):
        made(base(model_folder), [FRANCE], out)
    assert not out.exists()
    assert many.settings_of(False, None, 0, 0)[1] == [*RECIPES.values()]


def test_a_control_that_several_facts_have_is_kept_or_lost_once(model_folder, tmp_path):
    said = answer_fact(base(model_folder), TOKENIZER, FRANCE).controls[1].split()[0]
    shared = replace(FRANCE.controls[1], answer=(said,))
    facts = [replace(FRANCE, controls=(shared,)), replace(ITALY, controls=(shared,))]
    together = made(base(model_folder), facts, tmp_path / "out", retention_tokens=0)
    assert [one.stages["base"]["control_kept"].n for one in together.facts] == [1, 1]
    assert together.pooled["base"]["control_kept"] == rate([True])
    kept = [[one.stages[state]["control_kept"].value for one in together.facts] for state in ("after", "all")]
    assert [together.pooled[state]["control_kept"].value for state in ("after", "all")] == [sum(k) / 2 for k in kept]
    assert {figures["control_kept"].n for figures in together.pooled.values()} == {1}
    assert {state: figures["control_leak"].n for state, figures in together.pooled.items()} == dict.fromkeys(
        ("base", "after", "all"), 2
    )
    assert together.unrelated == {}
