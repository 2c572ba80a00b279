import sys
from types import SimpleNamespace

import pytest
import torch

from peft_surgical.architectures import Architecture, architecture_of, register_architecture
from peft_surgical.errors import ArchitectureError, ModelError, SelectionError
from peft_surgical.localizing.bridge import wrap
from peft_surgical.sites import (
    HEAD_PROJECTIONS,
    Component,
    ModelShape,
    check_component,
    components,
    hook_name,
    module_slices,
    projection_slices,
)

from .tiny import FAMILIES, tiny_config, tiny_ids, tiny_model

GROUPED = ModelShape("llama", n_layers=4, n_heads=4, n_kv_heads=2, d_head=8, d_mlp=64, d_model=32)
FULL = ModelShape("gpt2", n_layers=4, n_heads=4, n_kv_heads=4, d_head=8, d_mlp=128, d_model=32)


@pytest.mark.parametrize("name", ["L0.mlp", "L31.mlp", "L3.head.0", "L12.head.25"])
def test_a_component_reads_its_own_name(name):
    assert str(Component.parse(name)) == name


@pytest.mark.parametrize(
    "name", ["", "L3", "l3.mlp", "L03.mlp", "L-1.mlp", "L3.mlp ", "L3.head", "L3.head.x", "L3.mlp.2", 3]
)
def test_a_malformed_name_is_refused(name):
    with pytest.raises(SelectionError, match=r"L<layer>\.head"):
        Component.parse(name)


def test_components_are_layer_major_with_heads_first():
    names = [str(c) for c in components(GROUPED)]
    assert names[:6] == ["L0.head.0", "L0.head.1", "L0.head.2", "L0.head.3", "L0.mlp", "L1.head.0"]
    assert len(names) == 4 * 5


def test_a_component_beyond_the_model_is_refused():
    with pytest.raises(SelectionError, match=r"4 layers \(L0 to L3\); L31.mlp is not one"):
        check_component(GROUPED, Component.parse("L31.mlp"))
    with pytest.raises(SelectionError, match=r"4 heads a layer \(0 to 3\), so no L1.head.4"):
        check_component(GROUPED, Component.parse("L1.head.4"))


# Worked by hand: 4 heads of 8, 2 key/value heads where grouped; MLPs of 64 (GPT-2: 128).
@pytest.mark.parametrize(
    ("model_type", "component", "projection", "expected"),
    [
        ("llama", "L3.head.1", "z", ("model.layers.3.self_attn.o_proj", "input", 8, 16)),
        ("llama", "L3.head.1", "q", ("model.layers.3.self_attn.q_proj", "output", 8, 16)),
        ("llama", "L3.head.1", "v", ("model.layers.3.self_attn.v_proj", "output", 0, 8)),
        ("llama", "L3.head.2", "k", ("model.layers.3.self_attn.k_proj", "output", 8, 16)),
        ("llama", "L0.mlp", "post", ("model.layers.0.mlp.down_proj", "input", 0, 64)),
        ("llama", "L0.mlp", "pre", ("model.layers.0.mlp.gate_proj", "output", 0, 64)),
        ("llama", "L0.mlp", "pre_linear", ("model.layers.0.mlp.up_proj", "output", 0, 64)),
        ("phi3", "L1.head.3", "z", ("model.layers.1.self_attn.o_proj", "input", 24, 32)),
        ("phi3", "L1.head.3", "q", ("model.layers.1.self_attn.qkv_proj", "output", 24, 32)),
        ("phi3", "L1.head.3", "k", ("model.layers.1.self_attn.qkv_proj", "output", 40, 48)),
        ("phi3", "L1.head.3", "v", ("model.layers.1.self_attn.qkv_proj", "output", 56, 64)),
        ("phi3", "L1.mlp", "pre", ("model.layers.1.mlp.gate_up_proj", "output", 0, 64)),
        ("phi3", "L1.mlp", "pre_linear", ("model.layers.1.mlp.gate_up_proj", "output", 64, 128)),
        ("gpt2", "L1.head.3", "v", ("transformer.h.1.attn.c_attn", "output", 88, 96)),
        ("gpt2", "L1.head.3", "z", ("transformer.h.1.attn.c_proj", "input", 24, 32)),
        ("gpt2", "L1.mlp", "pre", ("transformer.h.1.mlp.c_fc", "output", 0, 128)),
        ("gpt_neox", "L1.head.3", "v", ("gpt_neox.layers.1.attention.query_key_value", "output", 88, 96)),
        ("gpt_neox", "L1.head.3", "q", ("gpt_neox.layers.1.attention.query_key_value", "output", 72, 80)),
        ("gemma3", "L1.mlp", "post", ("model.language_model.layers.1.mlp.down_proj", "input", 0, 64)),
        ("opt", "L1.mlp", "post", ("model.decoder.layers.1.fc2", "input", 0, 128)),
        ("llama", "L2.mlp", "in", ("model.layers.2.mlp.up_proj", "input", 0, 32)),
        ("phi3", "L2.mlp", "in", ("model.layers.2.mlp.gate_up_proj", "input", 0, 32)),
        ("gpt2", "L2.mlp", "in", ("transformer.h.2.mlp.c_fc", "input", 0, 32)),
        ("gpt_neox", "L2.mlp", "in", ("gpt_neox.layers.2.mlp.dense_h_to_4h", "input", 0, 32)),
        ("opt", "L2.mlp", "in", ("model.decoder.layers.2.fc1", "input", 0, 32)),
    ],
)
def test_slices_worked_by_hand(model_type, component, projection, expected):
    base = GROUPED if model_type in ("llama", "phi3", "gemma3") else FULL
    shape = ModelShape.from_dict({**base.to_dict(), "model_type": model_type})
    assert tuple(projection_slices(shape, Component.parse(component), projection)) == expected


