"""Adapter folders that are damaged, foreign or hostile, given to every command that reads one.

| Input | What comes of it |
|---|---|
| weights cut, flipped in one bit, empty, or no safetensors | refused |
| scales that are whole numbers, NaN, of another shape, missing, or too many | refused |
| a configuration that is cut, of another kind, or lies about names, ranges and widths | refused |
| an adapter for a model of another width, depth, MLP or architecture | refused |
| an adapter for a model of the same shapes and another name | a warning |
| LoRA weights, ours or not, that are flipped in one bit, cut or NaN | refused |
| a pickle, alone or beside safetensors | refused, or not looked at |
| a configuration that names further adapters to load, or a module to import | refused, nothing of either is done |
| an adapter name that leads out of the folder | refused, nothing written |

Refused is one line on standard error, exit status 2, and nothing written.
"""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

import peft_surgical as ps
from peft_surgical.adapters.adapter_files import CONFIG, PICKLE, WEIGHTS, write_plain
from peft_surgical.adapters.saving import save_adapter
from peft_surgical.adapters.scale_files import write_tensors
from peft_surgical.errors import AdapterError, SurgicalError, brief

from .adapters import perturb
from .command_line import PROMPT, run, said, written
from .fuzzing import flipped
from .localizing import planted, word_tokenizer
from .tiny import tiny_model

KINDS = ("surgical", "plain")


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """The same adapter of the planted model as a surgical and as a plain one."""
    root = tmp_path_factory.mktemp("good")
    model = get_peft_model(planted(), ps.SurgicalIA3Config(components=["L1.head.2", "L2.mlp"]))
    perturb(model)
    save_adapter(model, "default", root / "surgical")
    write_plain(ps.Edit.load(root / "surgical"), root / "plain")
    return root


def commands(adapter, fact_file, model, out):
    """Every command that reads an adapter."""
    where = ["--model", model]
    return {
        "stack": ["stack", adapter, "--out", out],
        "merge": ["merge", adapter, *where, "--out", out],
        "evaluate": ["evaluate", fact_file, *where, "--adapter", adapter, "--retention-tokens", 0, "--out", out],
        "ask": ["ask", *where, "--adapter", adapter, "--max-tokens", 2, PROMPT],
        "dial": ["ask", *where, "--adapter", adapter, "--dial", 0.5, "--max-tokens", 2, PROMPT],
    }


def weights(folder, change):
    (folder / WEIGHTS).write_bytes(change((folder / WEIGHTS).read_bytes()))


def tensors(folder, change):
    changed = change(load_file(folder / WEIGHTS))
    save_file({key: tensor.contiguous() for key, tensor in changed.items()}, folder / WEIGHTS)


def config(folder, **changes):
    values = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**values, **changes}))


def first(change):
    """A change to the first tensor only."""
    return lambda found: {**found, min(found): change(found[min(found)])}


def nested(folder):
    (folder / CONFIG).write_text('{"a":' * 100_000)


