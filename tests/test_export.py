import json
import subprocess
import sys
import warnings

import pytest
import torch
from peft import IA3Config, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from peft_surgical.adapters.algebra import inverse, power, product
from peft_surgical.adapters.edits import Edit, ModuleScale
from peft_surgical.adapters.export import from_ia3, to_ia3
from peft_surgical.errors import AdapterError, OutputError
from peft_surgical.merging import merge
from peft_surgical.stacking import stack
from peft_surgical.tuner import Coordinates, SurgicalIA3Config, activate
from tests.adapters import add, logits, perturb, saved, tiny_peft
from tests.tiny import FAMILIES, tiny_ids, tiny_model

STOCK_TARGETS = {
    "llama": (["k_proj", "v_proj", "down_proj"], ["down_proj"]),
    "gpt2": (["c_attn", "mlp.c_proj"], ["mlp.c_proj"]),
    "phi3": (r"model\.layers\.[01]\.(self_attn\.qkv_proj|mlp\.down_proj)", r".*\.down_proj"),
}


def stock(family, spread=0.4):
    targets, feedforward = STOCK_TARGETS[family]
    config = IA3Config(target_modules=targets, feedforward_modules=feedforward, task_type="CAUSAL_LM")
    model = get_peft_model(tiny_model(family), config).eval()
    generator = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        if "ia3_l" in name:
            parameter.data = 1 + spread * (2 * torch.rand(parameter.shape, generator=generator) - 1)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("granularity", ["component", "module"])
@pytest.mark.parametrize("family", FAMILIES)
def test_plain_export_gives_the_same_logits_bit_for_bit(family, granularity, dtype, tmp_path):
    model = tiny_peft(family, dtype=dtype, granularity=granularity)
    to_ia3(saved(model, tmp_path), tmp_path / "plain")
    plain = PeftModel.from_pretrained(tiny_model(family, dtype=dtype), tmp_path / "plain")
    assert type(plain.base_model).__name__ == "IA3Model"
    assert torch.equal(logits(plain), logits(model))
    assert not torch.equal(logits(plain), logits(tiny_model(family, dtype=dtype)))


def test_plain_export_has_full_names_and_never_null(tmp_path):
    to_ia3(saved(tiny_peft("gpt2", projections=["v", "pre"]), tmp_path), tmp_path / "plain")
    config = json.loads((tmp_path / "plain" / "adapter_config.json").read_text())
    assert config["feedforward_modules"] == []
    assert config["fan_in_fan_out"] is True
    assert config["target_modules"] == [
        "transformer.h.0.attn.c_attn",
        "transformer.h.1.mlp.c_fc",
        "transformer.h.2.attn.c_attn",
    ]
    tensors = load_file(tmp_path / "plain" / "adapter_model.safetensors")
    assert tensors["base_model.model.transformer.h.0.attn.c_attn.ia3_l"].shape == (96, 1)