def test_sizes_of_large_models_are_read_and_no_others_are():
    of_llama_7b = {"n_layers": 32, "n_heads": 32, "n_kv_heads": 32, "d_head": 128, "d_mlp": 11_008, "d_model": 4096}
    values = {"model_type": "llama", **of_llama_7b}
    assert ModelShape.from_dict(values).d_mlp == 11_008
    for name, wrong in [("n_layers", 10_001), ("n_heads", 0), ("n_kv_heads", True), ("d_mlp", 64.0)]:
        with pytest.raises(
            SelectionError, match=rf"model shape's {name} must be a positive whole number, not {wrong}"
        ):
            ModelShape.from_dict({**values, name: wrong})


def test_a_projection_of_the_other_kind_is_refused():
    with pytest.raises(SelectionError, match="no projection 'post'; it has z, v, q, k"):
        projection_slices(GROUPED, Component.parse("L0.head.0"), "post")
    with pytest.raises(SelectionError, match="not gated"):
        projection_slices(FULL, Component.parse("L0.mlp"), "pre_linear")


@pytest.mark.parametrize("family", FAMILIES)
def test_shapes_are_read_from_a_configuration_and_from_its_dictionary(family):
    config = tiny_config(family)
    shape = ModelShape.from_config(config)
    assert shape == ModelShape.from_config(config.to_dict())
    assert (shape.n_layers, shape.n_heads, shape.d_model) == (3, 4, 32)
    assert ModelShape.from_dict(shape.to_dict()) == shape