DAMAGES = {
    "cut": (lambda f: weights(f, lambda raw: raw[:-5]), "cannot be read"),
    "a bit flipped": (lambda f: weights(f, lambda raw: flipped(raw, 8 * len(raw) - 20)), "is damaged"),
    "empty": (lambda f: weights(f, lambda raw: b""), "cannot be read"),
    "no safetensors": (lambda f: weights(f, lambda raw: b"PK\3\4" + raw), "cannot be read"),
    "a folder": (lambda f: (os.remove(f / WEIGHTS), (f / WEIGHTS).mkdir()), WEIGHTS),
    "no weights": (lambda f: os.remove(f / WEIGHTS), f"has no {WEIGHTS}"),
    "whole numbers": (lambda f: tensors(f, first(lambda t: t.to(torch.int8))), "as int8; scales are float32"),
    "NaN": (lambda f: tensors(f, first(lambda t: t * float("nan"))), "not finite"),
    "too large": (lambda f: tensors(f, first(lambda t: t.double() * 1e300 + 1e300)), "not finite"),
    "nothing in it": (lambda f: tensors(f, first(lambda t: t[:0])), "holds an empty tensor"),
    "no configuration": (lambda f: os.remove(f / CONFIG), f"has no {CONFIG}"),
    "a cut configuration": (lambda f: (f / CONFIG).write_text("{"), "cannot be read"),
    "a nested configuration": (nested, "nested too deeply"),
    "an unknown kind": (lambda f: config(f, peft_type="\x1b[31mX"), "adapter"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", DAMAGES)
def test_a_damaged_adapter(what, kind, good, tmp_path, fact_file, model_folder):
    adapter = shutil.copytree(good / kind, tmp_path / "adapter")
    change, words = DAMAGES[what]
    change(adapter)
    before = written(tmp_path)
    for arguments in commands(adapter, fact_file, model_folder, tmp_path / "out").values():
        line = said(run(*arguments), 2)
        assert words in line
        assert "\x1b" not in line
        assert written(tmp_path) == before


WRONG = {
    "a shape": (first(lambda t: t[:-1]), {}, "coordinates of"),
    "one missing": (lambda found: {max(found): found[max(found)]}, {}, "holds no scales for it"),
    "one too many": (lambda found: {**found, "base_model.model.lm_head.weight": torch.zeros(2)}, {}, "also holds"),
    "no selections": (None, {"selections": None, "components": ["L1.mlp"], "target_modules": None}, "components only"),
    "ranges too wide": (
        None,
        {"selections": {"a": {"side": "input", "ranges": [[0, 10**12]]}}},
        "no module is so wide",
    ),
    "a width too wide": (None, {"features": {"a": 10**12}}, "features must map"),
    "names that are numbers": (None, {"components": [1]}, "components must be a list of names"),
    "modules to save that are one name": (None, {"modules_to_save": "lm_head"}, "modules_to_save must be a list of"),
    "a base that is a list": (None, {"base_model_name_or_path": ["x"]}, "cannot be ['x']"),
    "a task that is not one": (None, {"task_type": "RULE_THE_WORLD"}, "task_type"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_surgical_adapter_that_contradicts_itself(what, good, tmp_path):
    adapter = shutil.copytree(good / "surgical", tmp_path / "adapter")
    change, changes, words = WRONG[what]
    if change:
        tensors(adapter, change)
    config(adapter, **changes)
    assert words in said(run("stack", adapter, "--out", tmp_path / "out"), 2)
    assert written(tmp_path) == ["adapter"]


OTHERS = {
    "wider": ("llama", {"hidden_size": 64}),
    "shallower": ("llama", {"num_hidden_layers": 1}),
    "other MLPs": ("llama", {"intermediate_size": 64}),
    "GPT-2": ("gpt2", {}),
}


@pytest.mark.parametrize("other", OTHERS)
def test_an_adapter_for_another_model(other, good, tmp_path, fact_file):
    family, changes = OTHERS[other]
    tiny_model(family, **changes).save_pretrained(tmp_path / "model")
    word_tokenizer().save_pretrained(tmp_path / "model")
    before = written(tmp_path)
    for kind in KINDS:
        given = commands(good / kind, fact_file, tmp_path / "model", tmp_path / "out")
        for arguments in [given[name] for name in ("merge", "evaluate", "ask", "dial")]:
            line = said(run(*arguments), 2)
            assert re.search(r"layers\.[12]\.(self_attn\.o_proj|mlp\.down_proj)", line)
            assert len(line) < 500
            assert written(tmp_path) == before


def test_an_adapter_of_the_same_shapes_for_another_model(good, tmp_path, fact_file, model_folder):
    adapter, same = shutil.copytree(good / "surgical", tmp_path / "adapter"), f"elsewhere/{model_folder.name.upper()}"
    for made_for, warned in ((None, False), (same, False), ("somebody/another", True)):
        config(adapter, base_model_name_or_path=made_for)
        given = commands(adapter, fact_file, model_folder, tmp_path / "out")
        for name in ("merge", "evaluate", "ask", "dial"):
            result = run(*given[name], "--quiet")
            assert result.exit_code == 0, result.output
            words = f"made for 'somebody/another'; this model is {brief(str(model_folder))}."
            assert result.stderr.splitlines() == [f"Warning: the adapter {adapter} was {words}"] * warned
            shutil.rmtree(tmp_path / "out", ignore_errors=True)


@pytest.mark.parametrize("what", ["cut", "a bit flipped", "NaN", "too large"])
def test_a_damaged_low_rank_adapter(what, tmp_path, fact_file, model_folder):
    adapter = tmp_path / "adapter"
    get_peft_model(planted(), LoraConfig(target_modules=["q_proj"], r=2)).save_pretrained(adapter)
    # As keyed edits are saved, with a digest.
    write_tensors(adapter / WEIGHTS, load_file(adapter / WEIGHTS))
    given = commands(adapter, fact_file, model_folder, tmp_path / "out")
    assert run(*given["ask"]).exit_code == 0
    change, words = DAMAGES[what]
    change(adapter)
    for name in ("merge", "evaluate", "ask"):
        assert words in said(run(*given[name]), 2)
    assert written(tmp_path) == ["adapter", "fact.yaml"]


class Payload:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("kind", KINDS)
def test_a_pickle_is_never_opened(kind, good, tmp_path, fact_file, model_folder):
    adapter = shutil.copytree(good / kind, tmp_path / "adapter")
    torch.save(Payload(tmp_path / "ran"), adapter / PICKLE)
    given = commands(adapter, fact_file, model_folder, tmp_path / "out")
    assert run(*given["ask"]).exit_code == run(*given["stack"]).exit_code == 0
    shutil.rmtree(tmp_path / "out")
    os.remove(adapter / WEIGHTS)
    for arguments in given.values():
        assert "only a pickle" in said(run(*arguments), 2)
    # A pickle under the safetensors name is no safetensors file.
    os.rename(adapter / PICKLE, adapter / WEIGHTS)
    for arguments in given.values():
        assert "cannot be read" in said(run(*arguments), 2)
    assert written(tmp_path) == ["adapter", "fact.yaml"]


def test_an_adapter_that_names_further_ones(good, tmp_path, fact_file, model_folder):
    adapter = shutil.copytree(good / "plain", tmp_path / "adapter")
    config(adapter, peft_type="XLORA", adapters={"0": str(good / "plain")}, hidden_size=32)
    given = commands(adapter, fact_file, model_folder, tmp_path / "out")
    for name in ("evaluate", "ask"):
        assert "names further ones to load" in said(run(*given[name]), 2)
    assert "XLORA" in said(run(*given["stack"]), 2)
    assert written(tmp_path) == ["adapter", "fact.yaml"]


def test_an_adapter_that_names_a_module_to_import(tmp_path, model_folder, monkeypatch):
    adapter = tmp_path / "adapter"
    get_peft_model(planted(), LoraConfig(target_modules=["q_proj"], r=2)).save_pretrained(adapter)
    (tmp_path / "evil_module.py").write_text(f"import os; os.mkdir({str(tmp_path / 'ran')!r})")
    monkeypatch.syspath_prepend(tmp_path)
    ask = ["ask", "--model", model_folder, "--adapter", adapter, "--max-tokens", 2, PROMPT]
    assert run(*ask).exit_code == 0
    config(adapter, megatron_config={"a": 1}, megatron_core="evil_module")
    assert "cannot be put on this model" in said(run(*ask), 2)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["TMP/evil", "a/b", "..", ".", ""])
def test_names_that_lead_out_of_the_folder(name, tmp_path):
    model = get_peft_model(planted(), ps.SurgicalIA3Config(components=["L1.mlp"]))
    name = name.replace("TMP", str(tmp_path))
    # PEFT itself takes such names, absolute paths among them.
    model.peft_config[name] = model.peft_config["default"]
    with pytest.raises(AdapterError, match="cannot be the name of a folder"):
        save_adapter(model, name, tmp_path / "out")
    assert written(tmp_path) == []


def test_module_names_are_no_paths(good, tmp_path):
    adapter = shutil.copytree(good / "plain", tmp_path / "adapter")
    tensors(adapter, lambda found: {"base_model.model.../../evil.ia3_l": torch.ones(1, 8) * 2, **found})
    with pytest.raises(AdapterError, match="its configuration does not target"):
        ps.stack([adapter], tmp_path / "out")
    targets = json.loads((adapter / CONFIG).read_text())["target_modules"]
    config(adapter, target_modules=[*targets, "../../evil"])
    ps.stack([adapter], tmp_path / "out")
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file() and "evil" in str(path)) == []
    with pytest.raises(SurgicalError, match="no module named"):
        ps.merge(planted(), [tmp_path / "out"], tmp_path / "merged")
    assert written(tmp_path) == ["adapter", "out"]