@pytest.mark.parametrize("family", STOCK_TARGETS)
def test_import_of_any_plain_adapter(family, tmp_path):
    plain = stock(family)
    plain.save_pretrained(tmp_path / "plain")
    from_ia3(tmp_path / "plain", tmp_path / "surgical")
    surgical = PeftModel.from_pretrained(tiny_model(family), tmp_path / "surgical")
    assert type(surgical.base_model).__name__ == "SurgicalIA3Model"
    assert torch.equal(logits(surgical), logits(plain))
    assert not torch.equal(logits(plain), logits(tiny_model(family)))
    to_ia3(tmp_path / "surgical", tmp_path / "back")
    before, after = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("plain", "back"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_scales_beyond_what_a_delta_holds_come_back_to_within_a_rounding(tmp_path):
    plain = stock("llama", spread=0.95)
    plain.save_pretrained(tmp_path / "plain")
    exact, stored = from_ia3(tmp_path / "plain", tmp_path / "surgical"), Edit.load(tmp_path / "surgical")
    for name, module in exact.modules.items():
        error = (module.scale - stored.modules[name].scale).abs()
        assert error.max() <= 2**-24
        assert error[(module.scale >= 0.5) & (module.scale <= 2)].max() == 0


def test_only_changed_coordinates_come_back_as_the_selection(tmp_path):
    model = tiny_peft()
    to_ia3(saved(model, tmp_path), tmp_path / "plain")
    edit = from_ia3(tmp_path / "plain", only_changed=True)
    assert edit.config().coordinates == model.peft_config["default"].coordinates
    whole = from_ia3(tmp_path / "plain")
    assert whole.n_scales == 32 + 48 + 32


def test_an_identity_has_no_changed_coordinates(tmp_path):
    stock("llama", spread=0.0).save_pretrained(tmp_path)
    with pytest.raises(AdapterError, match=r"every scale .* is 1"):
        from_ia3(tmp_path, only_changed=True)


def test_stack_loads_where_this_package_cannot_be_imported(tmp_path):
    from peft_surgical.stacking import stack

    base = tiny_model("llama", dtype=torch.bfloat16)
    base.save_pretrained(tmp_path / "base")
    model = tiny_peft(dtype=torch.bfloat16)
    add(model, "learn")
    model.save_pretrained(tmp_path)
    stack([tmp_path, tmp_path / "learn"], tmp_path / "edit")
    activate(model, ["default", "learn"])
    save_file({"ids": tiny_ids(), "logits": logits(model)}, tmp_path / "expected.safetensors")
    script = """
import sys
sys.modules["peft_surgical"] = None  # any import of it fails from here on
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
folder = sys.argv[1]
base = AutoModelForCausalLM.from_pretrained(folder + "/base", dtype=torch.bfloat16)
expected = load_file(folder + "/expected.safetensors")
with torch.no_grad():
    unedited = base(expected["ids"]).logits
    edited = PeftModel.from_pretrained(base, folder + "/edit")(expected["ids"]).logits
assert torch.equal(edited, expected["logits"]), "not the same logits"
assert not torch.equal(edited, unedited), "no effect"
print("same bits")
"""
    result = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False)
    assert result.stdout.strip().endswith("same bits"), result.stderr


def damage(folder, what):
    config, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    content, tensors = json.loads(config.read_text()), load_file(weights)
    first = next(iter(tensors))
    match what:
        case "config":
            config.unlink()
        case "json":
            config.write_text("{")
        case "list":
            config.write_text("[]")
        case "weights":
            weights.unlink()
        case "pickle":
            weights.rename(folder / "adapter_model.bin")
        case "cut":
            weights.write_bytes(weights.read_bytes()[:-7])
        case "kind":
            config.write_text(json.dumps({**content, "peft_type": "LORA"}))
        case "selections":
            config.write_text(json.dumps({**content, "selections": None}))
        case "side":
            spec = {name: {"side": "left", "ranges": [[0, 1]]} for name in content["selections"]}
            config.write_text(json.dumps({**content, "selections": spec}))
        case "nan":
            save_file({**tensors, first: tensors[first] * float("nan")}, weights)
        case "shape":
            save_file({**tensors, first: tensors[first][:-1].contiguous()}, weights)
        case "missing":
            save_file({key: value for key, value in tensors.items() if key != first}, weights)
        case "untargeted":
            config.write_text(json.dumps({**content, "target_modules": r".*layers\.0\.mlp\.down_proj"}))
        case "no pattern":
            config.write_text(json.dumps({**content, "target_modules": "("}))
        case "more":
            save_file({**tensors, "base_model.model.lm_head.weight": torch.zeros(2)}, weights)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("config", "has no adapter_config.json"),
        ("json", "cannot be read"),
        ("list", "must hold a JSON object"),
        ("weights", "has no adapter_model.safetensors"),
        ("pickle", "holds only a pickle"),
        ("cut", "cannot be read"),
        ("kind", "holds a LORA adapter; expected SURGICAL_IA3 or IA3"),
        ("selections", "names components only"),
        ("side", "is not usable: the side of"),
        ("nan", "not finite"),
        ("shape", "selects 8 coordinates .* but holds"),
        ("missing", "holds no scales for it"),
        ("more", "also holds base_model.model.lm_head.weight"),
    ],
)
def test_damaged_folders_are_refused(what, message, tmp_path):
    folder = saved(tiny_peft(), tmp_path)
    assert Edit.load(folder).n_scales == 64
    damage(folder, what)
    with pytest.raises(AdapterError, match=message):
        Edit.load(folder)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("untargeted", r"holds something for model\.layers\.\d\.\w+\.\w+, which its configuration does not target"),
        ("no pattern", "cannot target modules in that way"),
    ],
)
def test_scales_that_peft_would_leave_out_are_refused(what, message, tmp_path):
    stock("llama").save_pretrained(tmp_path)
    assert Edit.load(tmp_path).n_scales
    damage(tmp_path, what)
    with pytest.raises(AdapterError, match=message):
        Edit.load(tmp_path)


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(AdapterError, match="there is no adapter folder"):
        Edit.load(tmp_path / "nowhere")


