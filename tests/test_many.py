import json
from dataclasses import replace

import pytest
import torch

from peft_surgical import many
from peft_surgical.adapters.lineage import Lineage
from peft_surgical.errors import ArchitectureError, FactError, FactWarning, ModelError, NotFiniteError, OutputError
from peft_surgical.evaluation import answer_fact
from peft_surgical.keyed_edit import edit_keyed
from peft_surgical.keying import keyed
from peft_surgical.measuring.metrics import rate
from peft_surgical.merging import merge
from peft_surgical.report import Report
from peft_surgical.running.cache import beside
from peft_surgical.stages import RECIPES
from peft_surgical.texts.prompts import answer_ids

from . import several, test_editing, test_keyed
from .adapters import logits, tiny_peft
from .conftest import fingerprint
from .counterfacts import TOKENIZER
from .outputs import leftovers
from .several import FRANCE, ITALY, JAPAN, KINDS, equal, made
from .test_earlier import IDS, base, stock

pytestmark = pytest.mark.usefixtures("few_carried_prompts_throughout")
edits = several.edits


@pytest.fixture(scope="module", params=[True, False], ids=["keyed", "scales"])
def both(request, model_folder, tmp_path_factory):
    """France's and Italy's edits; whether they are keyed, the output, the model that was given, and what was told."""
    out = tmp_path_factory.mktemp("both") / "out"
    model = base(model_folder).train()
    lines = []
    options = {"kind": request.param, "command": "the command", "seed": 3}
    together = made(model, [FRANCE, ITALY], out, tell=lines.append, **options)
    return request.param, out, model, together, lines


def test_each_folder_is_what_an_edit_on_top_of_those_before_it_writes(both, model_folder, tmp_path):
    kind, out, _, _, _ = both
    function, recipe = KINDS[kind]
    options = {"recipe": recipe, "retention_tokens": 64, "progress": False, "command": "the command", "seed": 3}
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
    assert any(beside(out).iterdir())
    told = json.loads((out / "together.json").read_text())
    assert told == json.loads(json.dumps(together.to_dict()))
    assert told["settings"]["keyed"] is kind
    assert told["settings"]["command"] == "the command"
    assert told["settings"]["recipe"] == Report.load(out / "france" / "report.json").settings["recipe"]
    assert told["seed"] == 3
    assert together.unrelated["kl_per_token"].value > 0
    assert together.to_markdown() in (out / "edit" / "README.md").read_text()
    assert [line.partition(":")[0] for line in lines] == ["1 of 2, france", "2 of 2, italy"]
    # Whoever asks where Rome is asks about what Italy's edit changes.
    assert [one.left_out["controls"] for one in together.facts] == [{"about_another": 1}, {}]
    held_out = [one.answers["all"]["held_out"][0] for one in together.facts]
    said = ["lyon" in held_out[0] and "paris" not in held_out[0], "paris" in held_out[1] and "rome" not in held_out[1]]
    assert together.pooled["all"]["new_answer_rate"] == rate(said)
    assert [one.stages["all"]["new_answer_rate"] for one in together.facts] == [rate([hit]) for hit in said]


def test_what_is_no_output_of_this_is_refused(model_folder, tmp_path, monkeypatch):
    out, model = tmp_path / "out", base(model_folder)
    (out / "france").mkdir(parents=True)
    (out / "france" / "notes.txt").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for folder in (out, "~/out"):
        with pytest.raises(OutputError, match="france holds no finished edit"):
            made(model, [FRANCE], folder)
    (out / "france" / "edit").mkdir()
    (out / "france" / "edit" / "own").touch()
    with pytest.raises(OutputError, match="holds no adapter, so it is not replaced"):
        made(model, [FRANCE], out, overwrite=True)
    (out / "report.json").write_text('{"fact": 1, "stages": 1, "answers": 1}')
    (out / "edit").mkdir()
    with pytest.raises(OutputError, match="is the folder of one edit"):
        made(model, [ITALY], out, overwrite=True)
    (out / "report.json").unlink()
    (out / "edit").rmdir()
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


@pytest.mark.parametrize("kind", [OutputError, ArchitectureError, NotFiniteError])
def test_what_the_next_fact_would_say_too_ends_it(kind, model_folder, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise kind("there is no room.")

    monkeypatch.setattr(many, "edit_keyed", fail)
    with pytest.raises(kind, match=r"^there is no room"):
        made(base(model_folder), [FRANCE, ITALY], tmp_path / "out")


def test_figures_are_measured_without_the_callers_autocast(model_folder, tmp_path, monkeypatch):
    seen = []

    def watched(measure):
        def watching(*given, **options):
            seen.append(torch.is_autocast_enabled("cpu"))
            return measure(*given, **options)

        return watching

    for name in ("answer_fact", "measure_retention"):
        monkeypatch.setattr(many, name, watched(getattr(many, name)))
    with torch.autocast("cpu", torch.bfloat16):
        made(base(model_folder), [FRANCE], tmp_path / "out", retention_tokens=0)
    assert seen == [False] * 3


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
    monkeypatch.delattr(many, "planned")
    both_ways = base(model_folder)
    both_ways.config.use_bidirectional_attention = True
    with pytest.raises(ArchitectureError, match="looks both ways"):
        made(both_ways, [FRANCE], out)
    for options, words in (
        ({"retention_tokens": 1}, "retention_tokens must be"),
        ({"command": 1}, "the command, which"),
    ):
        with pytest.raises(ModelError, match=words):
            made(base(model_folder), [FRANCE], out, **options)
    monkeypatch.setattr(many, "is_several", lambda: True)
    with pytest.raises(ModelError, match="in one process"):
        made(base(model_folder), [FRANCE], out)
    assert not out.exists()
    settings, recipes = many.settings_of(False, None, 0, 0)
    assert (settings.recipe.keys(), recipes) == (RECIPES.keys(), [*RECIPES.values()])


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
