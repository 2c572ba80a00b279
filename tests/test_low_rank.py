import copy
import json
import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from peft_surgical.adapters.edits import Edit
from peft_surgical.adapters.export import to_ia3
from peft_surgical.adapters.low_rank import LowRank, is_low_rank
from peft_surgical.errors import AdapterError, SelectionError
from peft_surgical.merging import merge

from .adapters import logits, saved, tiny_peft
from .tiny import tiny_model

FAMILIES = {"llama": "down_proj", "gpt2": "c_proj", "phi3": "down_proj"}


def lora(family, folder, **options):
    """A LoRA adapter with numbers in both factors, on a tiny model and saved."""
    config = LoraConfig(**{"r": 2, "lora_alpha": 3, "target_modules": [FAMILIES[family]], **options})
    if family == "gpt2":
        config.fan_in_fan_out = True
    torch.manual_seed(0)
    model = get_peft_model(tiny_model(family), config).eval()
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, 0, 0.1)
    model.save_pretrained(folder)
    return model


# Of one module more or less than of the others, by name or by pattern.
OWN = {"rank_pattern": {"layers.0.mlp.down_proj": 4}, "alpha_pattern": {r".*\.1\..*(down|c)_proj": 7}}


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, OWN])
@pytest.mark.parametrize("family", FAMILIES)
def test_merging_is_pefts_own_merge_and_leaves_the_model(family, options, tmp_path):
    model = lora(family, tmp_path / "lora", **options)
    base = tiny_model(family)
    before = copy.deepcopy(base.state_dict())
    merge(base, [tmp_path / "lora"], tmp_path / "merged")
    assert all(torch.equal(before[key], value) for key, value in base.state_dict().items())
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(logits(merged), logits(model), rtol=1e-5, atol=1e-5)
    for key, value in model.merge_and_unload().state_dict().items():
        torch.testing.assert_close(merged.state_dict()[key], value, rtol=1e-6, atol=1e-7)


