"""What adapters from elsewhere may hold, and what of it the base or the adapter would be mistaken for."""

import json
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from peft import IA3Config, LoHaConfig, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from peft_surgical.adapters.fitting import (
    check_all_acts,
    check_beginning,
    check_leaves_base,
    check_same_weights,
    check_targeted,
)
from peft_surgical.adapters.low_rank import LowRank
from peft_surgical.errors import AdapterError
from peft_surgical.measuring.attached import attach, check_together

from .adapters import logits, tiny_peft
from .tiny import tiny_model

WEIGHTS = "adapter_model.safetensors"


def saved(folder, config, family="llama", seed=0):
    """A stock adapter of which every parameter differs from what it began with."""
    model = get_peft_model(tiny_model(family), config)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(folder)
    return folder


def rewritten(folder, change):
    """The folder, with its tensors as `change` makes them."""
    save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS, {"format": "pt"})
    return folder


@pytest.mark.parametrize("beginning", ["pissa", "olora"])
def test_what_took_its_beginning_from_the_base_is_refused(beginning, tmp_path):
    config = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=beginning)
    get_peft_model(tiny_model("llama"), config).save_pretrained(tmp_path)
    base = logits(tiny_model("llama"))
    loaded = PeftModel.from_pretrained(tiny_model("llama"), tmp_path)
    # Untrained, it is the base; and without it that is no longer the base.
    torch.testing.assert_close(logits(loaded), base)
    with loaded.disable_adapter():
        assert not torch.allclose(logits(loaded), base, atol=1e-2)
    for read in (check_together, lambda folders: attach(tiny_model("llama"), folders)):
        with pytest.raises(AdapterError, match=f"was initialized with '{beginning}', which may have changed the base"):
            read([tmp_path])


@pytest.mark.parametrize("bias", ["lora_only", "all"])
def test_trained_biases_of_the_base_are_refused_and_equal_ones_are_not(bias, tmp_path):
    folder = saved(tmp_path, LoraConfig(r=2, target_modules=["c_attn"], bias=bias, fan_in_fan_out=True), "gpt2")
    base = tiny_model("gpt2")
    before = {name: value.clone() for name, value in base.state_dict().items()}
    with pytest.raises(AdapterError, match=r"holds transformer\..*bias of the base itself, with other values"):
        attach(base, [folder])
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())

    def as_before(tensors):
        own = {key.removeprefix("base_model.model.").replace(".base_layer.", "."): key for key in tensors}
        return tensors | {own[name]: value for name, value in before.items() if name in own}

    model, states = attach(tiny_model("gpt2"), [rewritten(folder, as_before)])
    with states["base"]():
        assert torch.equal(logits(model), logits(tiny_model("gpt2")))


def test_weights_of_a_larger_vocabulary_are_told_of_by_their_size(tmp_path):
    folder = saved(tmp_path, LoraConfig(r=2, target_modules=["q_proj"]))
    rewritten(folder, lambda tensors: tensors | {"base_model.model.lm_head.weight": torch.zeros(130, 32)})
    with pytest.raises(AdapterError, match=r"cannot be put on this model: .*size mismatch"):
        attach(tiny_model("llama"), [folder])


def test_whole_modules_may_differ(tmp_path):
    folder = saved(tmp_path, LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]))
    model, states = attach(tiny_model("llama"), [folder])
    with states["base"]():
        assert torch.equal(logits(model), logits(tiny_model("llama")))
    with states["edited"]():
        assert not torch.allclose(logits(model), logits(tiny_model("llama")))


