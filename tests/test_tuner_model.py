"""What PEFT and transformers users do with an adapter, on every family where the family matters."""

import copy

import pytest
import torch
from peft import (
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from safetensors.torch import load_file
from torch import nn

from peft_surgical.adapters.algebra import power
from peft_surgical.errors import AdapterError, ModelError, SelectionError
from peft_surgical.tuner import SurgicalIA3Config, SurgicalIA3Layer
from tests.adapters import COMPONENTS, add, deltas, logits, perturb, saved, tiny_peft, trainable
from tests.tiny import FAMILIES, tiny_ids, tiny_model

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("granularity", ["component", "module"])
@pytest.mark.parametrize("family", FAMILIES)
def test_identity_at_start_then_an_effect_that_reloads(family, granularity, tmp_path):
    base = logits(tiny_model(family))
    model = tiny_peft(family, granularity=granularity, perturbed=False)
    assert torch.equal(logits(model), base)
    perturb(model)
    edited = logits(model)
    assert not torch.equal(edited, base)
    folder = saved(model, tmp_path)
    assert {p.name for p in folder.iterdir()} == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    again = PeftModel.from_pretrained(tiny_model(family), folder)
    assert torch.equal(logits(again), edited)
    assert trainable(again) == set()
    with again.disable_adapter():
        assert torch.equal(logits(again), base)


@pytest.mark.parametrize("family", ["phi3", "gpt2", "gpt_neox", "opt", "gemma3"])
def test_biases_and_fused_projections_merge_to_the_same_function(family):
    model = tiny_peft(family, granularity="module")
    edited = logits(model)
    merged = model.merge_and_unload(safe_merge=True)
    assert not any(isinstance(module, SurgicalIA3Layer) for module in merged.modules())
    torch.testing.assert_close(logits(merged), edited, atol=1e-5, rtol=1e-5)
    assert not torch.equal(logits(merged), logits(tiny_model(family)))


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2"])
@pytest.mark.parametrize("projections", [["v", "pre"], ["q", "pre"], ["k", "post"]])
def test_every_projection_is_a_slice_that_changes_the_output(family, projections):
    model = tiny_peft(family, projections=projections)
    assert not torch.equal(logits(model), logits(tiny_model(family)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_scales_are_float32_on_any_base(dtype, tmp_path):
    model = tiny_peft(dtype=dtype)
    folder = saved(model, tmp_path)
    again = PeftModel.from_pretrained(tiny_model("llama", dtype=dtype), folder, autocast_adapter_dtype=False)
    config = SurgicalIA3Config(components=list(COMPONENTS))
    injected = inject_adapter_in_model(config, tiny_model("llama", dtype=dtype))
    for found in (model, again, injected):
        assert {delta.dtype for delta in deltas(found).values()} == {torch.float32}
    assert logits(again).dtype == dtype
    assert torch.equal(logits(again), logits(model))


def test_only_selected_coordinates_have_parameters(capsys):
    model = tiny_peft()
    total, selected = sum(p.numel() for p in tiny_model("llama").parameters()), 8 + 48 + 8
    assert model.get_nb_trainable_parameters() == (selected, total + selected)
    model.print_trainable_parameters()
    assert f"trainable params: {selected}" in capsys.readouterr().out
    state = get_peft_model_state_dict(model)
    assert {key: tuple(value.shape) for key, value in state.items()} == {
        "base_model.model.model.layers.0.self_attn.o_proj.surgical_ia3_delta": (8,),
        "base_model.model.model.layers.1.mlp.down_proj.surgical_ia3_delta": (48,),
        "base_model.model.model.layers.2.self_attn.o_proj.surgical_ia3_delta": (8,),
    }


def test_low_cpu_mem_usage(tmp_path):
    model = tiny_peft(dtype=torch.bfloat16)
    folder, edited = saved(model, tmp_path), logits(model)
    base = tiny_model("llama", dtype=torch.bfloat16)
    empty = inject_adapter_in_model(
        SurgicalIA3Config.from_pretrained(str(folder)), copy.deepcopy(base), low_cpu_mem_usage=True
    )
    assert {delta.device.type for delta in deltas(empty).values()} == {"meta"}
    again = PeftModel.from_pretrained(base, folder, low_cpu_mem_usage=True)
    assert {p.device.type for p in again.parameters()} == {"cpu"}
    assert {delta.dtype for delta in deltas(again).values()} == {torch.float32}
    assert torch.equal(logits(again), edited)
    again.load_adapter(folder, "other", low_cpu_mem_usage=True)
    again.set_adapter("other")
    assert torch.equal(logits(again), edited)


def test_more_targets_than_peft_shortens(tmp_path):
    """From 20 targets on PEFT rewrites the list of targets in place; ours must come back as it was."""
    selections = {
        f"model.layers.{i}.{name}": {"side": "input", "ranges": [[0, 2]]}
        for i in range(3)
        for name in (*(f"self_attn.{p}_proj" for p in "qkvo"), *(f"mlp.{p}_proj" for p in ("gate", "up", "down")))
    }
    model = get_peft_model(tiny_model("llama"), SurgicalIA3Config(selections=selections))
    perturb(model)
    assert len(deltas(model)) == len(selections) == 21
    folder = saved(model, tmp_path)
    again = PeftModel.from_pretrained(tiny_model("llama"), folder)
    assert set(again.peft_config["default"].target_modules) == set(selections)
    assert torch.equal(logits(again), logits(model))


def test_names_match_as_a_whole():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.proj = nn.Linear(4, 4)
            self.inner = nn.ModuleDict({"proj": nn.Linear(4, 4)})
            self.xproj = nn.Linear(4, 4)

        def forward(self, x):
            return self.xproj(self.inner["proj"](self.proj(x)))

    model = get_peft_model(Net(), SurgicalIA3Config(selections={"proj": {"side": "input", "ranges": [[0, 1]]}}))
    assert list(deltas(model)) == ["base_model.model.proj.surgical_ia3_delta.default"]
    assert model(torch.ones(1, 4)).shape == (1, 4)


@pytest.mark.parametrize(
    ("selections", "message"),
    [
        ({"model.layers.9.mlp.up_proj": [0, 1]}, r"no module named model\.layers\.9\.mlp\.up_proj; it has model"),
        ({"down_proj": [0, 1]}, "no module named down_proj"),
        ({"model.norm": [0, 1]}, r"model\.norm is a LlamaRMSNorm"),
        ({"model.layers.0.mlp.down_proj": [40, 49]}, r"\[40, 49\] of .* ends beyond its 48 input features"),
    ],
)
def test_a_selection_that_does_not_fit_is_refused_before_anything_changes(selections, message):
    base = tiny_model("llama")
    good = {"model.layers.0.mlp.up_proj": {"side": "input", "ranges": [[0, 1]]}}
    bad = {name: {"side": "input", "ranges": [pair]} for name, pair in selections.items()}
    with pytest.raises(SelectionError, match=message):
        get_peft_model(base, SurgicalIA3Config(selections={**good, **bad}))
    assert not any(isinstance(module, SurgicalIA3Layer) for module in base.modules())
    model = tiny_peft()
    with pytest.raises(SelectionError, match=message):
        model.add_adapter("other", SurgicalIA3Config(selections={**good, **bad}))
    assert list(model.peft_config) == ["default"]
    assert {name for layer in model.base_model.surgical_layers() for name in layer.coordinates} == {"default"}


@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
def test_a_model_that_is_wrapped_by_compile_is_refused(prefix):
    selections = {f"{prefix}model.layers.1.mlp.down_proj": {"side": "input", "ranges": [[0, 4]]}}
    compiled = torch.compile(tiny_model("llama"), backend="eager")
    with pytest.raises(ModelError, match=r"wrapped by torch\.compile; .* or compile in place with model\.compile"):
        get_peft_model(compiled, SurgicalIA3Config(selections=selections))
    assert not any(isinstance(module, SurgicalIA3Layer) for module in compiled.modules())


def test_other_side_of_an_adapted_module_is_refused():
    model = tiny_peft()
    other = SurgicalIA3Config(selections={"model.layers.1.mlp.down_proj": {"side": "output", "ranges": [[0, 4]]}})
    with pytest.raises(SelectionError, match=r"another adapter scales the input of .*down_proj"):
        model.add_adapter("other", other)


def test_another_shape_of_model_is_refused(tmp_path):
    folder = saved(tiny_peft(), tmp_path)
    with pytest.raises(SelectionError, match="with 48 input features; this model's has 64"):
        PeftModel.from_pretrained(tiny_model("llama", intermediate_size=64), folder)


def test_random_start_is_there_for_tests_like_those_of_peft():
    model = tiny_peft(perturbed=False, init_weights=False)
    assert not torch.equal(logits(model), logits(tiny_model("llama")))


def test_modules_to_save(tmp_path):
    model = tiny_peft(modules_to_save=["lm_head"])
    model.base_model.model.lm_head.modules_to_save["default"].weight.data.mul_(1.5)
    edited = logits(model)
    folder = saved(model, tmp_path)
    assert any("lm_head" in key for key in load_file(folder / "adapter_model.safetensors"))
    again = PeftModel.from_pretrained(tiny_model("llama"), folder)
    assert torch.equal(logits(again), edited)
    model.base_model.model.lm_head.modules_to_save["default"].weight.requires_grad_(False)
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(tiny_model("llama")))
    assert not model.base_model.model.lm_head.modules_to_save["default"].weight.requires_grad
    with pytest.raises(AdapterError, match="modules_to_save"):
        model.add_weighted_adapter(["default"], [1.0], "new")
    with pytest.raises(AdapterError, match="has modules_to_save; only scales can be computed with"):
        model.base_model.edit("default")
    with pytest.raises(SelectionError, match="modules_to_save must be a list of names, got 'lm_head'"):
        tiny_peft(modules_to_save="lm_head")
    with pytest.raises(SelectionError, match="modules_to_save at once"):
        tiny_peft(components=["L1.mlp"], modules_to_save=["down_proj"])


def test_state_dict_in_and_out():
    model, other = tiny_peft(), tiny_peft(perturbed=False)
    result = set_peft_model_state_dict(other, get_peft_model_state_dict(model))
    assert not result.unexpected_keys
    assert torch.equal(logits(other), logits(model))


def test_injection_follows_a_state_dict():
    state = get_peft_model_state_dict(tiny_peft())
    state = {key.removeprefix("base_model.model."): value for key, value in state.items()}
    config = SurgicalIA3Config(components=list(COMPONENTS))
    model = inject_adapter_in_model(config, tiny_model("llama"), state_dict=state)
    assert len(deltas(model)) == 3
    foreign = {"model.layers.0.mlp.up_proj.surgical_ia3_delta": torch.zeros(1)}
    with pytest.raises(SelectionError, match="the configuration does not select"):
        inject_adapter_in_model(
            SurgicalIA3Config(components=list(COMPONENTS)), tiny_model("llama"), state_dict=foreign
        )


def test_transformers_load_and_add_adapter(tmp_path):
    model = tiny_peft()
    folder, edited = saved(model, tmp_path), logits(model)
    loaded = tiny_model("llama")
    loaded.load_adapter(str(folder))
    assert torch.equal(logits(loaded), edited)
    assert {delta.dtype for delta in deltas(loaded).values()} == {torch.float32}
    loaded.disable_adapters()
    assert torch.equal(logits(loaded), logits(tiny_model("llama")))
    loaded.enable_adapters()
    assert torch.equal(logits(loaded), edited)
    loaded.add_adapter(SurgicalIA3Config(components=["L0.mlp"]), "other")
    assert trainable(loaded) == {"other"}
    assert torch.equal(logits(loaded), logits(tiny_model("llama")))
    perturb(loaded, "other")
    loaded.set_adapter(["default", "other"])
    assert not torch.equal(logits(loaded), edited)
    loaded.delete_adapter("other")
    loaded.set_adapter("default")
    assert torch.equal(logits(loaded), edited)
    loaded.save_pretrained(tmp_path / "again")
    assert torch.equal(logits(PeftModel.from_pretrained(tiny_model("llama"), tmp_path / "again")), edited)


def test_transformers_load_adapter_on_half_precision(tmp_path):
    model = tiny_peft(dtype=torch.bfloat16)
    loaded = tiny_model("llama", dtype=torch.bfloat16)
    loaded.load_adapter(str(saved(model, tmp_path)))
    assert {delta.dtype for delta in deltas(loaded).values()} == {torch.float32}
    assert torch.equal(logits(loaded), logits(model))


def test_a_bare_decoder_keeps_its_attributes():
    selections = {"layers.1.mlp.down_proj": {"side": "input", "ranges": [[0, 4]]}}
    decoder = tiny_model("llama").model
    model = get_peft_model(decoder, SurgicalIA3Config(selections=selections))
    assert model.layers is decoder.layers
    assert model.base_model.surgical_layers() == [decoder.layers[1].mlp.down_proj]


def test_deepcopy_is_independent():
    model = tiny_peft()
    twin = copy.deepcopy(model)
    edited = logits(model)
    assert torch.equal(logits(twin), edited)
    perturb(twin, seed=7)
    assert torch.equal(logits(model), edited)
    assert not torch.equal(logits(twin), edited)


def test_casting_the_whole_model_keeps_small_edits():
    """0.003 survives bfloat16 as a delta, where the scale 1.003 would round to 1."""
    model = tiny_peft()
    for layer in model.base_model.surgical_layers():
        layer.surgical_ia3_delta["default"].data[:] = 0.003
    model.to(torch.bfloat16)
    for layer in model.base_model.surgical_layers():
        scale = layer.scale("default")
        torch.testing.assert_close(scale, torch.full_like(scale, 1.003), atol=1e-5, rtol=0)


def test_several_adapters_save_into_folders_of_their_own(tmp_path):
    model = tiny_peft()
    add(model, "other")
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(tiny_model("llama"), tmp_path)
    again.load_adapter(tmp_path / "other", "other")
    for name in ("default", "other"):
        model.set_adapter(name)
        again.set_adapter(name)
        assert torch.equal(logits(again), logits(model))


def test_status_and_repr():
    model = tiny_peft()
    status = model.get_model_status()
    assert status.enabled is True
    assert status.peft_types == {"default": "SURGICAL_IA3"}
    assert (status.adapter_model_type, status.num_adapter_layers) == ("SurgicalIA3Model", 3)
    assert status.requires_grad == {"default": True}
    assert repr(model.base_model.surgical_layers()[0]).startswith("surgical_ia3.Linear(")
    assert {s.module_type for s in model.get_layer_status()} == {"surgical_ia3.Linear"}
    assert sorted(model.targeted_module_names) == sorted(model.peft_config["default"].selections)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_generated_is_what_the_scaled_model_finds_likeliest(dtype):
    model, ids = tiny_peft(dtype=dtype), tiny_ids()
    perturb(model, spread=0.9)
    said = model.generate(ids, max_new_tokens=6, do_sample=False)
    # Without a cache, whose sums may round otherwise.
    scores = logits(model, said[:, :-1])[:, ids.shape[1] - 1 :].float()
    chosen = scores.gather(-1, said[:, ids.shape[1] :, None])[..., 0]
    tolerance = {torch.float32: 1e-5}.get(dtype, 0.05)
    torch.testing.assert_close(chosen, scores.amax(-1), atol=tolerance, rtol=0)
    with model.disable_adapter():
        assert not torch.equal(said, model.generate(ids, max_new_tokens=6, do_sample=False))


def test_inputs_embeds():
    model = tiny_peft()
    embeds = model.get_input_embeddings()(tiny_ids())
    with torch.no_grad():
        assert torch.equal(model(inputs_embeds=embeds).logits, logits(model))


def test_cache_of_past_keys_gives_the_same_logits():
    model = tiny_peft()
    with torch.no_grad():
        first = model(tiny_ids()[:, :5], use_cache=True)
        second = model(tiny_ids()[:, 5:], past_key_values=first.past_key_values).logits
    torch.testing.assert_close(second, logits(model)[:, 5:], atol=1e-5, rtol=1e-5)


def test_device_map(tmp_path):
    from transformers import AutoModelForCausalLM

    base = tiny_model("llama")
    base.save_pretrained(tmp_path / "base")
    folder = saved(tiny_peft(), tmp_path / "adapter")
    mapped = AutoModelForCausalLM.from_pretrained(tmp_path / "base", device_map={"": "cpu"})
    model = PeftModel.from_pretrained(mapped, folder, device_map={"": "cpu"})
    assert torch.equal(logits(model), logits(tiny_peft()))


class Shared(nn.Module):
    """A module that goes by two names."""

    def __init__(self):
        super().__init__()
        self.first = self.second = nn.Linear(4, 4)
        self.third = nn.Linear(4, 4)


def test_a_second_name_of_a_module_is_refused():
    spec = {"side": "input", "ranges": [[0, 2]]}
    model = Shared()
    with pytest.raises(SelectionError, match="second is another name of first"):
        get_peft_model(model, SurgicalIA3Config(selections={"third": spec, "second": spec}))
    assert type(model.third) is nn.Linear


def test_a_scaled_module_is_not_saved_whole_by_another_adapter():
    model = tiny_peft()
    whole = ["model.layers.1.mlp.down_proj"]
    with pytest.raises(SelectionError, match=r"layers\.1\.mlp\.down_proj cannot be scaled and be in modules_to_save"):
        model.add_adapter("b", SurgicalIA3Config(components=["L0.mlp"], modules_to_save=whole))
    assert "model.layers.0.mlp.down_proj" not in model.targeted_module_names
    assert not any("b" in layer.coordinates for layer in model.base_model.surgical_layers())


def test_an_edit_goes_in_under_a_name_of_its_own_and_comes_out_by_one_that_there_is():
    model = tiny_peft()
    tuner, said = model.base_model, logits(model)
    edit = tuner.edit("default")
    with pytest.raises(AdapterError, match="there is an adapter named 'default' already"):
        tuner.add_edit(power(edit, 2), "default")
    assert torch.equal(logits(model), said)
    tuner.add_edit(edit, "again")
    assert tuner.edit("again").modules == edit.modules
    assert trainable(model) == {"default"}
    tuner.set_adapter([])
    tuner.add_edit(edit, "third")
    assert trainable(model) == set()
    assert model.active_adapters == []
    with pytest.raises(AdapterError, match="no adapter named 'nobody'"):
        tuner.edit("nobody")
