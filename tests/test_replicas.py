import threading
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
    register_module_full_backward_hook,
    register_module_full_backward_pre_hook,
)
from torch.overrides import BaseTorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from peft_surgical.running.replicas import is_plain, replicate, without_replicas

from .adapters import logits, tiny_peft
from .threads import threads
from .tiny import FAMILIES, tiny_ids, tiny_model


def two_of(model):
    with threads(2):
        first, second = replicate(model)
    assert first.model is model
    return second


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_replica_says_what_the_model_says_with_its_weights(family):
    model = tiny_peft(family)
    other = two_of(model)
    assert torch.equal(logits(other.model), logits(model))
    own = dict(model.named_parameters())
    assert own.keys() == dict(other.model.named_parameters()).keys()
    for name, parameter in other.model.named_parameters():
        assert parameter.data_ptr() == own[name].data_ptr()
    buffers = dict(model.named_buffers())
    assert all(buffer is buffers[name] for name, buffer in other.model.named_buffers())
    assert not {id(module) for module in model.modules()} & {id(module) for module in other.model.modules()}
    # Tied weights are so still.
    assert len(list(model.parameters())) == len(list(other.model.parameters()))


def test_what_trains_has_the_same_numbers_and_its_own_gradient():
    model = tiny_peft("llama")
    other = two_of(model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    twins = [other.twin(parameter) for parameter in trained]
    assert {id(twin) for twin in twins} == {id(p) for p in other.model.parameters() if p.requires_grad}
    other.model(tiny_ids()).logits.sum().backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    model(tiny_ids()).logits.sum().backward()
    for parameter, twin in zip(trained, twins, strict=True):
        torch.testing.assert_close(twin.grad, parameter.grad)
        with torch.no_grad():
            parameter.add_(0.25)
        assert torch.equal(twin, parameter)


def test_twins_of_modules_and_of_what_is_elsewhere():
    model = tiny_peft("llama")
    other = two_of(model)
    names = {module: name for name, module in model.named_modules()}
    for module, name in names.items():
        assert other.twin(module) is other.model.get_submodule(name)
    frozen, elsewhere = model.get_input_embeddings().weight, nn.Linear(1, 1)
    assert other.twin(frozen) is frozen
    assert other.twin(elsewhere) is elsewhere


def test_hooks_and_adapters_are_its_own():
    model = tiny_peft("llama")
    expected = logits(model)
    with model.disable_adapter():
        bare = two_of(model)
        off = logits(model)
    assert not torch.allclose(off, expected)
    assert torch.equal(logits(bare.model), off)
    handle = two_of(model).model.get_output_embeddings().register_forward_hook(lambda *_: pytest.fail("not its hook"))
    assert torch.equal(logits(model), expected)
    handle.remove()


def test_merged_adapters_would_take_themselves_out_of_the_weights_in_every_thread():
    model = tiny_peft("llama")
    model.merge_adapter()
    with threads(2):
        assert len(replicate(model)) == 1
        model.unmerge_adapter()
        assert len(replicate(model)) == 2


def test_processes_that_share_rows_cut_them_alike(monkeypatch):
    monkeypatch.setattr("peft_surgical.running.replicas.processes", lambda: 2)
    with threads(2):
        assert len(replicate(tiny_model("llama"))) == 1


@pytest.mark.parametrize(
    ("count", "most", "made"),
    # Three of six threads have two each, where four would leave two without work.
    [
        *[(1, None, 1), (2, None, 2), (3, None, 3), (5, None, 4), (6, None, 3), (8, None, 4), (64, None, 4)],
        *[(3, 2, 2), (2, 1, 1), (2, 0, 1)],
    ],
)
def test_there_are_as_many_as_gain_something(count, most, made):
    with threads(count):
        assert len(replicate(tiny_model("llama"), most)) == made


def hooked(model):
    model.get_output_embeddings().register_forward_hook(lambda *_: None)


def hooked_before(model):
    model.get_output_embeddings().register_forward_pre_hook(lambda *_: None)


def hooked_behind(model):
    model.get_output_embeddings().register_full_backward_hook(lambda *_: None)


def hooked_before_a_backward(model):
    model.get_output_embeddings().register_full_backward_pre_hook(lambda *_: None)


def given_a_forward(model):
    layer = model.model.layers[0]
    layer.forward = layer.forward


def elsewhere(model):
    model.get_output_embeddings().to("meta")


def in_another_format(model):
    class Packed(nn.Parameter):
        pass

    model.get_output_embeddings().weight = Packed(model.get_output_embeddings().weight.data)


def with_a_lock(model):
    model.lock = threading.Lock()


def hooked_at_a_parameter(model):
    model.get_output_embeddings().weight.register_hook(lambda gradient: 0 * gradient)


def that_refuses_to_be_copied(model):
    class Kept:
        def __deepcopy__(self, _):
            raise ValueError("there is one of me")

    model.kept = Kept()


@pytest.mark.parametrize(
    "register",
    [
        register_module_forward_hook,
        register_module_forward_pre_hook,
        register_module_full_backward_hook,
        register_module_full_backward_pre_hook,
    ],
)
def test_hooks_on_all_modules_are_not_run_in_several_threads(register):
    model = tiny_model("llama")
    with threads(2):
        handle = register(lambda *_: None)
        try:
            assert len(replicate(model)) == 1
        finally:
            handle.remove()
        assert len(replicate(model)) == 2


@pytest.mark.parametrize(
    "change",
    [
        hooked,
        hooked_before,
        hooked_behind,
        hooked_before_a_backward,
        hooked_at_a_parameter,
        given_a_forward,
        elsewhere,
        in_another_format,
        with_a_lock,
        that_refuses_to_be_copied,
    ],
)
def test_a_model_that_modules_of_their_own_would_not_be_runs_alone(change):
    model = tiny_model("llama")
    change(model)
    with threads(2):
        (only,) = replicate(model)
    assert only.model is model
    assert all(map(is_plain, model.modules())) == (change in (with_a_lock, that_refuses_to_be_copied))


@pytest.mark.parametrize(
    "mode",
    [partial(torch.autocast, "cpu", torch.bfloat16), partial(FlopCounterMode, display=False), BaseTorchFunctionMode],
)
def test_what_holds_for_one_thread_keeps_to_it(mode):
    model = tiny_model("llama")
    with threads(2):
        with mode():
            assert len(replicate(model)) == 1
        assert len(replicate(model)) == 2


def test_without_replicas():
    model = tiny_model("llama")
    with threads(2):
        with without_replicas():
            assert len(replicate(model)) == 1
        assert len(replicate(model)) == 2
