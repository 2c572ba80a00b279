"""What an edit refuses, and that nothing was done by then."""

from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest

from peft_surgical import edit as edit_function
from peft_surgical import editing
from peft_surgical.errors import (
    AdapterError,
    FactError,
    ModelError,
    OutputError,
    ScorerError,
    SelectionError,
    SurgicalError,
)
from peft_surgical.keying.keyed import KeyedRecipe
from peft_surgical.localization import localize
from peft_surgical.localizing.results import Localization
from peft_surgical.selection import Selection
from peft_surgical.sites import ModelShape
from peft_surgical.staging.by_subject import SubjectRecipe
from peft_surgical.staging.recipe import Recipe
from peft_surgical.tuner import SurgicalIA3Config

from . import test_editing
from .adapters import tiny_peft
from .conftest import fingerprint
from .localizing import capital, planted, word_tokenizer
from .tiny import tiny_model

FACT = capital()
SHAPE = ModelShape.from_config(planted().config)
WIDER = replace(SHAPE, d_mlp=2 * SHAPE.d_mlp)


def forbidden(*_, **__):
    raise AssertionError("the work was begun")


def test_a_full_folder_is_refused_before_anything_is_done(tmp_path, monkeypatch):
    (tmp_path / "notes.txt").write_text("mine")
    model = planted()
    before = fingerprint(model)
    monkeypatch.setattr(editing, "localize", forbidden)
    with pytest.raises(OutputError, match="is not empty"):
        edit_function(model, word_tokenizer(), FACT, out=tmp_path)
    with pytest.raises(OutputError, match="is a file"):
        edit_function(model, word_tokenizer(), FACT, out=tmp_path / "notes.txt", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    assert fingerprint(model) == before


@pytest.mark.parametrize("work", ["editing", "keyed_edit"])
def test_a_folder_that_holds_no_adapter_is_not_taken_for_an_earlier_edit_s(work, tmp_path, monkeypatch):
    module = import_module(f"peft_surgical.{work}")
    monkeypatch.setattr(module, "localize" if work == "editing" else "learn_keyed", forbidden)
    thesis = tmp_path / "edit" / "thesis.tex"
    thesis.parent.mkdir()
    thesis.write_text("mine")
    run = module.edit if work == "editing" else module.edit_keyed
    with pytest.raises(OutputError, match="edit holds no adapter, so it is not replaced"):
        run(planted(), word_tokenizer(), FACT, out=tmp_path, overwrite=True)
    assert thesis.read_text() == "mine"


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"scorers": ["nope"]}, ScorerError, "there is no scorer 'nope'"),
        ({"scorers": []}, ScorerError, "name at least one scorer"),
        ({"selection": Selection.from_components("L9.mlp")}, SelectionError, r"L9\.mlp is not one of them"),
        ({"top": 0}, SelectionError, "no component fits top=0"),
        ({"budget": 7}, SelectionError, "no component fits budget=7"),
        ({"budget": 99, "granularity": "module"}, SelectionError, "a budget and the granularity 'module' exclude"),
        ({"selection": Selection.from_components("L1.mlp"), "mlps": 1}, SelectionError, "exclude each other"),
        (
            {"selection": Selection(("L1.mlp",), neurons={"L1.mlp": ((0, 2),)}), "granularity": "module"},
            SelectionError,
            "scales whole modules, and neurons are chosen",
        ),
        (
            {"granularity": "neuron", "neurons": 99},
            SelectionError,
            "neurons must be between 1 and 48, not 99",
        ),
        ({"granularity": "neuron"}, SelectionError, "go together; got 'neuron' and None"),
        ({"neurons": 5}, SelectionError, "go together; got 'component' and 5"),
        (
            {
                "granularity": "neuron",
                "neurons": 5,
                "selection": Selection(("L1.mlp",), neurons={"L1.mlp": ((0, 2),)}),
            },
            SelectionError,
            "the selection has neurons of its own, so none are to be chosen; got 5",
        ),
        (
            {"granularity": "neuron", "neurons": 5, "top": 1, "scorers": ["random"]},
            SelectionError,
            r"no MLP is selected \(L\d\.head\.\d\), and only MLPs have neurons",
        ),
        ({"granularity": "layer"}, SelectionError, "layer"),
        ({"fact": capital(new=["oslo"], answer="oslo")}, FactError, "not in this tokenizer's vocabulary"),
    ],
)
def test_what_cannot_be_done_is_refused_and_writes_nothing(options, error, words, tmp_path):
    model = planted()
    before = fingerprint(model)
    options = {"fact": FACT, **options}
    with pytest.raises(error, match=words):
        edit_function(model, word_tokenizer(), out=tmp_path / "out", progress=False, **options)
    assert not list(tmp_path.iterdir())
    assert fingerprint(model) == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"projections": ["z"]}, r"L0\.mlp needs one of the projections post, pre, pre_linear, in; got z\."),
        ({"projections": ["z", "post"], "selection": Selection.from_components("L1.mlp", "L2.head.0")}, None),
        ({"projections": ["z"], "selection": Selection.from_components("L2.head.0", "L1.mlp")}, r"L1\.mlp needs one"),
        ({"projections": ["in"], "heads": 2}, r"L0\.head\.0 needs one of the projections z, v, q, k; got in\."),
        ({"projections": ["in"], "heads": 2, "mlps": 1}, r"L0\.head\.0 needs one"),
        ({"projections": ["in"], "heads": 2, "mlps": 1, "budget": 99}, None),
        ({"projections": ["z"], "top": 2}, None),
        ({"projections": ["in", "pre_linear"]}, "cannot be scaled on both sides"),
        ({"projections": ["in"], "granularity": "neuron", "neurons": 4}, "which has no neurons"),
        ({"projections": "in", "granularity": "neuron", "neurons": 4, "top": 2}, "'in' of an MLP is the residual"),
        ({"granularity": "neuron", "neurons": 4}, None),
        ({"granularity": "neuron", "neurons": 4, "heads": 2}, "no MLP is selected, and only MLPs have neurons"),
        (
            {"granularity": "neuron", "neurons": 4, "selection": Selection.from_components("L2.head.0")},
            "no MLP is selected",
        ),
        ({"granularity": "layer"}, "the granularity must be one of"),
        ({"granularity": "layer", "top": 2}, "the granularity must be one of"),
        ({"projections": "inn", "top": 2}, "the projection 'inn' is not one of"),
        ({"projections": 5, "top": 2}, "projections must be a list of names, got 5"),
        (
            {
                "granularity": "neuron",
                "selection": Selection(("L1.mlp", "L2.mlp"), neurons={"L2.mlp": ((0, 2),)}),
            },
            r"the granularity 'neuron' needs the neurons of L1\.mlp, and none are given",
        ),
        ({"selection": Selection(("L1.mlp",), WIDER)}, r"made on another model \(d_mlp 96, not 48\)"),
        # Both stages keep what the first one's recipe says.
        ({"recipe": {"unlearn": Recipe(retain_tokens=500)}}, "'retain' and its answer have .* the model has 256"),
        ({"recipe": {"learn": Recipe(retain_tokens=500)}}, None),
    ],
)
def test_projections_that_cannot_do_are_told_before_localizing(options, words, tmp_path, monkeypatch):
    def localizes(*_, **__):
        raise InterruptedError

    monkeypatch.setattr(editing, "localize", localizes)
    with pytest.raises(InterruptedError if words is None else SurgicalError, match=words):
        edit_function(planted(), word_tokenizer(), FACT, out=tmp_path / "out", **options)


