import copy
import json
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from peft_surgical.adapters.algebra import inverse, power, product
from peft_surgical.adapters.edits import Edit
from peft_surgical.adapters.export import to_ia3
from peft_surgical.adapters.lineage import Lineage, warn_of_lineage
from peft_surgical.adapters.low_rank import LowRank, is_low_rank
from peft_surgical.adapters.merged_edits import edit_record
from peft_surgical.errors import AdapterError, SelectionError
from peft_surgical.merging import merge
from peft_surgical.stacking import stack
from peft_surgical.tuner.fold import Rounding

from .adapters import logits, saved, tiny_peft
from .tiny import tiny_model

FAMILIES = {"llama": "down_proj", "gpt2": "c_proj", "phi3": "down_proj"}


def lora(family, folder, *, seed=0, **options):
    """A LoRA adapter with numbers in both factors, on a tiny model and saved."""
    config = LoraConfig(**{"r": 2, "lora_alpha": 3, "target_modules": [FAMILIES[family]], **options})
    if family == "gpt2":
        config.fan_in_fan_out = True
    torch.manual_seed(seed)
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


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, OWN])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_dial_is_the_base_at_0_and_the_adapter_at_1(family, options, tmp_path):
    edited, base = logits(lora(family, tmp_path / "lora", **options)), logits(tiny_model(family))
    whole = LowRank.load(tmp_path / "lora")
    distances = []
    for t in (0, 0.25, 0.5, 0.75, 1):
        power(tmp_path / "lora", t).save(tmp_path / f"{t}")
        found = logits(PeftModel.from_pretrained(tiny_model(family), tmp_path / f"{t}").eval())
        assert torch.equal(found, {0: base, 1: edited}.get(t, found))
        distances.append(float((found - base).norm()))
        for module in whole.factors:
            added = LowRank.load(tmp_path / f"{t}").added(module)
            torch.testing.assert_close(added, t * whole.added(module), rtol=1e-6, atol=1e-8)
    assert distances == sorted(distances)
    assert distances[0] == 0 < distances[1]


def test_a_dial_in_half_precision_is_the_base_at_0_and_the_adapter_at_1(tmp_path):
    lora("llama", tmp_path / "lora")

    def seen(folder):
        base = tiny_model("llama", dtype=torch.bfloat16)
        return logits(PeftModel.from_pretrained(base, folder).eval() if folder else base)

    for t, folder in ((0, None), (1, tmp_path / "lora")):
        power(tmp_path / "lora", t).save(tmp_path / f"{t}")
        assert torch.equal(seen(tmp_path / f"{t}"), seen(folder))


def test_a_part_is_merged_as_that_part_of_what_is_added(tmp_path):
    lora("llama", tmp_path / "lora")
    base, key = tiny_model("llama"), "model.layers.1.mlp.down_proj"
    merge(base, power(LowRank.load(tmp_path / "lora"), 0.25), tmp_path / "merged")
    merged = load_file(tmp_path / "merged" / "model.safetensors")[f"{key}.weight"]
    quarter = base.get_parameter(f"{key}.weight") + LowRank.load(tmp_path / "lora").added(key) / 4
    torch.testing.assert_close(merged, quarter, rtol=1e-6, atol=1e-8)


def test_what_is_saved_is_read_again_as_it_was(tmp_path):
    lora("llama", tmp_path / "lora", **OWN)
    found = LowRank.load(tmp_path / "lora")
    found.save(tmp_path / "again", card="Who says so? **Nobody**.")
    again = LowRank.load(tmp_path / "again")
    assert again.settings == found.settings
    assert again.scaling == found.scaling
    for module, both in found.factors.items():
        assert all(map(torch.equal, both, again.factors[module]))
    card = (tmp_path / "again" / "README.md").read_text()
    assert "Who says so? **Nobody**." in card
    assert "LoRA adapter of rank 4" in card
    assert str(tmp_path) not in card
    assert repr(found) == repr(again) == "LowRank(rank 4 on 3 modules)"


def test_factors_of_half_precision_are_saved_in_half_the_bytes(tmp_path):
    name = "model.layers.1.mlp.down_proj"
    made = LowRank({name: (torch.eye(2, 48), torch.full((32, 2), 0.1).half().float())}, scaling={name: 3.0})
    for t, dtype in ((1, torch.float16), (0.5, torch.float16), (0.3, torch.float32)):
        made.times(t).save(tmp_path / f"{t}")
        tensors = load_file(tmp_path / f"{t}" / "adapter_model.safetensors")
        assert {tensor.dtype for tensor in tensors.values()} == {dtype}
    # What comes from no file gets a configuration that PEFT reads alike.
    model = PeftModel.from_pretrained(tiny_model("llama"), tmp_path / "1")
    moved = model.merge_and_unload().get_parameter(f"{name}.weight") - tiny_model("llama").get_parameter(
        f"{name}.weight"
    )
    torch.testing.assert_close(moved, made.added(name), atol=1e-6, rtol=1e-5)


def test_a_part_says_what_it_is_a_part_of(tmp_path):
    lora("llama", tmp_path / "lora")
    power(tmp_path / "lora", 0.5).save(tmp_path / "half")
    assert Lineage.of(tmp_path / "half").parts == (Lineage.of(tmp_path / "lora").digest,)
    with pytest.warns(UserWarning, match="holds .*lora already, which then acts twice"):
        warn_of_lineage([tmp_path / "lora", tmp_path / "half"])
    power(tmp_path / "lora", 0).save(tmp_path / "none")
    assert Lineage.of(tmp_path / "none").parts == ()


