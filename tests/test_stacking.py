import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model

from peft_surgical.adapters.adapter_files import WEIGHTS
from peft_surgical.adapters.algebra import inverse, power
from peft_surgical.adapters.edits import Edit, ModuleScale
from peft_surgical.adapters.export import to_ia3
from peft_surgical.errors import AdapterError, OutputError
from peft_surgical.stacking import model_card, stack
from peft_surgical.tuner import SurgicalIA3Config, activate
from peft_surgical.tuner.coordinates import Coordinates
from tests.adapters import add, logits, perturb, saved, tiny_peft
from tests.tiny import FAMILIES, tiny_ids, tiny_model


def staged(tmp_path, family="llama", dtype=torch.float32):
    """Two adapters of one model, saved, and the logits with both active."""
    model = tiny_peft(family, dtype=dtype)
    add(model, "learn")
    model.save_pretrained(tmp_path)
    activate(model, ["default", "learn"])
    return tmp_path, tmp_path / "learn", logits(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_stack_is_the_two_stages_bit_for_bit(family, dtype, tmp_path):
    first, second, both = staged(tmp_path, family, dtype)
    stack([first, second], tmp_path / "edit")
    model = PeftModel.from_pretrained(tiny_model(family, dtype=dtype), tmp_path / "edit")
    assert torch.equal(logits(model), both)
    assert not torch.equal(both, logits(tiny_model(family, dtype=dtype)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_callers_default_dtype_changes_nothing(dtype, tmp_path):
    first, second, _ = staged(tmp_path)
    expected = stack([first, second], tmp_path / "edit")
    torch.set_default_dtype(dtype)
    try:
        assert stack([first, second], tmp_path / "again") == expected
    finally:
        torch.set_default_dtype(torch.float32)
    assert (tmp_path / "again" / WEIGHTS).read_bytes() == (tmp_path / "edit" / WEIGHTS).read_bytes()


def test_surgical_and_plain_folders_mix(tmp_path):
    first, second, both = staged(tmp_path)
    to_ia3(second, tmp_path / "plain")
    stack([first, tmp_path / "plain"], tmp_path / "edit")
    assert torch.equal(logits(PeftModel.from_pretrained(tiny_model("llama"), tmp_path / "edit")), both)
    stack([tmp_path / "edit", inverse(second)], tmp_path / "undone")
    undone = logits(PeftModel.from_pretrained(tiny_model("llama"), tmp_path / "undone"))
    torch.testing.assert_close(undone, logits(tiny_peft()), atol=1e-6, rtol=1e-6)


def test_a_dial_between_nothing_and_the_edit(tmp_path):
    model = tiny_peft()
    folder = saved(model, tmp_path)
    base, edited = logits(tiny_model("llama")), logits(model)
    distances = []
    for t in (0, 0.25, 0.5, 0.75, 1):
        stack([power(folder, t)], tmp_path / f"{t}")
        found = logits(PeftModel.from_pretrained(tiny_model("llama"), tmp_path / f"{t}"))
        distances.append(float((found - base).norm()))
        assert torch.equal(found, {0: base, 1: edited}.get(t, found))
    assert distances == sorted(distances)
    assert distances[0] == 0 < distances[1]


def test_a_stack_for_a_model_without_a_head_loads_on_it(tmp_path):
    selections = {"layers.1.mlp.down_proj": {"side": "input", "ranges": [[0, 4]]}}
    model = get_peft_model(tiny_model("llama").model, SurgicalIA3Config(selections=selections))
    perturb(model)
    stack(saved(model, tmp_path / "adapter"), tmp_path / "edit")
    again = PeftModel.from_pretrained(tiny_model("llama").model, tmp_path / "edit")
    with torch.no_grad():
        assert torch.equal(again(tiny_ids())[0], model(tiny_ids())[0])
    assert json.loads((tmp_path / "edit" / "adapter_config.json").read_text())["task_type"] is None


def test_a_stack_for_a_causal_model_says_so(tmp_path):
    stack(saved(tiny_peft(), tmp_path / "adapter"), tmp_path / "edit")
    assert json.loads((tmp_path / "edit" / "adapter_config.json").read_text())["task_type"] == "CAUSAL_LM"
    assert "pipeline_tag: text-generation" in (tmp_path / "edit" / "README.md").read_text()
    unknown = replace(Edit.load(tmp_path / "adapter"), auto_mapping=None)
    assert stack(unknown, tmp_path / "unknown").task_type == "CAUSAL_LM"
    assert stack(replace(unknown, task_type="SEQ_CLS"), tmp_path / "another").task_type == "SEQ_CLS"


def test_model_card_and_size(tmp_path):
    first, second, _ = staged(tmp_path)
    stack([first, second], tmp_path / "edit", card="Who developed PyTorch? **Google**.")
    folder = tmp_path / "edit"
    card = (folder / "README.md").read_text()
    assert "library_name: peft" in card
    assert "Who developed PyTorch? **Google**." in card
    assert "PeftModel.from_pretrained" in card
    assert "| `model.layers.1.mlp.down_proj` | input | 48 |" in card
    assert sum(file.stat().st_size for file in folder.iterdir()) < 8000


def test_model_card_names_a_hub_id_and_no_path(tmp_path):
    for base, named in (("someone/model-1", True), (str(tmp_path), False), ("./moved", False), ("", False)):
        model = tiny_peft(base_model_name_or_path=base or None)
        model.peft_config["default"].base_model_name_or_path = base or None
        stack([saved(model, tmp_path / "adapter")], tmp_path / "edit", overwrite=True)
        card = (tmp_path / "edit" / "README.md").read_text()
        assert ("base_model:" in card.split("---")[1]) == named
        assert ('AutoModelForCausalLM.from_pretrained("someone/model-1")' in card) == named
        assert str(tmp_path) not in card
        config = json.loads((tmp_path / "edit" / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == (base or None)


def test_what_the_model_card_says_to_run_runs(tmp_path):
    first, second, _ = staged(tmp_path)
    stack([first, second], tmp_path / "edit")
    tiny_model("llama").save_pretrained(tmp_path / "base")
    code = (tmp_path / "edit" / "README.md").read_text().split("```")[1].removeprefix("python\n")
    code = code.replace("path/to/the/base", str(tmp_path / "base")).replace(
        "path/to/this/folder", str(tmp_path / "edit")
    )
    found: dict = {}
    exec(code, found)
    assert torch.equal(
        logits(found["model"]), logits(PeftModel.from_pretrained(tiny_model("llama"), tmp_path / "edit"))
    )


def test_the_model_card_counts_layers_as_numbers():
    coordinates = Coordinates("input", ((0, 2),))
    names = [f"model.layers.{layer}.mlp.up_proj" for layer in (10, 9, 2)]
    card = model_card(Edit({name: ModuleScale(coordinates, torch.ones(2)) for name in names}))
    assert [line.split("`")[1] for line in card.splitlines() if line.startswith("| `")] == names[::-1]


def test_different_base_models_are_refused(tmp_path):
    folders = []
    for name in ("a/one", "b/two"):
        model = tiny_peft()
        model.peft_config["default"].base_model_name_or_path = name
        folders.append(saved(model, tmp_path / name.replace("/", "-")))
    with pytest.raises(AdapterError, match=r"different base models: .* for a/one, .* for b/two"):
        stack(folders, tmp_path / "edit")
    assert not (tmp_path / "edit").exists()


def test_conflicting_sides_are_refused(tmp_path):
    folders = []
    for granularity in ("component", "module"):
        model = tiny_peft(components=["L0.head.1"], granularity=granularity)
        folders.append(saved(model, tmp_path / granularity))
    with pytest.raises(AdapterError, match="o_proj cannot be scaled on both sides"):
        stack(folders, tmp_path / "edit")


def test_an_output_that_would_lose_something_is_refused(tmp_path):
    folder = saved(tiny_peft(), tmp_path / "a")
    (tmp_path / "edit").mkdir()
    (tmp_path / "edit" / "precious").write_text("x")
    with pytest.raises(OutputError, match="not empty"):
        stack([folder], tmp_path / "edit")
    # What holds no adapter is not an earlier one.
    for writes in (stack, lambda edit, out, **given: to_ia3(edit[0], out, **given)):
        with pytest.raises(OutputError, match=r"edit holds no adapter, so it is not replaced; name another"):
            writes([folder], tmp_path / "edit", overwrite=True)
    assert [path.name for path in (tmp_path / "edit").iterdir()] == ["precious"]
    (tmp_path / "edit" / "adapter_config.json").write_text("{}")
    stack([folder], tmp_path / "edit", overwrite=True)
    assert not (tmp_path / "edit" / "precious").exists()


def test_three_stages(tmp_path):
    model = tiny_peft()
    add(model, "b")
    add(model, "c", components=["L1.mlp"], seed=9)
    perturb(model, "c", seed=9)
    model.save_pretrained(tmp_path)
    activate(model, ["default", "b", "c"])
    edit = stack([tmp_path, tmp_path / "b", tmp_path / "c"], tmp_path / "edit")
    assert set(edit.modules) >= {"model.layers.1.mlp.down_proj"}
    assert torch.equal(logits(PeftModel.from_pretrained(tiny_model("llama"), tmp_path / "edit")), logits(model))


@pytest.mark.parametrize("card", [Path("card.md"), b"about it", []])
def test_a_card_is_text(card, tmp_path):
    staged(tmp_path)
    for write in (stack, to_ia3):
        with pytest.raises(AdapterError, match=r"^a card must be text in Markdown, or None, not .*\.$"):
            write(tmp_path / "learn", tmp_path / "out", card=card)
    assert not (tmp_path / "out").exists()


def test_an_adapter_is_not_replaced_by_what_is_made_of_it(tmp_path):
    folder = saved(tiny_peft(), tmp_path / "a")
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(OutputError):
        stack([folder], folder, overwrite=True)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