def test_the_callers_autocast_rounds_nothing(tmp_path):
    lora("llama", tmp_path / "lora")
    merge(tiny_model("llama"), tmp_path / "lora", tmp_path / "merged")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        merge(tiny_model("llama"), tmp_path / "lora", tmp_path / "again")
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("merged", "again"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_what_half_precision_loses_is_said(tmp_path):
    model = lora("llama", tmp_path / "lora")
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data[:] = 1e-5
    model.save_pretrained(tmp_path / "small")
    base = tiny_model("llama", dtype=torch.bfloat16)
    with pytest.warns(UserWarning, match="merge in float32 to keep it"):
        merge(base, [tmp_path / "small"], tmp_path / "half")
    merge(base, [tmp_path / "small"], tmp_path / "full", dtype="float32")
    assert {t.dtype for t in load_file(tmp_path / "full" / "model.safetensors").values()} == {torch.float32}


def test_what_a_smaller_dtype_loses_is_said(tmp_path):
    model = lora("llama", tmp_path / "lora")
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data[:] = 1e-5
    model.save_pretrained(tmp_path / "small")
    with pytest.warns(UserWarning, match="merge in float32 to keep it"):
        merge(tiny_model("llama"), [tmp_path / "small"], tmp_path / "merged", dtype="bfloat16")


def test_weights_that_nothing_is_added_to_are_not_lost(tmp_path):
    # As a keyed edit, which writes a column of a matrix.
    first = torch.zeros(1, 48)
    first[0, 5] = 1
    update = LowRank({"model.layers.1.mlp.down_proj": (first, torch.ones(32, 1))})
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        merge(tiny_model("llama", dtype=torch.bfloat16), update, tmp_path / "merged")


def test_weights_in_double_precision_keep_it(tmp_path):
    lora("llama", tmp_path / "lora")
    base = tiny_model("llama").double()
    for parameter in base.parameters():
        parameter.data += 1e-10
    merge(base, [tmp_path / "lora"], tmp_path / "merged")
    key = "model.layers.1.mlp.down_proj.weight"
    added = LowRank.load(tmp_path / "lora").added(key.removesuffix(".weight"))
    assert torch.equal(load_file(tmp_path / "merged" / "model.safetensors")[key], base.get_parameter(key) + added)


def test_what_is_more_than_two_factors_is_left_to_peft(tmp_path):
    lora("llama", tmp_path / "dora", use_dora=True)
    with pytest.raises(AdapterError, match="merge_and_unload"):
        LowRank.load(tmp_path / "dora")
    # An adapter that acts after some tokens only, and one that took its beginning out of the base's weights.
    lora("llama", tmp_path / "lora")
    config = tmp_path / "lora" / "adapter_config.json"
    whole = json.loads(config.read_text())
    for more in ({"alora_invocation_tokens": [3, 4]}, {"init_lora_weights": "pissa"}, {"init_lora_weights": []}):
        config.write_text(json.dumps({**whole, **more}))
        with pytest.raises(AdapterError, match="merge_and_unload"):
            LowRank.load(tmp_path / "lora")
    config.write_text(json.dumps({**whole, "init_lora_weights": "gaussian"}))
    assert len(LowRank.load(tmp_path / "lora").factors) > 0


@pytest.mark.parametrize("kind", ["lora", "surgical", "ia3"])
def test_what_a_newer_version_has_set_is_told(kind, tmp_path):
    folder = tmp_path / "adapter"
    if kind == "lora":
        lora("llama", folder)
    elif kind == "surgical":
        saved(tiny_peft(), folder)
    else:
        to_ia3(Edit.load(saved(tiny_peft(), tmp_path / "scales")), folder)
    read = LowRank.load if kind == "lora" else Edit.load
    config = folder / "adapter_config.json"
    whole = json.loads(config.read_text())
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        read(folder)
        config.write_text(json.dumps({**whole, "use_new": False, "new_config": None}))
        read(folder)
    config.write_text(json.dumps({**whole, "use_new": True, "other": False, "new_rank": 3}))
    with pytest.warns(UserWarning, match=r"has 'new_rank', 'use_new', which is not known here and is left out"):
        read(folder)


def test_what_cannot_be_merged_is_refused(tmp_path):
    lora("llama", tmp_path / "lora")
    scales = saved(tiny_peft(), tmp_path / "scales")
    assert is_low_rank(tmp_path / "lora")
    assert not is_low_rank(scales)
    out = tmp_path / "merged"
    for together in ([scales, tmp_path / "lora"], [Edit.load(scales), LowRank.load(tmp_path / "lora")]):
        with pytest.raises(AdapterError, match="merged alone"):
            merge(tiny_model("llama"), together, out)
    with pytest.raises(SelectionError, match="no module named"):
        merge(tiny_model("gpt2"), [tmp_path / "lora"], out)
    with pytest.raises(AdapterError, match="this model has a weight of shape"):
        merge(tiny_model("llama", intermediate_size=64), [tmp_path / "lora"], out)
    tied = LowRank({"lm_head": (torch.ones(1, 32), torch.ones(tiny_model("qwen2").lm_head.out_features, 1))})
    with pytest.raises(AdapterError, match=r"lm_head\.weight is tied"):
        merge(tiny_model("qwen2"), [tied], out)
    assert not out.exists()


def test_a_damaged_folder_is_one_sentence(tmp_path):
    lora("llama", tmp_path / "lora")
    config, weights = (tmp_path / "lora" / name for name in ("adapter_config.json", "adapter_model.safetensors"))
    whole, tensors = json.loads(config.read_text()), load_file(weights)
    for alpha in (None, True, "3"):
        config.write_text(json.dumps({**whole, "lora_alpha": alpha}))
        with pytest.raises(AdapterError, match=r"lora_alpha in .* cannot be"):
            LowRank.load(tmp_path / "lora")
    for own in ([3], {"(": 2}, "mlp", {"down_proj": "x"}):
        config.write_text(json.dumps({**whole, "alpha_pattern": own}))
        with pytest.raises(AdapterError, match=r"alpha_pattern in .* cannot be"):
            LowRank.load(tmp_path / "lora")
    config.write_text(json.dumps(whole))
    first = next(key for key in tensors if "lora_B" in key)
    save_file({**tensors, first: torch.ones(3, 5)}, weights)
    with pytest.raises(AdapterError, match="two factors of one rank"):
        LowRank.load(tmp_path / "lora")
    save_file({key: tensor for key, tensor in tensors.items() if key != first}, weights)
    with pytest.raises(AdapterError, match="two factors of one rank"):
        LowRank.load(tmp_path / "lora")
    save_file({"base_model.model.other": torch.ones(2)}, weights)
    with pytest.raises(AdapterError, match=r"holds base_model\.model\.other"):
        LowRank.load(tmp_path / "lora")