def test_a_part_does_not_stand_for_the_whole_below_another(tmp_path):
    for number in (0, 1):
        lora("llama", tmp_path / str(number), seed=number)
    half, whole = power(tmp_path / "0", 0.5), tmp_path / "0"
    half.save(tmp_path / "half")
    assert half.origin().digest == Lineage.of(tmp_path / "half").digest
    [told] = edit_record([half], tiny_model("llama"), torch.float32, Rounding())["adapters"]
    assert told["altered"] == told["parts"] == [Lineage.of(whole).digest]
    read = LowRank.load(tmp_path / "1")

    def lacks(on, *given):
        names, digests = zip(*Lineage.of(on).acting("below"), strict=True)
        one = replace(read, lineage=Lineage(None, names, (), digests))
        return bool(
            one.origin().lacks([LowRank.load(g).origin() if isinstance(g, Path) else g.origin() for g in given])
        )

    other = replace(read, lineage=Lineage())
    assert not lacks(whole, whole)
    assert not lacks(whole, power(whole, 1))
    assert lacks(whole, tmp_path / "half")
    assert lacks(tmp_path / "half", whole)
    for on in (half, tmp_path / "half"):
        assert not lacks(tmp_path / "half", on)
        stack([on, other], tmp_path / "both", overwrite=True)
        assert not lacks(tmp_path / "half", tmp_path / "both")
        assert not lacks(tmp_path / "both", half, other)
        assert lacks(tmp_path / "both", other)
        assert lacks(tmp_path / "both", whole, other)


def test_adapters_that_add_the_same_are_equal(tmp_path):
    for number in (0, 1):
        lora("llama", tmp_path / str(number), seed=number)
    one, other = (LowRank.load(tmp_path / name) for name in "01")
    assert one == LowRank.load(tmp_path / "0") == power(one, 1)
    assert one in [other, one]
    name = next(iter(one.factors))
    for unlike in (
        other,
        power(one, 0.5),
        replace(one, scaling={**one.scaling, name: 7.0}),
        replace(one, factors={name: one.factors[name]}),
        replace(one, base_model="another"),
        None,
    ):
        assert one != unlike
    plain = replace(one, scaling={})
    assert plain == replace(one, scaling=dict.fromkeys(one.factors, 1.0))


def test_what_has_no_part_is_refused(tmp_path):
    lora("llama", tmp_path / "lora")
    lora("llama", tmp_path / "dora", use_dora=True)
    with pytest.raises(AdapterError, match="finite number, got nan"):
        power(tmp_path / "lora", float("nan"))
    with pytest.raises(AdapterError, match=r"adds more to .*down_proj than float32 can hold"):
        power(tmp_path / "lora", 1e45)
    with pytest.raises(AdapterError, match="has use_dora, so it is no plain LoRA adapter"):
        power(tmp_path / "dora", 0.5)
    for function in (inverse, product):
        with pytest.raises(AdapterError, match="holds a LORA adapter; expected SURGICAL_IA3 or IA3"):
            function(tmp_path / "lora")
        with pytest.raises(AdapterError, match=r"not LowRank\(rank 2 on 3 modules\); it must be a path or Edit"):
            function(LowRank.load(tmp_path / "lora"))
    with pytest.raises(AdapterError, match="adds nothing to any module"):
        LowRank({}).save(tmp_path / "out")
    with pytest.raises(AdapterError, match="a card must be text"):
        LowRank.load(tmp_path / "lora").save(tmp_path / "out", card=3)
    assert not (tmp_path / "out").exists()


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


@pytest.mark.parametrize(
    "name",
    [
        "modules_to_save",
        "use_qalora",
        "use_bdlora",
        "arrow_config",
        "kasa_config",
        "monteclora_config",
        "layer_replication",
        "target_parameters",
    ],
)
def test_what_adds_more_than_a_product_is_refused_be_its_file_as_any_other(name, tmp_path):
    LowRank({"a": (torch.ones(1, 4), torch.ones(3, 1))}).save(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, name: [1]}))
    with pytest.raises(AdapterError, match=f"has {name}, so it is no plain LoRA adapter"):
        LowRank.load(tmp_path)


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
    assert is_low_rank(tmp_path / "lora")
    assert not is_low_rank(saved(tiny_peft(), tmp_path / "scales"))
    out = tmp_path / "merged"
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
    for alpha in (None, True, "3", 10**400):
        config.write_text(json.dumps({**whole, "lora_alpha": alpha}))
        with pytest.raises(AdapterError, match=r"lora_alpha in .* cannot be"):
            LowRank.load(tmp_path / "lora")
    config.write_text(json.dumps({**whole, "lora_alpha": "x"}).replace('"x"', "1e400"))
    with pytest.raises(AdapterError, match=r"lora_alpha in .* cannot be inf"):
        LowRank.load(tmp_path / "lora")
    for own in ([3], {"(": 2}, "mlp", {"down_proj": "x"}):
        config.write_text(json.dumps({**whole, "alpha_pattern": own}))
        with pytest.raises(AdapterError, match=r"alpha_pattern in .* cannot be"):
            LowRank.load(tmp_path / "lora")
    config.write_text(json.dumps(whole))
    first = next(key for key in tensors if "lora_B" in key)
    for shape in ((3, 5), (32, 2, 1)):
        save_file({**tensors, first: torch.ones(shape)}, weights)
        with pytest.raises(AdapterError, match="two factors of one rank"):
            LowRank.load(tmp_path / "lora")
    save_file({key: tensor for key, tensor in tensors.items() if key != first}, weights)
    with pytest.raises(AdapterError, match="two factors of one rank"):
        LowRank.load(tmp_path / "lora")
    save_file({"base_model.model.other": torch.ones(2)}, weights)
    with pytest.raises(AdapterError, match=r"holds base_model\.model\.other"):
        LowRank.load(tmp_path / "lora")