def test_unknown_width_is_refused(tmp_path):
    folder = saved(tiny_peft(), tmp_path)
    config = folder / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "features": None}))
    with pytest.raises(AdapterError, match=r"the width of .* is not known"):
        to_ia3(folder, tmp_path / "plain")
    assert not (tmp_path / "plain").exists()


def test_the_class_of_the_base_is_passed_on(tmp_path):
    mapping = {"base_model_class": "LlamaForCausalLM", "parent_library": "transformers.models.llama.modeling_llama"}
    folder = saved(tiny_peft(auto_mapping=mapping), tmp_path / "surgical")
    to_ia3(folder, tmp_path / "plain")
    from_ia3(tmp_path / "plain", tmp_path / "again")
    for name in ("surgical", "plain", "again"):
        assert json.loads((tmp_path / name / "adapter_config.json").read_text())["auto_mapping"] == mapping


def test_a_scaled_output_head_that_peft_saved_can_be_read(tmp_path):
    selections = {"lm_head": {"side": "input", "ranges": [[0, 8]]}}
    model = get_peft_model(tiny_model("llama"), SurgicalIA3Config(selections=selections, task_type="CAUSAL_LM"))
    perturb(model)
    model.save_pretrained(tmp_path / "peft")
    assert Edit.load(tmp_path / "peft") == model.base_model.edit("default")


def other_head():
    model = tiny_model("llama")
    with torch.no_grad():
        model.lm_head.weight.mul_(1.5)
    return model


def with_scaled_head(base):
    selections = {"lm_head": {"side": "input", "ranges": [[0, 8]]}}
    model = get_peft_model(base, SurgicalIA3Config(selections=selections, task_type="CAUSAL_LM"))
    perturb(model)
    return model


def on_the_head(base, path, dtype=torch.float32):
    with_scaled_head(base.to(dtype)).save_pretrained(path)
    return path


@pytest.mark.parametrize("unmerged", [True, False])
def test_an_adapter_on_the_head_that_was_merged_is_saved(unmerged, tmp_path):
    model = with_scaled_head(tiny_model("llama"))
    said = logits(model)
    model.merge_adapter()
    if unmerged:
        model.unmerge_adapter()
    model.save_pretrained(tmp_path, save_embedding_layers="auto" if unmerged else False)
    again = PeftModel.from_pretrained(tiny_model("llama"), tmp_path)
    assert torch.equal(logits(again), said)
    assert not torch.equal(said, logits(tiny_model("llama")))


def test_a_head_that_is_left_out_is_told_of_once(tmp_path):
    folder = on_the_head(other_head(), tmp_path / "peft")
    write = {
        "plain": lambda out: to_ia3(folder, out),
        "stack": lambda out: stack([folder], out),
        "surgical": lambda out: from_ia3(folder, out),
        "half": lambda out: power(folder, 0.5).save(out),
    }
    for name, make in write.items():
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            make(tmp_path / name)
        [said] = [each for each in told if "also holds" in str(each.message)]
        assert "also holds lm_head.weight of the base that it was made on, which is left out here" in str(said.message)
        assert (said.filename == __file__) == (name in ("plain", "half"))
        assert not any("base_layer" in key for key in load_file(tmp_path / name / "adapter_model.safetensors"))
        # What was written says no more.
        assert not Edit.load(tmp_path / name).base_weights


