import pytest
import torch
from peft import get_peft_model

from peft_surgical import architectures
from peft_surgical.architectures import architecture_of
from peft_surgical.errors import ArchitectureError, SelectionError
from peft_surgical.staging.displacement import Displacement, measure_displacement, neuron_modules
from peft_surgical.tuner import SurgicalIA3Config

from .test_beginnings import built
from .tiny import packed, tiny_granite, tiny_ids, tiny_model

ADAPTER = "default"


def displaced(form, changes):
    """The mean squared relative displacement that a change of scales causes."""
    return sum(float(change @ (own @ change)) for own, change in zip(form.forms, changes, strict=True))


def scaled(family="llama", components=("L0.mlp", "L1.mlp"), projections=("post",), **options):
    config = SurgicalIA3Config(
        components=list(components), projections=list(projections), task_type="CAUSAL_LM", **options
    )
    model = get_peft_model(tiny_model(family), config).eval()
    base = model.get_base_model()
    return base, neuron_modules(base, model.peft_config[ADAPTER].selections)


def layers_of(model, modules):
    return [model.get_submodule(name) for name in modules]


def rows(batch=3, length=7):
    return [row.tolist() for row in tiny_ids(batch, length)]


def measured(model, modules, texts, **options):
    return measure_displacement(model, modules, ADAPTER, texts, **options)


def seen(model, layer, block, ids):
    """What leaves a scaled layer and its block, `[token, model]`, the first token of each row left out."""
    found = {}

    def note(name):
        return lambda _, __, out: found.update({name: out[0] if isinstance(out, tuple) else out})

    handles = [layer.register_forward_hook(note("mlp")), block.register_forward_hook(note("block"))]
    with torch.no_grad():
        model(input_ids=ids)
    for handle in handles:
        handle.remove()
    return [found[name].reshape(*ids.shape, -1)[:, 1:].flatten(0, 1) for name in ("mlp", "block")]


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2", "gpt_neox", "opt"])
def test_the_form_is_the_squared_relative_length_of_what_scales_add(family):
    model, modules = scaled(family)
    ids = tiny_ids(3, 7)
    form = measured(model, modules, ids.tolist())
    blocks = model.get_submodule(architecture_of(model.config.model_type).layers)
    assert list(modules.values()) == [0, 1]
    for place, layer in enumerate(layers_of(model, modules)):
        block = blocks[place]
        delta = layer.surgical_ia3_delta[ADAPTER]
        before, residual = seen(model, layer, block, ids)
        with torch.no_grad():
            delta.normal_(generator=torch.Generator().manual_seed(place))
        after, _ = seen(model, layer, block, ids)
        relative = (after - before).norm(dim=-1) / residual.norm(dim=-1)
        changes = [torch.zeros(len(own)) for own in form.forms]
        changes[place] = delta.detach().clone()
        assert displaced(form, changes) == pytest.approx(float(relative.square().mean()), rel=1e-4)
        with torch.no_grad():
            delta.zero_()


def test_what_goes_through_a_norm_is_as_long_as_that_can_make_it():
    model, modules = scaled("gemma3", components=("L1.mlp",))
    ids = tiny_ids(3, 7)
    [layer] = layers_of(model, modules)
    block = model.get_submodule(architecture_of(model.config.model_type).layers)[1]
    norm = block.post_feedforward_layernorm
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        norm.weight.normal_(std=3, generator=generator)
    [form] = measured(model, modules, ids.tolist()).forms
    before, residual = seen(model, layer, block, ids)
    delta = layer.surgical_ia3_delta[ADAPTER]
    with torch.no_grad():
        delta.normal_(generator=generator)
    after, _ = seen(model, layer, block, ids)
    gains = 1 + norm.weight.detach()
    longest = gains * (after - before) / before.square().mean(-1, keepdim=True).sqrt()
    lengths = residual.norm(dim=-1)
    change = delta.detach()
    predicted = float(change @ (form @ change))
    assert predicted == pytest.approx(float((longest.norm(dim=-1) / lengths).square().mean()), rel=1e-4)
    small = 1e-3
    with torch.no_grad():
        delta.mul_(small)
    _, moved = seen(model, layer, block, ids)
    # What only makes the norm's input longer is divided away again; it is a small part.
    predicted *= small**2
    found = float(((moved - residual).norm(dim=-1) / lengths).square().mean())
    assert 0.8 * predicted < found < 1.01 * predicted


