"""Which adapters act and which are trained, through PEFT's own calls and `activate`."""

import copy

import pytest
import torch
from peft import PeftModel, get_peft_model, inject_adapter_in_model

from peft_surgical.errors import AdapterError
from peft_surgical.tuner import SurgicalIA3Config, activate
from tests.adapters import COMPONENTS, add, logits, perturb, saved, tiny_peft, trainable
from tests.tiny import tiny_model

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def test_set_adapter_of_one():
    model = tiny_peft()
    first = logits(model)
    add(model, "other")
    assert trainable(model) == {"default"}
    assert torch.equal(logits(model), first)
    model.set_adapter("other")
    assert trainable(model) == {"other"}
    assert not torch.equal(logits(model), first)
    model.set_adapter("default", inference_mode=True)
    assert trainable(model) == set()
    assert torch.equal(logits(model), first)


def test_an_adapter_does_not_act_twice():
    model = tiny_peft()
    edited = logits(model)
    for choose in (lambda names: activate(model, names), model.base_model.set_adapter):
        with pytest.raises(AdapterError, match="'default' is named twice, and would multiply twice"):
            choose(["default", "default"])
    assert torch.equal(logits(model), edited)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_several_active_adapters_multiply_and_commute(dtype):
    model = tiny_peft(dtype=dtype)
    add(model, "other")
    alone = [logits(model)]
    model.set_adapter("other")
    alone.append(logits(model))
    model.base_model.set_adapter(["default", "other"])
    both = logits(model)
    assert all(not torch.equal(both, one) for one in alone)
    model.base_model.set_adapter(["other", "default"])
    assert torch.equal(logits(model), both)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_frozen_stage_stays_frozen(dtype, tmp_path):
    """Through switching off and on, adding, loading, and the upcast of half-precision models."""
    model = tiny_peft(dtype=dtype)
    folder = saved(model, tmp_path)
    add(model, "learn")
    activate(model, ["default", "learn"], trainable=["learn"])
    assert trainable(model) == {"learn"}
    with model.disable_adapter():
        assert trainable(model) == {"learn"}
        with model.disable_adapter():
            pass
        assert trainable(model) == {"learn"}
    assert trainable(model) == {"learn"}
    with model.disable_adapter():
        add(model, "third")
        add(model, "fifth")
        model.delete_adapter("fifth")
    assert trainable(model) == {"learn"}
    model.load_adapter(folder, "fourth")
    assert trainable(model) == {"learn"}
    assert model.active_adapters == ["default", "learn"]
    model.base_model.disable_adapter_layers()
    model.set_requires_grad("learn", False)
    model.base_model.enable_adapter_layers()
    assert trainable(model) == set()


def test_activate_checks_its_names():
    model = tiny_peft()
    add(model, "learn")
    with pytest.raises(AdapterError, match="no surgical adapter named 'lern'"):
        activate(model, ["lern"])
    with pytest.raises(AdapterError, match="'learn' cannot be trained while it is not active"):
        activate(model, ["default"], trainable=["learn"])


def test_the_tuner_checks_its_names_and_keeps_a_list_of_its_own():
    model = tiny_peft(adapter="unlearn")
    add(model, "learn")
    add(model, "third")
    for names in (["unlearn", "lern"], "lern"):
        with pytest.raises(AdapterError, match="no adapter named 'lern'; the model has unlearn, learn, third"):
            model.base_model.set_adapter(names)
        assert model.active_adapters == ["unlearn"]
    names = ["unlearn", "learn"]
    model.base_model.set_adapter(names)
    both = logits(model)
    names.append("third")
    assert torch.equal(logits(model), both)
    assert model.active_adapters == ["unlearn", "learn"]


def test_activate_without_a_peft_model():
    config = SurgicalIA3Config(components=list(COMPONENTS))
    model = inject_adapter_in_model(config, tiny_model("llama"), "a")
    inject_adapter_in_model(SurgicalIA3Config(components=["L0.mlp"]), model, "b")
    perturb(model, "a")
    perturb(model, "b")
    activate(model, ["a", "b"], trainable=["b"])
    assert trainable(model) == {"b"}
    both = logits(model)
    with pytest.raises(AdapterError, match="'a' is named twice"):
        activate(model, ["a", "a"])
    assert torch.equal(logits(model), both)
    activate(model, ["a"])
    assert not torch.equal(logits(model), both)


def test_what_is_merged_does_not_stay_in_the_weights_while_others_act():
    found = []
    for merged in (False, True):
        model = inject_adapter_in_model(SurgicalIA3Config(components=["L0.mlp"]), tiny_model("llama"), "a")
        inject_adapter_in_model(SurgicalIA3Config(components=["L0.mlp"]), model, "b")
        perturb(model, "a"), perturb(model, "b", seed=1)
        if merged:
            model.get_submodule("model.layers.0.mlp.down_proj").merge(adapter_names=["a"])
        activate(model, ["b"])
        found.append(logits(model))
    assert torch.equal(*found)