@pytest.mark.parametrize("whole", ["mlp", "self_attn"])
def test_whole_modules_that_have_modules_of_their_own_may_differ(whole, tmp_path):
    target = "q_proj" if whole == "mlp" else "down_proj"
    folder = saved(tmp_path, LoraConfig(r=2, target_modules=[target], modules_to_save=[whole]))
    model, states = attach(tiny_model("llama"), [folder])
    with states["base"]():
        assert torch.equal(logits(model), logits(tiny_model("llama")))
    with states["edited"]():
        assert not torch.allclose(logits(model), logits(tiny_model("llama")))
    # What only begins like such a module is the base's own.
    key = "model.layers.1.post_attention_layernorm.weight"
    rewritten(folder, lambda tensors: tensors | {f"base_model.model.{key}": torch.full((32,), 2.0)})
    with pytest.raises(AdapterError, match=f"holds {key} of the base itself, with other values"):
        attach(tiny_model("llama"), [folder])


@pytest.mark.parametrize(
    "config",
    [LoraConfig(r=2, target_modules=["q_proj"]), LoHaConfig(r=2, target_modules=["q_proj"])],
    ids=["lora", "loha"],
)
def test_what_a_file_lacks_is_told_of_every_adapter(config, tmp_path):
    whole = saved(tmp_path / "whole", config)
    cut = rewritten(saved(tmp_path / "cut", config, seed=1), lambda t: {k: t[k] for k in list(t)[1:]})
    for folders in ([cut], [whole, cut]):
        with pytest.raises(AdapterError, match=r"missing adapter keys|lacks base_model.*, which its configuration"):
            attach(tiny_model("llama"), folders)
    other = saved(tmp_path / "other", config, seed=1)
    assert list(attach(tiny_model("llama"), [whole, other])[1]) == ["base", "after 1", "edited"]


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(r=2, target_modules=["q_proj"]),
        IA3Config(target_modules=["down_proj"], feedforward_modules=["down_proj"]),
    ],
    ids=["lora", "ia3"],
)
def test_what_a_model_has_no_place_for_is_told_of_every_adapter(config, tmp_path):
    whole = saved(tmp_path / "whole", config)
    short = saved(tmp_path / "short", config)
    for folder in (whole, short):
        assert len(load_file(folder / WEIGHTS)) >= 3
    rewritten(short, lambda tensors: {key: value for key, value in tensors.items() if "layers.2" not in key})
    settings = json.loads((short / "adapter_config.json").read_text())
    (short / "adapter_config.json").write_text(json.dumps({**settings, "exclude_modules": [r"model.layers.2"]}))

    def two_layers():
        return tiny_model("llama", num_hidden_layers=2)

    attach(two_layers(), [short])
    for folders in ([whole], [short, whole]):
        with pytest.raises(AdapterError, match=r"holds .*layers\.2\..*, for which the model has no place"):
            attach(two_layers(), folders)