def test_what_is_multiplied_on_its_way_into_the_residual_stream_moves_it_so_much():
    config = SurgicalIA3Config(components=["L1.mlp"], projections=["post"], task_type="CAUSAL_LM")
    model = get_peft_model(tiny_granite(0.25), config).eval().get_base_model()
    modules = neuron_modules(model, {"model.layers.1.mlp.down_proj": {"side": "input", "ranges": [[0, 48]]}})
    ids = tiny_ids(3, 7)
    form = measured(model, modules, ids.tolist())
    [layer] = layers_of(model, modules)
    _, before = seen(model, layer, model.model.layers[1], ids)
    delta = layer.surgical_ia3_delta[ADAPTER]
    with torch.no_grad():
        delta.normal_(generator=torch.Generator().manual_seed(0))
    _, after = seen(model, layer, model.model.layers[1], ids)
    relative = (after - before).norm(dim=-1) / before.norm(dim=-1)
    assert displaced(form, [delta.detach()]) == pytest.approx(float(relative.square().mean()), rel=1e-4)


def test_it_is_of_the_base_whatever_the_scales_are():
    model, modules = scaled()
    before = measured(model, modules, rows())
    with torch.no_grad():
        for layer in layers_of(model, modules):
            layer.surgical_ia3_delta[ADAPTER].fill_(0.5)
    after = measured(model, modules, rows())
    assert all(torch.equal(a, b) for a, b in zip(before.forms, after.forms, strict=True))


