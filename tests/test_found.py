import pytest
import torch

from peft_surgical.localizing.bridge import wrap
from peft_surgical.localizing.found import Found, left_as_found

from .tiny import tiny_ids, tiny_model


def test_what_a_block_of_code_leaves_in_the_model_is_taken_away():
    bridge = wrap(tiny_model("opt"))
    point = bridge.hook_dict["blocks.0.hook_in"]
    point.add_hook(lambda tensor, hook: None)

    def hooks():
        return [handle for point in bridge.hook_points() for handle in (*point.fwd_hooks, *point.bwd_hooks)]

    before = hooks()
    # TransformerLens's own, without which hooks of OPT's MLPs do not fire.
    assert any(handle.is_permanent for handle in before)
    with torch.no_grad():
        with left_as_found(bridge, Found.of(bridge)):
            assert not torch.is_grad_enabled()
            point.add_hook(lambda tensor, hook: None)
            point.add_perma_hook(lambda tensor, hook: None)
            point.add_hook(lambda tensor, hook: None, dir="bwd")
            torch.set_grad_enabled(True)
        assert not torch.is_grad_enabled()
    assert hooks() == before
    assert len(point._forward_hooks) == 1


def test_hooks_of_torch_are_taken_away_too():
    bridge = wrap(tiny_model("llama"))
    mlp, before = bridge.blocks[1].mlp, Found.of(bridge)
    with left_as_found(bridge, before):
        mlp.register_forward_hook(lambda module, args, output: output * 0)
        mlp.register_forward_pre_hook(lambda module, args, kwargs: None, with_kwargs=True)
        mlp.register_full_backward_hook(lambda module, before, behind: None)
    assert before.stands()
    assert [held for held, _ in Found.of(bridge).hooks] == [there for _, there in before.hooks]
    assert len(Found.of(bridge).bare) == len(before.bare)


def logits(bridge):
    with torch.no_grad():
        return bridge.original_model(input_ids=tiny_ids(2, 9)).logits


def backward(bridge):
    with torch.enable_grad():
        bridge.original_model(input_ids=tiny_ids(1, 9)).logits.sum().backward()


def exchange(bridge):
    for module in {*bridge.modules(), *bridge.original_model.modules()}:
        for name, parameter in module._parameters.items():
            module._parameters[name] = None if parameter is None else torch.nn.Parameter(parameter.detach().clone())


def exchange_buffers(bridge):
    for module in bridge.original_model.modules():
        module._buffers.update(
            {name: buffer.clone() for name, buffer in module._buffers.items() if buffer is not None}
        )


CHANGES = {
    "weights are folded": lambda bridge: bridge.enable_compatibility_mode(),
    "hooks are those of old": lambda bridge: bridge.enable_compatibility_mode(no_processing=True),
    "heads give results": lambda bridge: bridge.set_use_attn_result(True),
    "inputs are split": lambda bridge: bridge.set_use_split_qkv_input(True),
    "inputs are split by heads": lambda bridge: bridge.set_use_attn_in(True),
    "inputs of MLPs have hooks": lambda bridge: bridge.set_use_hook_mlp_in(True),
    "weights are cast": lambda bridge: bridge.float(),
    "weights are moved and cast": lambda bridge: bridge.to(torch.float64),
    "attention is another": lambda bridge: bridge.original_model.set_attn_implementation("eager"),
    "a setting is another": lambda bridge: setattr(bridge.original_model.config, "use_cache", False),
    "a module is another": lambda bridge: setattr(bridge.blocks[0].mlp, "out", torch.nn.Identity()),
    "a buffer is another": lambda bridge: bridge.original_model.register_buffer("mine", torch.ones(1)),
    "buffers are others": exchange_buffers,
    "a module does something else": lambda bridge: setattr(bridge.blocks[0].mlp, "forward", lambda *args: args[0] * 0),
    "weights are others": lambda bridge: setattr(bridge.embed.weight, "data", torch.zeros_like(bridge.embed.weight)),
    "weights have hooks": lambda bridge: [p.register_hook(lambda g: g * 0) for p in bridge.parameters()],
    "weights have hooks behind": lambda bridge: [
        p.register_post_accumulate_grad_hook(lambda p: None) for p in bridge.parameters()
    ],
    "a setting within a setting is another": lambda bridge: bridge.original_model.config.held.update(theta=3.0),
    "what is generated is other": lambda bridge: setattr(bridge.original_model.generation_config, "max_new_tokens", 1),
    "weights are trained": lambda bridge: (bridge.float(), bridge.train(), backward(bridge)),
    "parameters are others after training": lambda bridge: (backward(bridge), exchange(bridge)),
    "weights are frozen": lambda bridge: bridge.requires_grad_(False),
}