@pytest.mark.parametrize("work", ["editing", "keyed_edit"])
def test_the_sentence_that_is_taught_must_fit(work, tmp_path, monkeypatch):
    module = import_module(f"peft_surgical.{work}")
    monkeypatch.setattr(module, "in_sentences", lambda fact, _: replace(fact, answer="lyon " * 300))
    with pytest.raises(FactError, match=r"'prompts' and its answer have 3.. tokens; the model has 256"):
        (module.edit if work == "editing" else module.edit_keyed)(planted(), word_tokenizer(), FACT, out=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"retention_tokens": -1}, ModelError, "retention_tokens must be a whole number of 0 or more; got -1"),
        ({"seed": 1.5}, ModelError, "seed must be a whole number"),
        ({"command": Path("a")}, ModelError, "the command, which the report is to tell, must be text, not"),
        (
            {"recipe": SubjectRecipe()},
            ModelError,
            "must be a (Keyed)?Recipe, and is of the type SubjectRecipe",
        ),
        ({"recipe": {"steps": 2}}, ModelError, "the recipe must be a KeyedRecipe|there is no stage 'steps'"),
        ({"out": None}, OutputError, "the output must be the path of a folder, not None"),
        ({"model": "m"}, ModelError, "a model must be a torch module, such as load_model gives, not 'm'"),
        ({"tokenizer": "m"}, ModelError, "a tokenizer must be one of transformers, such as load_model gives, not 'm'"),
    ],
)
@pytest.mark.parametrize("work", ["editing", "keyed_edit"])
def test_arguments_of_another_kind_are_told_and_an_earlier_edit_stays(work, options, error, words, tmp_path):
    module = import_module(f"peft_surgical.{work}")
    earlier = tmp_path / "out" / "edit" / "adapter_config.json"
    earlier.parent.mkdir(parents=True)
    earlier.write_text("of an earlier edit")
    given = {"model": planted(), "tokenizer": word_tokenizer(), "fact": FACT, "out": tmp_path / "out", **options}
    with pytest.raises(error, match=words):
        (module.edit if work == "editing" else module.edit_keyed)(**given, overwrite=True, progress=False)
    assert earlier.read_text() == "of an earlier edit"


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"localization": {}}, SelectionError, "a localization must be one that localize gave, not"),
        ({"selection": ["L2.mlp"]}, SelectionError, "a selection must be a Selection, such as"),
        ({"recipe": KeyedRecipe()}, ModelError, "the recipe must be a Recipe, and is of the type KeyedRecipe"),
        ({"recipe": {"learn": {"steps": 2}}}, ModelError, "the recipe must be a Recipe, and is of the type dict"),
        ({"projections": "pre_linear"}, SelectionError, "llama MLPs|pre_linear"),
    ],
)
def test_what_else_an_edit_takes_is_of_its_kind(options, error, words, tmp_path, monkeypatch):
    monkeypatch.setattr(editing, "unlearn", forbidden)
    selected = {"selection": Selection.from_components("L1.head.0")} if "projections" in options else {}
    with pytest.raises(error, match=words):
        edit_function(planted(), word_tokenizer(), FACT, out=tmp_path / "out", progress=False, **selected, **options)


