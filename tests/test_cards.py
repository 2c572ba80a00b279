import copy
import os
import subprocess
import sys
import warnings

import pytest
import torch
import yaml
from huggingface_hub import ModelCard, constants
from peft import LoraConfig, PeftConfig, get_peft_model

from peft_surgical.adapters.bases import hub_id, note_revision, warn_of_another_base
from peft_surgical.adapters.cards import card_header, card_scales, card_use
from peft_surgical.adapters.edits import Edit, ModuleScale
from peft_surgical.keying.neurons import place_neurons
from peft_surgical.merging import merge
from peft_surgical.stacking import stack
from peft_surgical.stages import learn
from peft_surgical.tuner import Coordinates, activate

from .staged import FACT, RECIPE, TOKENIZER, config, first_stage, second_stage
from .tiny import tiny_model

IDS = [[3, 1, 4, 1, 5]]


@pytest.mark.parametrize("name", ["org/model-1", "gpt2", "1.0", "123", "yes", "null", "a_b/c.d"])
def test_the_header_names_the_base_as_text(name):
    header = card_header(name, "CAUSAL_LM", "ia3")
    assert yaml.safe_load(header.strip("-\n"))["base_model"] == name
    assert ModelCard(header + "\n").data.base_model == name


@pytest.mark.parametrize("name", ["models/x.gguf", "a--b", "a/..", "./here", "/there", "a/b/c", "", None, ".hidden/x"])
def test_what_the_hub_does_not_take_is_no_id(name):
    assert hub_id(name) is None
    assert "base_model" not in card_header(name, None, "ia3")
    assert "path/to/the/base" in card_use(name)


def test_a_folder_that_is_here_is_no_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert hub_id("org/model") == "org/model"
    os.makedirs("org/model")
    assert hub_id("org/model") is None


@pytest.mark.parametrize("stages", [[], ["learn"], ["un'learn", 'my "x"']])
def test_the_code_of_a_card_is_code_whatever_adapters_are_called(stages):
    use = card_use("org/model", stages)
    code = use.split("```")[1].removeprefix("python\n")
    compile(code, "card", "exec")
    assert ("import peft_surgical as ps" in code) == bool(stages)
    assert ("do not load it" in use) == (len(stages) < 2)


def test_the_table_of_a_card_is_one_whatever_modules_are_called():
    scale = ModuleScale(Coordinates("input", ((0, 2),)), torch.ones(2))
    table = card_scales(Edit({"layers.1.mlp-a_b": scale, "layers.0.x`|\n---\n<b>\x1b[31m": scale}))
    assert table.splitlines()[2:] == [
        "| `layers.0.x???---??b???31m` | input | 2 |",
        "| `layers.1.mlp-a_b` | input | 2 |",
    ]


def test_a_path_into_the_hubs_cache_is_named_by_its_id(tmp_path):
    snapshot = tmp_path / "hub" / "models--org--model" / "snapshots" / "abcdef"
    snapshot.mkdir(parents=True)
    assert hub_id(str(snapshot)) == "org/model"
    assert hub_id(str(snapshot.parent)) is None
    assert "base_model: org/model" in card_header(str(snapshot), None, "ia3")
    assert 'from_pretrained("org/model", revision="abcdef")' in card_use(str(snapshot))


def told(model, *adapter):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_another_base(model, "learn", *adapter)
    return [str(one.message) for one in caught]


