import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, inject_adapter_in_model

from peft_surgical.adapters.edits import Edit
from peft_surgical.errors import SelectionError
from peft_surgical.stacking import stack
from peft_surgical.tuner import SurgicalIA3Config, SurgicalIA3Layer
from peft_surgical.tuner.layer import layers_by_name
from tests.adapters import COMPONENTS, OTHER_COMPONENTS, add, failing_at, logits, perturb, saved, tiny_peft, trainable
from tests.tiny import tiny_model

# Modules that the first adapter of a test does not scale, one of them on the other side than it might.
ELSEWHERE = ("L1.head.0", "L2.mlp")
NOWHERE = "model.layers.9.mlp.down_proj"


def config(components=ELSEWHERE, **others):
    return SurgicalIA3Config(components=list(components), **others)


def refused():
    return SurgicalIA3Config(selections={NOWHERE: {"side": "input", "ranges": [[0, 4]]}})


@pytest.fixture
def folders(tmp_path):
    """Two adapters with different modules, both saved as `default`."""
    other = tiny_peft(components=OTHER_COMPONENTS)
    perturb(other, seed=1)
    return saved(tiny_peft(), tmp_path / "first"), saved(other, tmp_path / "second")


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
@pytest.mark.parametrize("merged", [False, True])
def test_a_second_adapter_of_a_name_is_loaded_in_place_of_the_first(merged, low_cpu_mem_usage, folders, tmp_path):
    first, second = folders
    base = tiny_model("llama")
    before = PeftModel.from_pretrained(base, first)
    if merged:
        before.merge_adapter()
    model = PeftModel.from_pretrained(base, second, low_cpu_mem_usage=low_cpu_mem_usage).eval()
    alone = PeftModel.from_pretrained(tiny_model("llama"), second).eval()
    assert torch.equal(logits(model), logits(alone))
    assert {*model.base_model.edit("default").modules} == {*alone.base_model.edit("default").modules}
    assert model.get_model_status().available_adapters == ["default"]
    assert [*layers_by_name(base)] == [*layers_by_name(alone.get_base_model())]
    model.save_pretrained(tmp_path / "again")
    assert {*Edit.load(tmp_path / "again").modules} == {*Edit.load(second).modules}
    stack(tmp_path / "again", tmp_path / "plain")
    assert torch.equal(logits(model.unload()), logits(tiny_model("llama")))


def test_a_second_configuration_of_a_name_is_put_on_in_place_of_the_first(recwarn):
    base = tiny_model("llama")
    first = get_peft_model(base, config(COMPONENTS)).eval()
    perturb(first)
    model = get_peft_model(base, config()).eval()
    assert any("for a second time" in str(warning.message) for warning in recwarn)
    assert torch.equal(logits(model), logits(tiny_model("llama")))
    assert [*layers_by_name(base)] == [*model.base_model.targeted_module_names]
    assert trainable(model) == {"default"}


def test_injected_twice_only_the_second_is_there():
    base = tiny_model("llama")
    inject_adapter_in_model(config(COMPONENTS), base)
    perturb(base)
    inject_adapter_in_model(config(), base)
    assert torch.equal(logits(base.eval()), logits(tiny_model("llama")))
    once = inject_adapter_in_model(config(), tiny_model("llama"))
    assert [*layers_by_name(base)] == [*layers_by_name(once)]


def test_the_second_may_scale_the_other_side():
    base, name = tiny_model("llama"), "model.layers.0.mlp.down_proj"
    for side in ("input", "output"):
        inject_adapter_in_model(SurgicalIA3Config(selections={name: {"side": side, "ranges": [[0, 4]]}}), base)
    assert layers_by_name(base)[name].side == "output"