def test_adapters_on_different_heads_are_not_multiplied(tmp_path):
    one = on_the_head(other_head(), tmp_path / "one")
    other = on_the_head(tiny_model("llama"), tmp_path / "other")
    with pytest.raises(AdapterError, match=r"another lm_head\.weight than another adapter has"):
        product([one, other])
    assert product([one, one, inverse(one)]).base_weights


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_a_base_with_another_head_is_not_merged_into(dtype, tmp_path):
    folder = on_the_head(other_head(), tmp_path / "peft", dtype)
    with pytest.raises(AdapterError, match=r"another lm_head\.weight than this model has"):
        merge(tiny_model("llama"), folder, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    # Be it of another precision.
    for other in (torch.float32, torch.bfloat16):
        merge(other_head().to(other), folder, tmp_path / str(other))


def test_what_an_edit_says_of_its_base_comes_back_from_either_kind_of_folder(tmp_path):
    said = {
        "base_model": "org/base",
        "revision": "abc",
        "fan_in_fan_out": True,
        "task_type": "CAUSAL_LM",
        "auto_mapping": {"base_model_class": "Model", "parent_library": "library"},
    }
    scale = ModuleScale(Coordinates("input", ((0, 2),)), torch.tensor([2.0, 3.0]), 4)
    edit = Edit({"m": scale}, **said)
    edit.save(tmp_path / "surgical")
    to_ia3(edit, tmp_path / "plain")
    for kind in ("surgical", "plain"):
        found = Edit.load(tmp_path / kind)
        assert {name: getattr(found, name) for name in said} == said
        assert torch.equal(found.modules["m"].dense(4), scale.dense(4))
    for write in (edit.save, lambda path: to_ia3(edit, path)):
        with pytest.raises(OutputError):
            write(tmp_path / "plain")
    edit.save(tmp_path / "plain", overwrite=True)
    assert Edit.load(tmp_path / "plain") == edit


def test_two_names_that_peft_would_confuse_are_refused(tmp_path):
    scales = [ModuleScale(Coordinates(side, ((0, 1),)), torch.tensor([2.0]), 4) for side in ("input", "output")]
    edit = Edit(dict(zip(("proj", "x.proj"), scales, strict=True)))
    with pytest.raises(AdapterError, match=r"PEFT would take x\.proj for proj"):
        to_ia3(edit, tmp_path / "plain")
    to_ia3(Edit(dict(zip(("x.proj", "proj"), scales, strict=True))), tmp_path / "plain")


class Outer(nn.Module):
    """Linear modules whose whole names others end in, one of which is none."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.head = nn.Linear(8, 8), nn.Linear(8, 4)
        self.block = nn.ModuleDict({"norm": nn.LayerNorm(8), "head": nn.Linear(8, 8)})

    def forward(self, x):
        return self.head(self.block["head"](self.block["norm"](self.norm(x))))


@pytest.mark.parametrize("side", ["input", "output"])
@pytest.mark.parametrize("names", [["norm"], ["head"], ["norm", "head", "block.head"]])
def test_a_name_that_others_end_in_is_exported_for_its_own_module(names, side, tmp_path):
    selections = {name: {"side": side, "ranges": [[0, 3]]} for name in names}
    model = get_peft_model(Outer(), SurgicalIA3Config(selections=selections, init_weights=False))
    model.save_pretrained(tmp_path / "a")
    stack(tmp_path / "a", tmp_path / "plain")
    assert Edit.load(tmp_path / "plain").modules.keys() == selections.keys()
    plain = PeftModel.from_pretrained(Outer(), tmp_path / "plain")
    x = torch.ones(2, 8)
    assert torch.equal(plain(x), model(x))
    assert {*plain.targeted_module_names} == {*names}
    stack(tmp_path / "plain", tmp_path / "again")
    read = [json.loads((tmp_path / name / "adapter_config.json").read_text()) for name in ("plain", "again")]
    assert read[0]["target_modules"] == read[1]["target_modules"] == "|".join(sorted(names)).replace(".", r"\.")


def test_numbers_in_a_sequence_name_their_own_modules(tmp_path):
    def layers():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.ReLU(), nn.Linear(8, 8)))

    config = SurgicalIA3Config(selections={"0": {"side": "input", "ranges": [[0, 4]]}}, init_weights=False)
    model = get_peft_model(layers(), config)
    model.save_pretrained(tmp_path / "a")
    to_ia3(tmp_path / "a", tmp_path / "plain")
    x = torch.ones(2, 8)
    assert torch.equal(PeftModel.from_pretrained(layers(), tmp_path / "plain")(x), model(x))
