"""Training a surgical adapter: gradients, checkpointing, autocast, weight decay, compilation."""

import copy
import warnings

import pytest
import torch
from peft import PeftModel, get_peft_model, prepare_model_for_kbit_training
from torch import nn

from peft_surgical.tuner import SurgicalIA3Config, activate
from peft_surgical.tuner.layer import warn_of_precision
from tests.adapters import COMPONENTS, add, deltas, logits, saved, tiny_peft
from tests.tiny import FAMILIES, tiny_ids, tiny_model


def loss_of(model):
    ids = tiny_ids()
    return model(input_ids=ids, labels=ids).loss


def train(model, steps=8, lr=0.05):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, optimizer


def gradients(model):
    model.zero_grad()
    loss_of(model).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_falls_and_only_selected_coordinates_move(family, tmp_path):
    model = tiny_peft(family, perturbed=False)
    base = {n: p.detach().clone() for n, p in model.named_parameters() if "surgical" not in n}
    losses, optimizer = train(model)
    assert losses[-1] < losses[0]
    assert all(torch.equal(base[n], p) for n, p in model.named_parameters() if n in base)
    assert all((delta != 0).any() for delta in deltas(model).values())
    selected = sum(delta.numel() for delta in deltas(model).values())
    state = [t for s in optimizer.state.values() for t in s.values() if t.ndim]
    assert sum(t.numel() for t in state) == 2 * selected
    assert torch.equal(logits(PeftModel.from_pretrained(tiny_model(family), saved(model, tmp_path))), logits(model))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_stage_two_trains_on_top_of_a_frozen_stage_one(dtype):
    model = tiny_peft(dtype=dtype)
    add(model, "learn")
    activate(model, ["default", "learn"], trainable=["learn"])
    before = deltas(model)
    with model.disable_adapter():
        loss_of(model)
    losses, _ = train(model)
    assert losses[-1] < losses[0]
    for name, delta in deltas(model).items():
        assert torch.equal(delta, before[name]) == name.endswith(".default")


def test_staged_training_is_training_on_the_merged_base():
    """The paper folds stage 1 into the weights and trains stage 2 on that; here stage 1 stays a frozen adapter."""
    staged = tiny_peft()
    merged = tiny_peft().merge_and_unload()
    staged.add_adapter("learn", SurgicalIA3Config(components=list(COMPONENTS)))
    activate(staged, ["default", "learn"], trainable=["learn"])
    on_merged = get_peft_model(merged, SurgicalIA3Config(components=list(COMPONENTS)), "learn")
    losses = [train(model, lr=0.02)[0] for model in (staged, on_merged)]
    torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]), atol=1e-4, rtol=1e-4)
    assert losses[0][-1] < losses[0][0] - 0.01
    left, right = deltas(staged), deltas(on_merged)
    for name, delta in right.items():
        torch.testing.assert_close(left[name], delta, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_gives_the_same_gradients(use_reentrant):
    model = tiny_peft().train()
    plain = gradients(model)
    assert all(g.abs().sum() > 0 for g in plain.values())
    checkpointed = tiny_peft().train()
    checkpointed.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
    if use_reentrant:
        checkpointed.enable_input_require_grads()
    runs = []
    mlp = checkpointed.get_base_model().model.layers[1].mlp
    # Not a hook behind it: a layer is run again only as far as gradients need it.
    mlp.register_forward_pre_hook(lambda *_: runs.append(1))
    found = gradients(checkpointed)
    assert len(runs) == 2
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, plain[name])


def test_base_that_checkpoints_already():
    base = tiny_model("llama").train()
    base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    model = get_peft_model(base, SurgicalIA3Config(components=list(COMPONENTS)))
    assert all(g.abs().sum() > 0 for g in gradients(model).values())


def test_prepare_for_kbit_training():
    base = prepare_model_for_kbit_training(tiny_model("llama"))
    assert not any(p.requires_grad for p in base.parameters())
    model = get_peft_model(base, SurgicalIA3Config(components=list(COMPONENTS)))
    losses, _ = train(model)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    model = tiny_peft()
    with torch.autocast("cpu", dtype=dtype):
        loss = loss_of(model)
    loss.backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.abs().sum() > 0 for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_bases_train(dtype):
    model = tiny_peft(dtype=dtype, perturbed=False)
    losses, _ = train(model, steps=10)
    assert losses[-1] < losses[0]