def test_an_adapter_of_another_revision_is_told_of(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    commit, repository = "a" * 40, tmp_path / "models--org--model"
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (repository / "refs").mkdir()
    for name in ("main", "v1"):
        (repository / "refs" / name).write_text(commit)
    model = tiny_model("llama")
    model.name_or_path = "org/model"
    # Of a model that somebody else has loaded nothing is known.
    assert not told(model, "org/model", "v2")
    note_revision(model, None)
    assert told(model, "org/model", "v2") == [
        "the adapter learn was made for the revision 'v2' of org/model; this model is of 'main'."
    ]
    assert told(model, "other/model", "v2") == [
        "the adapter learn was made for 'other/model'; this model is 'org/model'."
    ]
    away = f"/away/models--org--model/snapshots/{'b' * 40}"
    [text] = told(model, away, None)
    assert f"made for the revision '{'b' * 40}' of org/model; this model is of 'main'." in text
    for base, revision in (("org/model", None), ("org/model", "v1"), ("org/model", commit), (str(snapshot), None)):
        assert not told(model, base, revision)
        assert not told(model, None, revision)
    note_revision(model, "v2")
    assert not told(model, "org/model", "v2")
    assert told(model, "org/model", "v1")
    model.name_or_path = str(snapshot)
    assert not told(model, "org/model", "v1")
    assert told(model, "org/model", "v2")
    model.name_or_path = str(tmp_path)
    assert not told(model, str(tmp_path), "v2")


def test_merging_tells_of_another_base_once(tmp_path):
    model = tiny_model("llama")
    model.name_or_path = "org/one"
    note_revision(model, None)
    scale = ModuleScale(Coordinates("input", ((0, 2),)), torch.tensor([2.0, 3.0]), 48)
    edit = Edit({"model.layers.0.mlp.down_proj": scale}, base_model="org/two")
    edit.save(tmp_path / "edit")
    lora = get_peft_model(tiny_model("llama"), LoraConfig(target_modules=["down_proj"], r=2))
    lora.peft_config["default"].base_model_name_or_path, lora.peft_config["default"].revision = "org/one", "v2"
    lora.save_pretrained(tmp_path / "lora")
    cases = (
        (tmp_path / "edit", "edit was made for 'org/two'; this model is 'org/one'"),
        ([edit], "edit was made for 'org/two'; this model is 'org/one'"),
        (tmp_path / "lora", "lora was made for the revision 'v2' of org/one; this model is of 'main'"),
    )
    for number, (given, words) in enumerate(cases):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            merge(model, given, tmp_path / f"merged{number}")
        assert [words in str(one.message) for one in caught if "made for" in str(one.message)] == [True]


def test_adapters_and_cards_name_the_revision_of_the_base(tmp_path):
    model = tiny_model("llama")
    model.name_or_path = "org/model"
    note_revision(model, "v2")
    keyed = place_neurons(copy.deepcopy(model), {"model.layers.1.mlp.down_proj": 1})
    assert keyed.peft_config["learn"].revision == "v2"
    first = first_stage(model=model)
    first.save(tmp_path / "unlearn"), second_stage(first).save(tmp_path / "learn")
    stack([tmp_path / "unlearn", tmp_path / "learn"], tmp_path / "edit")
    for name in ("unlearn", "learn", "edit"):
        assert PeftConfig.from_pretrained(tmp_path / name).revision == "v2"
        assert 'from_pretrained("org/model", revision="v2")' in (tmp_path / name / "README.md").read_text()
    assert "revision" not in card_use("org/model") + card_use("/a/folder", revision="v2")


def test_what_the_card_of_a_saved_stage_says_to_run_runs(tmp_path):
    first = first_stage()
    stage = second_stage(first)
    first.save(tmp_path / "unlearn"), stage.save(tmp_path / "learn")
    card = (tmp_path / "learn" / "README.md").read_text()
    assert card.startswith("---\n")
    assert "modules, as it was trained on top of unlearn." in card
    scaled = stage.model.peft_config["learn"].selections
    assert all(f"| `{module}` | {spec['side']} |" in card for module, spec in scaled.items())
    assert str(tmp_path) not in card
    tiny_model("llama").save_pretrained(tmp_path / "base")
    code = card.split("```")[1].removeprefix("python\n")
    code = code.replace("path/to/the/base", str(tmp_path / "base"))
    code = code.replace("path/to/unlearn", str(tmp_path / "unlearn"))
    code = code.replace("path/to/this/folder", str(tmp_path / "learn"))
    # In a process of its own nothing has made the type known yet.
    code += f"\nimport torch\ntorch.save(model(torch.tensor({IDS})).logits, {str(tmp_path / 'logits.pt')!r})\n"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), stage.model(torch.tensor(IDS)).logits)


def test_the_card_tells_what_a_stage_was_trained_on_whatever_acts_now():
    first = first_stage()
    second = second_stage(first)
    activate(second.model, ["learn", "unlearn"])
    assert "modules, as it was trained. `peft-surgical stack`" in first.card()
    assert 'from_pretrained(base, "path/to/this/folder", adapter_name="unlearn")' in first.card()
    assert "load_adapter" not in first.card()
    activate(second.model, [])
    assert "as it was trained on top of unlearn." in second.card()
    assert 'ps.activate(model, ["unlearn", "learn"])' in second.card()
    assert second.card().endswith("To undo the edit, load none of them.\n")


def test_a_stage_of_its_own_coordinates_knows_its_base():
    model = tiny_model("llama")
    model.name_or_path = model.config._name_or_path = "somebody/base"
    first = first_stage(model=model)
    second = learn(first.model, TOKENIZER, FACT, config(["L2.mlp"]), recipe=RECIPE, progress=False)
    assert 'AutoModelForCausalLM.from_pretrained("somebody/base")' in first.card()
    assert 'AutoModelForCausalLM.from_pretrained("somebody/base")' in second.card()
