import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from peft_surgical.adapters.algebra import power
from peft_surgical.tuner import SurgicalIA3Config, SurgicalIA3Layer, activate
from peft_surgical.tuner.unchanged import base_of, unchanged_on_failure
from tests.adapters import OTHER_COMPONENTS, add, failing_at, logits, saved, tiny_peft, trainable
from tests.tiny import tiny_model

# How many layers, or scales, are in when it happens.
PLACES = [0, 1, 2]


def state(model):
    """What adding an adapter may change: modules, names, scales, what acts and what trains."""
    tuner = model.base_model
    layers = tuner.surgical_layers()
    return (
        [(name, id(module)) for name, module in model.named_modules()],
        {name: (parameter.requires_grad, parameter.tolist()) for name, parameter in model.named_parameters()},
        [([*layer.coordinates], layer.active_adapters) for layer in layers],
        [(layer.merged_adapters[:], layer.disable_adapters) for layer in layers],
        [*tuner.peft_config],
        [*tuner.active_adapters],
        [*tuner.targeted_module_names],
    )


def edit_elsewhere():
    """An edit of layers that have scales, and of others that have none."""
    model = tiny_peft()
    add(model, "other", OTHER_COMPONENTS)
    return model.base_model.edit("other")


MODELS = {
    "acting": lambda model: None,
    "frozen": lambda model: activate(model, ["default"]),
    "none acts": lambda model: activate(model, []),
    "switched off": lambda model: model.base_model.disable_adapter_layers(),
    "merged": lambda model: model.merge_adapter(),
}


def prepared(prepare):
    """What such a model says that nothing was tried on."""
    model = tiny_peft()
    prepare(model)
    return logits(model)


@pytest.mark.parametrize("prepare", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("what", [KeyboardInterrupt, RuntimeError])
def test_an_edit_that_is_not_added_leaves_the_model_as_it_was(what, place, prepare, monkeypatch):
    model, edit = tiny_peft(), edit_elsewhere()
    prepare(model)
    before, said = state(model), prepared(prepare)
    failing_at(monkeypatch, place, what)
    with pytest.raises(what):
        model.base_model.add_edit(edit, "new")
    assert state(model) == before
    assert torch.equal(logits(model), said)


@pytest.mark.parametrize("prepare", MODELS.values(), ids=MODELS)
def test_scales_that_do_not_fit_leave_the_model_as_it_was(prepare):
    model = tiny_peft()
    prepare(model)
    before, said = state(model), prepared(prepare)
    edit = edit_elsewhere()
    # The first of them are in when it shows.
    name = [*edit.modules][-1]
    edit.modules[name].__dict__["scale"] = edit.modules[name].scale.repeat(2)
    with pytest.raises(RuntimeError, match="size"):
        model.base_model.add_edit(edit, "new")
    assert state(model) == before
    assert torch.equal(logits(model), said)


def test_an_interrupt_between_an_adapters_places_and_its_scales_leaves_nothing_of_it(monkeypatch):
    model = tiny_peft()
    before = state(model)

    def fail(self, adapter, device):
        raise KeyboardInterrupt

    edit = power(model.base_model.edit("default"), 2)
    with monkeypatch.context() as patch:
        patch.setattr(SurgicalIA3Layer, "index", fail)
        with pytest.raises(KeyboardInterrupt):
            model.base_model.add_edit(edit, "new")
    assert state(model) == before
    assert torch.equal(logits(model), logits(tiny_peft()))


def test_of_the_base_are_whole_modules_too():
    model = tiny_peft("llama", modules_to_save=["lm_head"])
    model.get_output_embeddings().modules_to_save["default"].weight.data.mul_(1.5)
    said, trained = logits(model), trainable(model)
    with base_of(model):
        assert torch.equal(logits(model), logits(tiny_model("llama")))
    assert torch.equal(logits(model), said)
    assert trainable(model) == trained


def test_of_the_base_are_adapters_that_are_off_and_frozen_ones_and_they_stay_so():
    model = tiny_peft()
    inject_adapter_in_model(LoraConfig(target_modules=["q_proj"], init_lora_weights=False), model.get_base_model())
    model.requires_grad_(False)
    model.base_model.surgical_layers()[0].enable_adapters(False)
    said = logits(model)
    with base_of(model):
        assert torch.equal(logits(model), logits(tiny_model("llama")))
    assert torch.equal(logits(model), said)
    assert not trainable(model)


def failing(model, what):
    """Does something to a model, and fails."""
    with unchanged_on_failure(model):
        what()
        raise ZeroDivisionError


@pytest.mark.parametrize("hooked", [False, True])
def test_hooks_of_the_embeddings_are_those_that_were_there(hooked):
    model = tiny_model("llama")
    if hooked:
        model.enable_input_require_grads()
    embeddings = model.get_input_embeddings()
    before = dict(embeddings._forward_hooks)
    with pytest.raises(ZeroDivisionError):
        failing(model, model.enable_input_require_grads)
    assert dict(embeddings._forward_hooks) == before
    assert hasattr(model, "_require_grads_hook") is hooked
    model.disable_input_require_grads()
    assert not embeddings._forward_hooks


def test_what_transformers_was_told_of_adapters_is_put_back():
    model = tiny_model("llama")
    model.add_adapter(SurgicalIA3Config(components=["L0.mlp"]), "first")
    held, config = model.peft_config, model.peft_config["first"]
    with pytest.raises(ZeroDivisionError):
        failing(model, lambda: model.add_adapter(SurgicalIA3Config(components=["L1.mlp"]), "second"))
    assert model.peft_config is held
    assert held == {"first": config}
    assert model.active_adapters() == ["first"]


@pytest.mark.parametrize("what", ["no safetensors", "another shape"])
def test_a_load_that_fails_leaves_the_first_adapter_and_what_deleting_takes_off(what, tmp_path):
    other = tiny_peft(components=OTHER_COMPONENTS)
    first, second = saved(tiny_peft(), tmp_path / "first"), saved(other, tmp_path / "second")
    weights = second / "adapter_model.safetensors"
    if what == "no safetensors":
        weights.write_bytes(b"\xff" * 40)
    else:
        save_file({key: tensor[1:].clone() for key, tensor in load_file(weights).items()}, weights)
    model = tiny_peft()
    before = logits(model)
    assert not torch.equal(before, logits(other))
    with pytest.raises((SafetensorError, RuntimeError)):
        model.load_adapter(str(second), "second", is_trainable=True)
    assert model.active_adapters == ["default"]
    assert torch.equal(logits(model), before)
    model.delete_adapter("second")
    assert (set(model.peft_config), trainable(model)) == ({"default"}, {"default"})
    assert torch.equal(logits(model), before)
    # As `docs/peft.md` says of transformers' own.
    bare = tiny_model("llama")
    bare.load_adapter(str(first))
    with pytest.raises((SafetensorError, RuntimeError)):
        bare.load_adapter(str(second), "second")
    assert bare.active_adapters() == ["second"]
    bare.set_adapter("default")
    bare.delete_adapter("second")
    assert bare.active_adapters() == ["default"]
    assert torch.equal(logits(bare), before)