def test_what_the_configuration_does_not_target_is_not_merged_either(tmp_path):
    folder = saved(tmp_path / "lora", LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    settings = json.loads((folder / "adapter_config.json").read_text())
    LowRank.load(folder)
    for change in (
        {"target_modules": ["q_proj"]},
        {"target_modules": r".*\.q_proj"},
        {"exclude_modules": ["v_proj"]},
        {"layers_to_transform": [0, 1]},
    ):
        (folder / "adapter_config.json").write_text(json.dumps({**settings, **change}))
        with pytest.raises(AdapterError, match=r"holds something for model\.layers\..*_proj, which its configuration"):
            LowRank.load(folder)
        with pytest.raises(AdapterError, match="for which the model has no place"):
            attach(tiny_model("llama"), [folder])
    wrong = r"lora cannot target modules in that way: .+\."
    for odd, message in (("(", wrong), (3, wrong), ([3], "which its configuration does not target")):
        (folder / "adapter_config.json").write_text(json.dumps({**settings, "target_modules": odd}))
        with pytest.raises(AdapterError, match=message):
            LowRank.load(folder)


@pytest.mark.parametrize(
    ("kept", "held", "same"),
    [
        (1.0, torch.tensor([1 + 2**-8], dtype=torch.float16), True),
        # Each is a number of a half precision, but no rounding leads from one to the other.
        (1.0, torch.tensor([1 + 5 * 2**-10], dtype=torch.float16), False),
        # Only one is.
        (1 + 3 * 2**-10, torch.tensor([1 + 3.4 * 2**-10]), True),
        (1 + 3 * 2**-10, torch.tensor([1 + 3.6 * 2**-10]), False),
        # 3.499 of the smallest halves above 0 is 3.5 of them in bfloat16.
        (3.5 * 2**-24, torch.tensor([3 * 2**-24], dtype=torch.float16), True),
        (5.0 * 2**-24, torch.tensor([3 * 2**-24], dtype=torch.float16), False),
    ],
)
def test_weights_are_the_same_up_to_a_rounding(kept, held, same):
    try:
        check_same_weights("a", {"w": torch.tensor([kept])}, {"w": held}, "this model")
    except AdapterError:
        assert not same
    else:
        assert same


def test_surgical_adapters_pass(tmp_path):
    tiny_peft().save_pretrained(tmp_path)
    model, states = attach(tiny_model("llama"), [tmp_path])
    with states["edited"]():
        assert torch.equal(logits(model), logits(tiny_peft()))


def test_weights_of_the_base_are_compared_as_the_base_holds_them(tmp_path):
    held = torch.tensor([0.1], dtype=torch.bfloat16)
    check_leaves_base(tmp_path, {}, {"base_model.model.w": torch.tensor([0.1])}, {"w": held})
    with pytest.raises(AdapterError, match="holds w of the base itself, with other values"):
        check_leaves_base(tmp_path, {}, {"base_model.model.w": held.float() + 1}, {"w": held})


def test_only_a_module_whose_name_ends_so_is_saved_whole(tmp_path):
    config = {"modules_to_save": ["proj"]}
    for name, whole in (("a.proj.weight", True), ("a.up_proj.weight", True), ("a.projector.weight", False)):
        refused = nullcontext() if whole else pytest.raises(AdapterError, match=f"holds {name} of the base itself")
        with refused:
            check_leaves_base(tmp_path, config, {name: torch.ones(2)}, {name: torch.zeros(2)})


def test_all_linear_modules_are_targeted_whatever_they_are_called(tmp_path):
    check_targeted(tmp_path, {"target_modules": "all-linear"}, ["model.layers.0.mlp.down_proj"])


def test_the_layer_is_the_one_that_the_pattern_of_layers_says(tmp_path):
    config = {"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": ["blocks"]}
    check_targeted(tmp_path, config, ["model.part.0.blocks.1.q_proj"])
    with pytest.raises(AdapterError, match=r"part\.1\.blocks\.0\.q_proj, which its configuration does not target"):
        check_targeted(tmp_path, config, ["model.part.1.blocks.0.q_proj"])


@pytest.mark.parametrize("beginning", [True, False, None, "gaussian", "eva", "orthogonal"])
def test_ways_to_begin_that_leave_the_base_alone_are_read(beginning, tmp_path):
    check_beginning(tmp_path, {"init_lora_weights": beginning})


def test_weights_of_another_shape_are_others():
    with pytest.raises(AdapterError, match="a was made on a base with another w than this model has"):
        check_same_weights("a", {"w": torch.ones(2)}, {"w": torch.ones(3)}, "this model")


def test_weights_that_are_not_in_memory_are_not_compared(tmp_path):
    check_leaves_base(tmp_path, {}, {"w": torch.ones(2)}, {"w": torch.ones(2, device="meta")})


def test_what_adapters_share_need_not_be_in_each_file(tmp_path):
    shared = SimpleNamespace(missing_keys=["base_model.vblora_vector_bank.a"], unexpected_keys=[])
    shared.missing_keys += ["prompt_encoder.a.weight", "base_model.q_proj.tinylora_v.a", "x.unilora_theta_d.a"]
    check_all_acts(tmp_path, shared)
    shared.missing_keys.append("base_model.model.q_proj.vblora_logits_A.a")
    with pytest.raises(AdapterError, match=r"lacks base_model\.model\.q_proj\.vblora_logits_A\.a"):
        check_all_acts(tmp_path, shared)