def test_what_the_first_saved_whole_goes_with_it():
    base = tiny_model("llama")
    first = get_peft_model(base, config(COMPONENTS, modules_to_save=["lm_head"]))
    first.get_output_embeddings().modules_to_save["default"].weight.data.mul_(1.5)
    again = get_peft_model(base, config(modules_to_save=["lm_head"])).eval()
    assert torch.equal(logits(again), logits(tiny_model("llama")))
    again.get_output_embeddings().modules_to_save["default"].weight.data.mul_(1.5)
    assert torch.equal(logits(get_peft_model(base, config()).eval()), logits(tiny_model("llama")))


def test_adapters_of_other_names_and_methods_stay():
    base = tiny_model("llama")
    first = get_peft_model(base, config(COMPONENTS))
    add(first, "other")
    inject_adapter_in_model(LoraConfig(target_modules=["q_proj"], init_lora_weights=False), base, "low_rank")
    first.set_adapter("other")
    said = logits(first.eval())
    perturb(get_peft_model(base, config(COMPONENTS)))
    first.set_adapter("other")
    assert torch.equal(logits(first.eval()), said)
    assert [*first.peft_config] == ["default", "other", "low_rank"]


def test_two_models_over_one_base_with_names_of_their_own_keep_theirs():
    base = tiny_model("llama")
    first = get_peft_model(base, config(COMPONENTS), "first").eval()
    perturb(first, "first")
    said = logits(first)
    second = get_peft_model(base, config(), "second").eval()
    add(second, "third")
    first.base_model.set_adapter("first")
    assert torch.equal(logits(first), said)
    with pytest.raises(ValueError, match="already exists"):
        first.add_adapter("second", config())
    assert torch.equal(logits(second.unload()), logits(tiny_model("llama")))


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("put_on", [get_peft_model, inject_adapter_in_model])
def test_a_second_one_that_is_refused_leaves_the_first(put_on, merged):
    model = tiny_peft(modules_to_save=["lm_head"])
    base, held = model.get_base_model(), model.peft_config["default"]
    if merged:
        model.merge_adapter()
    said, parts = logits(model), [(name, id(module)) for name, module in base.named_modules()]
    with pytest.raises(SelectionError, match="no module named"):
        put_on(refused(), base) if put_on is inject_adapter_in_model else put_on(base, refused())
    assert torch.equal(logits(model), said)
    assert [(name, id(module)) for name, module in base.named_modules()] == parts
    assert model.peft_config == {"default": held}
    assert model.peft_config["default"] is held
    assert all(bool(layer.merged) is merged for layer in model.base_model.surgical_layers())
    assert trainable(model) == {"default", "weight"}


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("what", [KeyboardInterrupt, RuntimeError])
def test_a_second_one_that_fails_leaves_the_first(what, place, monkeypatch):
    model = tiny_peft()
    base, said = model.get_base_model(), logits(model)
    modules = [*model.base_model.edit("default").modules]
    failing_at(monkeypatch, place, what)
    with pytest.raises(what):
        get_peft_model(base, config(OTHER_COMPONENTS))
    assert torch.equal(logits(model), said)
    assert [*model.base_model.edit("default").modules] == modules