def test_batches_padding_and_order_make_no_difference():
    model, modules = scaled()
    texts = [rows()[0][:4], rows()[1], rows()[2][:5]]
    one = measured(model, modules, texts)
    other = measured(model, modules, texts[::-1], batch_size=1)
    for a, b in zip(one.forms, other.forms, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


def test_positions_left_out_do_not_count():
    model, modules = scaled()
    text = rows()[0]
    # Under causal attention what is left out at the end is as if it were not there.
    short = measured(model, modules, [text[:5]])
    left_out = measured(model, modules, [text], leave_out=[[5, 6]])
    for a, b in zip(short.forms, left_out.forms, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


def test_without_texts_or_states_nothing_moves():
    model, modules = scaled()
    for texts, options in (([], {}), ([[5]], {}), (rows(1, 3), {"leave_out": [[1, 2]]})):
        assert not any(form.any() for form in measured(model, modules, texts, **options).forms)
    model.model.embed_tokens.weight.data.zero_()
    assert not any(form.any() for form in measured(model, modules, rows()).forms)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_states_of_half_precision_are_added_up_in_float32(family):
    model, modules = scaled(family, components=("L1.mlp",))
    model.to(torch.bfloat16)
    [layer] = layers_of(model, modules)
    ids, entered = tiny_ids(3, 7), []
    [form] = measured(model, modules, ids.tolist()).forms
    handle = layer.register_forward_pre_hook(lambda _, args: entered.append(args[0][:, 1:].flatten(0, 1)))
    block = model.model.layers[1]
    made, residual = (states.float() for states in seen(model, layer, block, ids))
    handle.remove()
    lengths, weight = residual.norm(dim=-1, keepdim=True), layer.get_base_layer().weight.detach().float()
    if family == "gemma3":
        lengths = lengths * made.square().mean(-1, keepdim=True).sqrt()
        weight = (1 + block.post_feedforward_layernorm.weight.detach().float())[:, None] * weight
    neurons = entered[0].float() / lengths
    torch.testing.assert_close(form, (weight.T @ weight) * (neurons.T @ neurons) / len(neurons), rtol=1e-3, atol=1e-5)


def test_each_row_leaves_out_its_own_positions():
    model, modules = scaled()
    long, short = rows()[0], rows()[1][:4]
    expected = measured(model, modules, [long[:5], short[:3]])
    found = measured(model, modules, [long, short], leave_out=[[5, 6], [3]])
    for a, b in zip(expected.forms, found.forms, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


def test_the_forms_are_symmetric_and_no_change_has_a_negative_length():
    model, modules = scaled()
    for form in measured(model, modules, rows()).forms:
        torch.testing.assert_close(form, form.T)
        assert torch.linalg.eigvalsh(form.double()).min() > -1e-9


def test_some_neurons_have_the_rows_and_columns_that_they_have_among_all():
    model, modules = scaled()
    some = [2, 5]
    selections = {"model.layers.1.mlp.down_proj": {"side": "input", "ranges": [[2, 3], [5, 6]]}}
    other = get_peft_model(tiny_model("llama"), SurgicalIA3Config(selections=selections, task_type="CAUSAL_LM"))
    (part,) = measured(other.get_base_model(), neuron_modules(other.get_base_model(), selections), rows()).forms
    whole = measured(model, modules, rows()).forms[1]
    torch.testing.assert_close(part, whole[some][:, some])


def test_sums_and_weights():
    form = Displacement((torch.eye(2),))
    assert displaced(form + 3.0 * form, [torch.tensor([1.0, 2.0])]) == pytest.approx(20.0)


def test_factors_are_of_the_damped_form():
    form = torch.tensor([[2.0, 1.0], [1.0, 4.0]])
    (factor,) = Displacement((form,)).factors(0.5)
    torch.testing.assert_close(factor @ factor.T, form + 1.5 * torch.eye(2))
    (idle,) = Displacement((torch.zeros(2, 2),)).factors(0.5)
    assert bool((idle.diagonal() > 0).all())


@pytest.mark.parametrize(
    "selections",
    [
        {},
        {"model.layers.0.mlp.up_proj": {"side": "input", "ranges": [[0, 4]]}},
        {"model.layers.0.mlp.down_proj": {"side": "output", "ranges": [[0, 4]]}},
        {
            "model.layers.0.mlp.down_proj": {"side": "input", "ranges": [[0, 4]]},
            "model.layers.0.self_attn.o_proj": {"side": "input", "ranges": [[0, 4]]},
        },
    ],
)
def test_what_is_not_neurons_is_refused(selections):
    with pytest.raises(SelectionError, match="neurons of MLPs and nothing else"):
        neuron_modules(tiny_model("llama"), selections)


def test_quantized_weights_are_refused():
    model = tiny_model("llama")
    name = "model.layers.0.mlp.down_proj"
    projection = model.get_submodule(name)
    projection.weight = torch.nn.Parameter(projection.weight.detach().to(torch.int8), requires_grad=False)
    for quantized in (model, packed(tiny_model("llama"))):
        with pytest.raises(SelectionError, match="quantized"):
            neuron_modules(quantized, {name: {"side": "input", "ranges": [[0, 4]]}})


def test_modules_come_in_the_order_of_their_layers():
    every = {f"model.layers.{i}.mlp.down_proj": {"side": "input", "ranges": [[0, 4]]} for i in (1, 0)}
    assert list(neuron_modules(tiny_model("llama"), every).items()) == [
        ("model.layers.0.mlp.down_proj", 0),
        ("model.layers.1.mlp.down_proj", 1),
    ]


def placed(family, name, monkeypatch):
    """A model whose layers hand on something of a form of its own, scaled in its second MLP."""
    monkeypatch.setitem(architectures._KNOWN, family, architecture_of("gpt2" if "gpt" in family else "llama"))
    selections = {name: {"side": "input", "ranges": [[0, 20]]}}
    model = get_peft_model(built(family), SurgicalIA3Config(selections=selections, task_type="CAUSAL_LM"))
    base = model.get_base_model()
    return base, neuron_modules(base, model.peft_config[ADAPTER].selections)


def test_states_that_layers_give_in_a_list_are_measured(monkeypatch):
    name = "transformer.h.1.mlp.c_proj"
    model, modules = placed("openai-gpt", name, monkeypatch)
    [form] = measured(model, modules, rows()).forms
    reference, seen = built("openai-gpt"), []
    reference.get_submodule(name).register_forward_pre_hook(lambda _, args: seen.append(args[0][..., :20]))
    with torch.no_grad():
        states = reference(tiny_ids(3, 7), output_hidden_states=True).hidden_states[2]
    entering = (seen[0] / states.norm(dim=-1, keepdim=True))[:, 1:].flatten(0, 1)
    weight = reference.get_submodule(name).weight[:20]
    torch.testing.assert_close(form, (weight @ weight.T) * (entering.T @ entering) / len(entering))


def test_several_states_a_token_are_no_residual_stream(monkeypatch):
    model, modules = placed("gemma3n_text", "model.layers.1.mlp.down_proj", monkeypatch)
    with pytest.raises(ArchitectureError, match=r"hand on 4 states a token.*learn with learn_keyed"):
        measured(model, modules, rows())