@pytest.mark.parametrize("family", FAMILIES)
def test_slices_fit_the_modules_of_the_model(family):
    model = tiny_model(family)
    shape = ModelShape.from_config(model.config)
    for component in components(shape):
        projections = ("z", "q", "k", "v") if component.kind == "head" else ("post", "pre", "in")
        found = [projection_slices(shape, component, projection) for projection in projections]
        whole = module_slices(shape, component)
        for piece in [*found, *whole]:
            module = model.get_submodule(piece.module)
            out_in = module.weight.shape[::-1] if type(module).__name__ == "Conv1D" else module.weight.shape
            width = out_in[1] if piece.side == "input" else out_in[0]
            assert 0 <= piece.start < piece.stop <= width
            if piece in whole:
                assert (piece.start, piece.stop) == (0, width)
    assert len(model.get_submodule(shape.architecture.layers)) == shape.n_layers


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("projection", ["z", "q", "k", "v", "post", "pre", "pre_linear", "in"])
def test_zeroing_the_hook_equals_zeroing_the_slice(family, projection):
    model = tiny_model(family)
    shape = ModelShape.from_config(model.config)
    if projection == "pre_linear" and not shape.architecture.gated:
        pytest.skip("not gated")
    ids = tiny_ids(2, 9)
    of_heads = projection in HEAD_PROJECTIONS
    component = Component("head", 1, 2) if of_heads else Component("mlp", 1)
    piece = projection_slices(shape, component, projection)
    grouped = shape.n_kv_heads if projection in ("k", "v") else shape.n_heads
    start = piece.start + (0 if of_heads else 5)

    def zero_slice(tensor):
        tensor = tensor.clone()
        tensor[..., start : piece.stop] = 0
        return tensor

    bridge = wrap(model)  # before there are hooks on the model, which it would take over
    module = model.get_submodule(piece.module)
    if piece.side == "input":
        handle = module.register_forward_pre_hook(lambda m, args: (zero_slice(args[0]), *args[1:]))
    else:
        handle = module.register_forward_hook(lambda m, args, out: zero_slice(out))
    if projection == "in":
        hook = "blocks.1.mlp.hook_in" if shape.architecture.gate_up else "blocks.1.mlp.in.hook_in"
    else:
        hook = hook_name(projection, 1)

    def zero_hook(tensor, hook):
        if of_heads:
            tensor[:, :, 2 * grouped // shape.n_heads] = 0
        else:
            tensor[..., 5:] = 0
        return tensor

    with torch.no_grad():
        expected = model(ids).logits
        handle.remove()
        plain = model(ids).logits
        hooked = bridge.run_with_hooks(ids, fwd_hooks=[(hook, zero_hook)])
    assert (expected - plain).abs().max() > 1e-3
    torch.testing.assert_close(hooked, expected, atol=2e-5, rtol=1e-4)


def test_hook_names():
    assert hook_name("z", 3) == "blocks.3.attn.hook_z"
    assert hook_name("post", 3) == "blocks.3.mlp.hook_post"
    assert hook_name("pre_linear", 0) == "blocks.0.mlp.hook_pre_linear"
    # Which module reads it depends on the model.
    for projection in ("nonsense", "in"):
        with pytest.raises(SelectionError, match="a hook point belongs to"):
            hook_name(projection, 0)


def test_an_unknown_model_type_says_how_to_register():
    with pytest.raises(ArchitectureError, match=r"register_architecture"):
        ModelShape.from_config({"model_type": "never_heard_of"})


def test_a_registered_architecture_is_used(monkeypatch):
    monkeypatch.setattr("peft_surgical.architectures._KNOWN", {})
    mine = Architecture(layers="h", attention_out="o", mlp_out="down", qkv="qkv", up="up")
    register_architecture("mine", mine)
    register_architecture("mine", mine)
    assert architecture_of("mine") is mine
    with pytest.raises(ArchitectureError, match="must be an Architecture, not 'llama'"):
        register_architecture("other", "llama")
    with pytest.raises(ArchitectureError, match="registered already"):
        register_architecture("mine", Architecture(layers="x", attention_out="o", mlp_out="d", qkv="qkv", up="up"))


def test_an_interleaved_projection_has_a_key_and_a_value_for_each_head(monkeypatch):
    monkeypatch.setattr("peft_surgical.architectures._KNOWN", {})
    mine = Architecture(layers="h", attention_out="o", mlp_out="down", qkv="qkv", qkv_order="interleaved", up="up")
    register_architecture("mine", mine)
    places = [
        projection_slices(ModelShape("mine", 2, 4, 4, 8, 48, 32), Component("head", 0, 3), p).start for p in "qkv"
    ]
    assert places == [72, 80, 88]
    for projection in "qkv":
        with pytest.raises(ArchitectureError, match="mine has 4 heads and 2 key and value heads, which"):
            projection_slices(ModelShape("mine", 2, 4, 2, 8, 48, 32), Component("head", 0, 3), projection)
    projection_slices(ModelShape("mine", 2, 4, 2, 8, 48, 32), Component("head", 0, 3), "z")


def test_installed_packages_are_asked_for_an_unknown_architecture(monkeypatch):
    mine = Architecture(layers="h", attention_out="o", mlp_out="down", qkv="qkv", up="up")
    asked = []

    def entry_points(group):
        asked.append(group)
        return [
            SimpleNamespace(name="broken", value="their_package", load=lambda: 1 / 0),
            SimpleNamespace(name="leaving", value="another_package", load=sys.exit),
            SimpleNamespace(name="mine", value="my_package", load=lambda: register_architecture("mine", mine)),
        ]

    monkeypatch.setattr("peft_surgical.architectures._KNOWN", {"llama": architecture_of("llama")})
    monkeypatch.setattr("peft_surgical.architectures.metadata.entry_points", entry_points)
    architecture_of("llama")
    assert not asked
    with pytest.raises(ArchitectureError, match=r"'broken', their_package, failed: ZeroDivisionError: .*: SystemExit"):
        architecture_of("theirs")
    monkeypatch.setattr("peft_surgical.architectures._KNOWN", {})
    assert architecture_of("mine") is mine
    assert set(asked) == {"peft_surgical.architectures"}


@pytest.mark.parametrize(
    "parts", [{"up": "u"}, {"qkv": "w", "q": "q", "up": "u"}, {"qkv": "w"}, {"qkv": "w", "up": "u", "gate_up": "g"}]
)
def test_an_incomplete_architecture_is_refused(parts):
    with pytest.raises(ArchitectureError, match="an architecture names"):
        Architecture(layers="h", attention_out="o", mlp_out="d", **parts)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"intermediate_size": [8, 9]}, "one positive number for all layers"),
        ({"hidden_size": None}, "gives no hidden"),
    ],
)
def test_a_size_that_is_missing_or_differs_between_layers_is_refused(change, message):
    with pytest.raises(ArchitectureError, match=message):
        ModelShape.from_config({**tiny_config("llama").to_dict(), **change})


def test_a_multimodal_configuration_gives_the_sizes_of_its_text_model():
    text = tiny_config("gemma3").to_dict()
    shape = ModelShape.from_config({"model_type": "gemma3", "text_config": text})
    assert shape.model_type == "gemma3"
    assert shape.d_head == 16


def test_a_model_that_is_wrapped_by_compile_is_told_from_another_layout():
    with pytest.raises(ModelError, match=r"the model is wrapped by torch\.compile"):
        wrap(torch.compile(tiny_model("llama"), backend="eager"))