def told(bridge):
    """All that a model is, but for what its tensors hold."""
    names = [*bridge.hook_dict]
    modules = [*bridge.modules(), *bridge.original_model.modules()]
    configs = [vars(module.config) for module in modules if getattr(module, "config", None) is not None]
    configs += [vars(bridge.original_model.generation_config), bridge.original_model.config.held]
    parts = [(id(module), {name: id(value) for name, value in vars(module).items()}) for module in modules]
    tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    hooks = [(tensor._backward_hooks, tensor._post_accumulate_grad_hooks) for tensor in tensors]
    hooked = [[len(each or ()) for each in both] for both in hooks]
    held = [(id(tensor), tensor.data_ptr(), tensor.dtype, tensor.requires_grad) for tensor in tensors]
    return names, parts, [{**config} for config in configs], held, hooked, {**vars(bridge.cfg)}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(
    ("family", "dtype"), [("gpt2", torch.float32), ("llama", torch.bfloat16), ("gpt_neox", torch.float32)]
)
def test_whatever_a_block_of_code_makes_of_the_model_is_undone(family, dtype, change):
    model = tiny_model(family, dtype=dtype)
    model.config.held = {"theta": 1.0}
    own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    bridge = wrap(model)
    # TransformerLens keeps what it was asked for.
    first, as_wrapped, found = logits(bridge), told(bridge), Found.of(bridge)
    with left_as_found(bridge, found):
        CHANGES[change](bridge)
        changed, gradients = told(bridge), [parameter.grad for parameter in bridge.parameters()]
        with left_as_found(bridge, found):
            assert told(bridge) == as_wrapped
            assert all(parameter.grad is None for parameter in bridge.parameters())
            assert torch.equal(logits(bridge), first)
        assert told(bridge) == changed
        assert all(now.grad is before for now, before in zip(bridge.parameters(), gradients, strict=True))
    assert told(bridge) == as_wrapped
    assert found.stands()
    assert all(parameter.grad is None for parameter in bridge.parameters())
    assert torch.equal(logits(bridge), first)
    assert all(torch.equal(tensor, own[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.dtype == dtype for parameter in model.parameters())


def test_what_is_added_to_what_was_there_is_taken_away():
    model = tiny_model("llama")
    model.config.listed, model.seen = ["a"], []
    bridge = wrap(model)
    own = bridge.original_model
    weight = own.get_output_embeddings().weight
    weight.register_hook(lambda gradient: 3 * gradient)
    found = Found.of(bridge)
    backward(bridge)
    before, weight.grad = weight.grad, None
    with left_as_found(bridge, found):
        weight.register_hook(lambda gradient: 2 * gradient)
        own.config.listed.append("b")
        own.register_buffer("mine", torch.ones(1), persistent=False)
        own.seen.append("c")
    assert own.config.listed == ["a"]
    assert own.seen == []
    assert not own._non_persistent_buffers_set
    backward(bridge)
    assert torch.equal(weight.grad, before)
    # What a module notes down changes nothing that it computes.
    own.seen.append("c")
    assert found.stands()


@pytest.mark.parametrize(
    "change",
    [
        "weights are folded",
        "inputs are split",
        "weights are cast",
        "weights are others",
        "a module is another",
        "a module does something else",
        "a buffer is another",
        "buffers are others",
    ],
)
def test_what_changes_a_pass_is_told_from_what_was_found(change):
    bridge = wrap(tiny_model("llama", dtype=torch.bfloat16))
    found = Found.of(bridge)
    assert found.stands()
    CHANGES[change](bridge)
    assert not found.stands()