def test_delete_adapter():
    model = tiny_peft()
    first = logits(model)
    add(model, "other")
    model.set_adapter("other")
    model.delete_adapter("default")
    assert list(model.peft_config) == ["other"]
    assert all(set(layer.coordinates) <= {"other"} for layer in model.base_model.surgical_layers())
    assert not torch.equal(logits(model), first)
    add(model, "third", components=["L0.mlp"])
    with pytest.warns(UserWarning, match="active which is now deleted") as told:
        model.delete_adapter("other")
    assert [str(one.message).rpartition(" ")[2] for one in told] == ["third."]
    assert model.active_adapters == ["third"]
    with pytest.raises(ValueError, match="does not exist"):
        model.delete_adapter("nobody")
    model.delete_adapter("third")
    assert torch.equal(logits(model.base_model.model), logits(tiny_model("llama")))


def test_delete_keeps_the_other_stage_active_and_frozen():
    model = tiny_peft()
    add(model, "learn")
    add(model, "third", components=["L0.mlp"])
    activate(model, ["default", "learn", "third"], trainable=["learn"])
    model.delete_adapter("third")
    assert model.active_adapters == ["default", "learn"]
    assert trainable(model) == {"learn"}
    model.delete_adapter("learn")
    assert model.active_adapters == ["default"]
    assert trainable(model) == set()


@pytest.mark.parametrize("frozen", [True, False])
def test_what_follows_a_deleted_adapter_is_trained_if_that_was(frozen):
    model = tiny_peft(modules_to_save=["lm_head"])
    add(model, "other", modules_to_save=["lm_head"])
    model.set_adapter("default", inference_mode=frozen)
    model.delete_adapter("default")
    assert model.active_adapters == ["other"]
    assert {p.requires_grad for n, p in model.named_parameters() if n.endswith(".other")} == {not frozen}
    assert {p.requires_grad for n, p in model.named_parameters() if ".other." in n} == {not frozen}


def test_none_or_one_may_be_activated():
    model = tiny_peft()
    edited = logits(model)
    activate(model, [])
    assert torch.equal(logits(model), logits(tiny_model("llama")))
    activate(model, "default", trainable="default")
    assert torch.equal(logits(model), edited)
    assert trainable(model) == {"default"}


@pytest.mark.parametrize("frozen", [True, False])
def test_deleting_while_the_scales_are_off_leaves_what_trains_too(frozen):
    model = tiny_peft()
    add(model, "other")
    model.set_adapter("default", inference_mode=frozen)
    with model.disable_adapter():
        model.delete_adapter("default")
        assert trainable(model) == (set() if frozen else {"other"})
    assert trainable(model) == (set() if frozen else {"other"})


def three_of_which_one_saves_its_head(active, trainable):
    """Adapters `default`, `third` and `head`, of which the last has a head of its own, changed."""
    model = tiny_peft()
    add(model, "third", components=["L0.mlp"])
    add(model, "head", modules_to_save=["lm_head"])
    model.base_model.model.lm_head.modules_to_save["head"].weight.data.mul_(1.5)
    activate(model, active, trainable=trainable)
    return model


@pytest.mark.parametrize(
    ("active", "deleted"),
    [
        (["default", "third"], "head"),
        (["head", "default", "third"], "head"),
        (["default", "head", "third"], "third"),
        (["head", "default"], "default"),
    ],
)
def test_deleting_beside_several_that_act_leaves_these_and_what_they_train(active, deleted):
    model = three_of_which_one_saves_its_head(active, active[:1])
    left = [name for name in active if name != deleted]
    model.delete_adapter(deleted)
    expected = three_of_which_one_saves_its_head(left, [name for name in active[:1] if name != deleted])
    assert model.active_adapters == left
    assert trained(model) == trained(expected)
    # The model is asked, as PEFT's wrapper knows one adapter by name.
    assert torch.equal(logits(model.base_model.model), logits(expected.base_model.model))
    assert deleted not in model.base_model.model.lm_head.modules_to_save
    # And what comes under its name begins anew.
    model.add_adapter(deleted, SurgicalIA3Config(components=["L0.mlp"], modules_to_save=["lm_head"]))
    model.set_adapter(deleted)
    assert torch.equal(logits(model), logits(tiny_model("llama")))


def test_a_head_that_was_loaded_to_be_trained_is_frozen_while_others_act(tmp_path):
    saved(tiny_peft(modules_to_save=["lm_head"]), tmp_path)
    for choose in (PeftModel.set_adapter, lambda model, name: activate(model, [name], trainable=[name])):
        model = tiny_peft()
        model.load_adapter(tmp_path, "loaded", is_trainable=True)
        choose(model, "default")
        assert trained(model) == {("scales", "default")}
    model.load_adapter(tmp_path, "again", is_trainable=True)
    activate(model, [])
    assert trained(model) == set()