def test_of_heads_that_read_the_same_values_one_alone_counts(tmp_path, monkeypatch):
    model = tiny_model("llama", num_key_value_heads=2)
    found = localize(model, word_tokenizer(), FACT, ["random"], progress=False)
    in_order = {name: -float(i) for i, name in enumerate(sorted(found.scores["random"]))}
    found = replace(found, tables={"random": replace(found.tables["random"], components=in_order)})
    monkeypatch.setattr(editing, "unlearn", forbidden)
    seen = []

    def started(_, localization, selection):
        seen.append(selection.components)
        raise InterruptedError

    monkeypatch.setattr(editing, "_start_output", started)
    for options in ({"projections": "v"}, {"projections": ["z"]}, {"granularity": "module"}):
        given = {"localization": found, "heads": 3, "progress": False, **options}
        with pytest.raises(InterruptedError):
            edit_function(model, word_tokenizer(), FACT, out=tmp_path / "out", **given)
    best = ("L0.head.0", "L0.head.1", "L0.head.2")
    assert seen == [("L0.head.0", "L0.head.2", "L1.head.0"), best, best]
    assert SurgicalIA3Config.from_localization(found, 2, projections="v").components == ["L0.head.0", "L0.head.2"]


@pytest.mark.usefixtures("few_carried_prompts")
def test_a_second_edit_of_the_same_model_is_refused_before_anything_is_done(tmp_path):
    model, selection = planted(), Selection.from_components("L1.mlp")
    options = {"selection": selection, "recipe": test_editing.RECIPE, "retention_tokens": 0, "progress": False}
    edit_function(model, word_tokenizer(), FACT, out=tmp_path / "out", **options)
    found = Localization.load(tmp_path / "out" / "localization.json")
    with pytest.raises(AdapterError, match="as by an earlier edit; give that PEFT model, or take them off by"):
        edit_function(model, word_tokenizer(), FACT, out=tmp_path / "other", localization=found, **options)
    assert not (tmp_path / "other").exists()


def test_a_localization_of_another_fact_is_refused(tmp_path):
    other = capital(subject="italy", old=["rome"], contrast=["france"], prompts=["what is the capital of italy ?"])
    found = localize(planted(), word_tokenizer(), other, ["random"], progress=False)
    with pytest.raises(SelectionError, match="the localization is of 'italy', and the fact of 'france'; localize"):
        edit_function(planted(), word_tokenizer(), FACT, out=tmp_path / "out", localization=found, progress=False)
    assert not (tmp_path / "out").exists()


def test_a_model_with_an_adapter_of_a_stages_name_is_refused_before_anything_is_done(tmp_path):
    with pytest.raises(AdapterError, match="already has an adapter named 'learn'"):
        edit_function(tiny_peft(adapter="learn"), word_tokenizer(), FACT, out=tmp_path / "out", progress=False)
    assert not list(tmp_path.iterdir())