def test_an_adapter_that_fails_leaves_nothing_that_one_of_its_name_would_find(monkeypatch):
    model = tiny_peft()
    with monkeypatch.context() as patched:
        # By then its scales are in.
        patched.setattr("peft.tuners.tuners_utils.set_additional_trainable_modules", lambda **kwargs: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model.add_adapter("new", config(OTHER_COMPONENTS))
    assert not any("new" in layer.coordinates for layer in model.base_model.surgical_layers())
    assert not any(name.endswith(".new") for name, _ in model.named_parameters())
    add(model, "new", ELSEWHERE)
    assert [*model.base_model.edit("new").modules] == [
        "model.layers.1.self_attn.o_proj",
        "model.layers.2.mlp.down_proj",
    ]


@pytest.mark.parametrize("first", [False, True])
def test_transformers_is_told_of_no_adapter_that_was_refused(first, tmp_path):
    model = tiny_model("llama")
    if first:
        model.add_adapter(config(), "first")
    with pytest.raises(SelectionError, match="no module named"):
        model.add_adapter(refused(), "second")
    assert model._hf_peft_config_loaded is first
    assert [*getattr(model, "peft_config", {})] == ["first"] * first
    model.save_pretrained(tmp_path / "saved")
    model.add_adapter(config(), "second")
    assert model.active_adapters() == ["second"]


@pytest.mark.parametrize("whole", [None, ["lm_head"]])
def test_an_adapter_that_is_added_while_adapters_are_off_is_off(whole):
    model, base = tiny_peft(), logits(tiny_model("llama"))
    with model.disable_adapter():
        add(model, "new", modules_to_save=whole)
        if whole:
            model.get_output_embeddings().modules_to_save["new"].weight.data.mul_(1.5)
        model.set_adapter("new")
        assert torch.equal(logits(model.eval()), base)
        assert model.get_model_status().enabled is False
        assert trainable(model) == {"new"} | ({"weight"} if whole else set())
    assert model.get_model_status().enabled is True
    alone = tiny_peft(components=OTHER_COMPONENTS, modules_to_save=whole)
    perturb(alone, seed=1)
    if whole:
        alone.get_output_embeddings().modules_to_save["default"].weight.data.mul_(1.5)
    assert torch.equal(logits(model), logits(alone))


def test_an_adapter_that_is_added_while_adapters_are_off_freezes_none_of_what_is_saved_whole():
    model = tiny_peft(modules_to_save=["lm_head"])
    with model.disable_adapter():
        add(model, "new", modules_to_save=["lm_head"])
        saved_whole = model.get_output_embeddings().modules_to_save
        assert saved_whole["default"].weight.requires_grad


def test_transformers_switches_on_what_was_added_while_adapters_were_off():
    model, base = tiny_model("llama"), logits(tiny_model("llama"))
    model.add_adapter(config(COMPONENTS), "first")
    model.disable_adapters()
    model.add_adapter(config(OTHER_COMPONENTS), "second")
    perturb(model, "second")
    assert torch.equal(logits(model.eval()), base)
    model.enable_adapters()
    assert all(not layer.disable_adapters for layer in layers_by_name(model).values())
    assert not torch.equal(logits(model), base)


def test_adapters_of_another_method_that_are_off_leave_a_new_one_off():
    model, base = tiny_model("llama"), logits(tiny_model("llama"))
    model.add_adapter(LoraConfig(target_modules=["q_proj"], init_lora_weights=False), "first")
    model.disable_adapters()
    model.add_adapter(config(), "second")
    perturb(model, "second")
    assert torch.equal(logits(model.eval()), base)
    model.enable_adapters()
    assert not torch.equal(logits(model), base)


def test_what_a_deleted_adapter_left_off_switches_no_other_off():
    model = tiny_model("llama")
    model.add_adapter(config(COMPONENTS), "first")
    model.disable_adapters()
    model.delete_adapter("first")
    model.add_adapter(config(), "second")
    assert [layer.disable_adapters for layer in layers_by_name(model).values()] == [False, False]


def test_beside_one_that_is_on_an_adapter_begins_on():
    model = tiny_peft()
    model.base_model.surgical_layers()[0].enable_adapters(False)
    add(model, "new", ELSEWHERE)
    new = [layer for layer in model.base_model.surgical_layers() if "new" in layer.coordinates]
    assert all(isinstance(layer, SurgicalIA3Layer) and not layer.disable_adapters for layer in new)


def test_what_another_method_saves_whole_under_the_name_stays():
    base = tiny_model("llama")
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]), base, "a")
    base.lm_head.modules_to_save["a"].weight.data.mul_(1.5)
    said = logits(base)
    inject_adapter_in_model(SurgicalIA3Config(components=["L0.mlp"]), base, "a")
    assert torch.equal(logits(base), said)
    assert not torch.equal(said, logits(tiny_model("llama")))