def test_weight_decay_pulls_towards_the_identity():
    model = tiny_peft()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=1.0)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    for _ in range(200):
        optimizer.step()
    torch.testing.assert_close(logits(model), logits(tiny_model("llama")), atol=1e-5, rtol=1e-5)


def test_switching_adapters_keeps_their_optimizer():
    """The parameters are the same objects after switching, so an optimizer made before still trains them."""
    model = tiny_peft(dtype=torch.bfloat16)
    before = {n: p for n, p in model.named_parameters() if "surgical" in n}
    add(model, "other")
    activate(model, ["default", "other"], trainable=["default"])
    with model.disable_adapter():
        pass
    model.merge_adapter()
    model.unmerge_adapter()
    now = dict(model.named_parameters())
    assert all(now[name] is parameter for name, parameter in before.items())


@pytest.mark.parametrize("whole", [[], ["lm_head"]], ids=["scales", "and a head"])
def test_what_is_switched_off_gets_no_gradient(whole):
    model = tiny_peft(modules_to_save=whole).train()
    with model.disable_adapter():
        off = model(tiny_ids()).logits
    assert not off.requires_grad
    assert torch.equal(off, logits(tiny_model("llama")))
    loss_of(model).backward()
    assert all((p.grad != 0).any() for p in model.parameters() if p.requires_grad)


@pytest.fixture
def untold():
    """No warning of these tests was given before."""
    warn_of_precision.cache_clear()
    yield
    warn_of_precision.cache_clear()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scales_that_are_trained_in_half_precision_are_told_of_once(dtype, untold):
    model = tiny_peft().train()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
    with pytest.warns(UserWarning, match=f"trained in {str(dtype)[6:]}, .* p.data = p.data.float") as told:
        [loss_of(model) for _ in range(2)]
    assert len([one for one in told if "scales are trained" in str(one.message)]) == 1


def test_scales_that_are_not_trained_or_are_float32_or_wider_are_not_told_of(untold):
    model = tiny_peft(dtype=torch.bfloat16).train()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "scales are trained")
        loss_of(model)
        model.double()
        loss_of(model)
        model.bfloat16().eval()
        loss_of(model)
        model.train()
        with model.disable_adapter():
            loss_of(model)
        activate(model, ["default"], trainable=[])
        loss_of(model)


def test_what_is_compiled_while_it_trains_in_half_precision_has_no_graph_break():
    model = tiny_peft().bfloat16().train()
    torch.compile(model, fullgraph=True, backend="aot_eager")(tiny_ids()).logits.sum().backward()
    assert all((p.grad != 0).any() for p in model.parameters() if p.requires_grad)


def test_second_derivatives():
    model = tiny_peft()
    parameters = [p for p in model.parameters() if p.requires_grad]
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        first = torch.autograd.grad(loss_of(model), parameters, create_graph=True)
        second = torch.autograd.grad(sum(g.pow(2).sum() for g in first), parameters)
    assert all(g.abs().sum() > 0 for g in second)


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_torch_compile(backend, trained):
    """Runs without a graph break and gives what eager mode gives."""
    model = tiny_peft()
    add(model, "other")
    activate(model, ["default", "other"], trainable=["default"])
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend=backend)
    if trained:
        eager, fast = train(model, steps=4)[0], train(compiled, steps=4)[0]
        torch.testing.assert_close(torch.tensor(fast), torch.tensor(eager), atol=1e-4, rtol=1e-4)
        assert fast[-1] < fast[0]
    else:
        torch.testing.assert_close(logits(compiled), logits(model), atol=1e-5, rtol=1e-5)


def test_any_module_with_linear_layers_can_be_trained():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin0, self.lin1 = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x):
            return self.lin1(torch.relu(self.lin0(x)))

    config = SurgicalIA3Config(selections={"lin0": {"side": "output", "ranges": [[1, 3]]}}, modules_to_save=["lin1"])
    model = get_peft_model(Net(), config)
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(torch.randn(8, 4, generator=torch.Generator().manual_seed(0))).pow(2).sum().backward()
    optimizer.step()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {
        "base_model.model.lin0.surgical_ia3_delta.default",
        "base_model.model.lin1.modules_to_save.default.weight",
        "base_model.model.lin1.modules_to_save.default.bias",
    }