def trained(model):
    """What trains: each adapter's scales, and the heads that adapters save whole."""
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    assert all("surgical_ia3_delta" in name or "modules_to_save" in name for name in names)
    return {("head", n.split(".")[-2]) if "modules_to_save" in n else ("scales", n.split(".")[-1]) for n in names}


def both(name):
    return {("head", name), ("scales", name)}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda model: model.set_requires_grad("default", False), set()),
        (lambda model: model.set_adapter("default", inference_mode=True), set()),
        (lambda model: model.set_adapter("other"), both("other")),
        (lambda model: activate(model, ["default"]), set()),
        (lambda model: activate(model, ["other"], trainable=["other"]), both("other")),
        (lambda model: model.delete_adapter("other"), both("default")),
        (lambda model: (model.set_adapter("other"), model.delete_adapter("other")), both("default")),
    ],
    ids=["freeze", "set frozen", "set", "activate frozen", "activate", "delete the idle", "delete the active"],
)
def test_what_trains_of_a_module_saved_whole_is_chosen_while_adapters_are_off_too(change, expected):
    model = tiny_peft(modules_to_save=["lm_head"])
    add(model, "other", modules_to_save=["lm_head"])
    other = copy.deepcopy(model)
    with model.disable_adapter():
        change(model)
    change(other)
    assert trained(model) == expected == trained(other)


@pytest.mark.parametrize("frozen", [True, False])
def test_the_head_that_follows_a_deleted_adapter_trains_if_that_did(frozen):
    model = tiny_peft(modules_to_save=["lm_head"])
    add(model, "other")
    model.set_adapter("other", inference_mode=frozen)
    with model.disable_adapter():
        model.delete_adapter("other")
        assert trained(model) == (set() if frozen else both("default"))
    assert trained(model) == (set() if frozen else both("default"))
    with model.disable_adapter():
        model.set_requires_grad("default", frozen)
    assert trained(model) == (both("default") if frozen else set())


def with_heads(kind):
    """A model with two adapters that each save the head, and what it says by each and by the base."""
    base = tiny_model("llama")
    said = {(): logits(base)}
    config = SurgicalIA3Config(components=COMPONENTS, modules_to_save=["lm_head"], task_type="CAUSAL_LM")
    if kind == "peft":
        model = get_peft_model(base, config, adapter_name="a")
        model.add_adapter("b", copy.deepcopy(config))
    else:
        model = base
        model.add_adapter(config, "a")
        model.add_adapter(copy.deepcopy(config), "b")
    for name, factor in (("a", 1.5), ("b", -2.0)):
        base.lm_head.modules_to_save[name].weight.data.mul_(factor)
        said[(name,)] = said[()] * factor
    return model.eval(), said


@pytest.mark.parametrize("kind", ["peft", "transformers"])
def test_modules_that_an_adapter_saves_whole_act_and_train_with_it(kind):
    model, said = with_heads(kind)
    for names in (["a"], [], ["b"], []):
        activate(model, names)
        torch.testing.assert_close(logits(model), said[tuple(names)])
        assert trainable(model) == set()
    activate(model, ["b"], trainable=["b"])
    torch.testing.assert_close(logits(model), said[("b",)])
    heads = dict(model.named_parameters())
    assert [heads[n].requires_grad for n in heads if "modules_to_save.a" in n] == [False]
    assert [heads[n].requires_grad for n in heads if "modules_to_save.b" in n] == [True]


@pytest.mark.parametrize("kind", ["peft", "transformers"])
def test_of_two_adapters_that_save_one_module_whole_only_one_can_act(kind):
    model, said = with_heads(kind)
    activate(model, ["a"], trainable=["a"])
    with pytest.raises(AdapterError, match="'a' and 'b' both save a Linear module whole"):
        activate(model, ["a", "b"])
    torch.testing.assert_close(logits(model), said[("a",)])
    trained = [name for name, p in model.named_parameters() if p.requires_grad and "modules_to_save" in name]
    assert [name.split(".")[-2] for name in trained] == ["a"]


def test_the_configuration_is_that_of_the_last_one_trained_or_of_the_last_one_that_acts():
    model = tiny_peft(adapter="a")
    add(model, "b"), add(model, "c")
    for trained, expected in (([], "c"), (["a"], "a"), (["a", "b"], "b")):
        activate(model, ["a", "b", "c"], trainable=trained)
        assert model.active_adapter == expected
        assert model.active_peft_config is model.peft_config[expected]
    activate(model.base_model, ["a", "b"])
    assert model.base_model.active_adapter == ["a", "b"]
