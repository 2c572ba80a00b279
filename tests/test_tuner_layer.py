"""The arithmetic of one layer: hand-worked numbers, and agreement with PEFT's own (IA)^3 bit for bit."""

import copy
import pickle

import pytest
import torch
from peft import IA3Config
from peft.helpers import disable_input_dtype_casting
from peft.tuners.ia3 import Linear as StockLinear
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers.pytorch_utils import Conv1D

from peft_surgical.errors import AdapterError, SelectionError
from peft_surgical.tuner import Coordinates
from peft_surgical.tuner.fold import Rounding
from peft_surgical.tuner.layer import Linear, own_names
from peft_surgical.tuner.scaling import MAX_PIECES

IN, OUT = 12, 8
RANGES = {
    "whole": lambda width: ((0, width),),
    "first": lambda width: ((0, 3),),
    "middle": lambda width: ((2, 5),),
    "two": lambda width: ((1, 3), (5, width)),
    "three": lambda width: ((0, 1), (2, 4), (5, 8)),
    "scattered": lambda width: tuple((i, i + 1) for i in range(0, width, 2)),
}


def base(kind="linear", dtype=torch.float32, bias=True):
    generator = torch.Generator().manual_seed(0)
    module = nn.Linear(IN, OUT, bias=bias) if kind == "linear" else Conv1D(OUT, IN)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return module.to(dtype).requires_grad_(False)


def surgical(module, side, name="two", adapter="default"):
    width = IN if side == "input" else OUT
    layer = Linear(module, adapter, Coordinates(side, RANGES[name](width)))
    layer.surgical_ia3_delta[adapter].data.uniform_(-0.5, 0.5, generator=torch.Generator().manual_seed(3))
    return layer


def x(dtype=torch.float32):
    return torch.randn(2, 5, IN, generator=torch.Generator().manual_seed(1)).to(dtype)


def test_hand_worked_numbers():
    module = nn.Linear(3, 2)
    module.weight.data = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    module.bias.data = torch.tensor([10.0, 20.0])
    one = torch.ones(1, 3)
    on_input = Linear(module, "a", Coordinates("input", ((1, 2),)))
    on_input.surgical_ia3_delta["a"].data[:] = 1.0
    assert on_input(one).tolist() == [[1 + 2 * 2 + 3 + 10, 4 + 5 * 2 + 6 + 20]]
    on_output = Linear(module, "a", Coordinates("output", ((1, 2),)))
    on_output.surgical_ia3_delta["a"].data[:] = -0.5
    assert on_output(one).tolist() == [[16.0, 0.5 * 35.0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", RANGES)
@pytest.mark.parametrize("side", ["input", "output"])
@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_agrees_with_stock_ia3_bit_for_bit(kind, side, name, dtype):
    layer = surgical(base(kind, dtype), side, name)
    config = IA3Config(target_modules=["m"], feedforward_modules=[], fan_in_fan_out=kind == "conv1d")
    stock = StockLinear(base(kind, dtype), "default", config, is_feedforward=side == "input")
    # PEFT keeps the vector in the base's dtype, and half-precision ones in float32.
    scale = layer.dense_scale("default").detach().to(torch.promote_types(dtype, torch.float32))
    stock.ia3_l["default"] = nn.Parameter(scale.view(1, -1) if side == "input" else scale.view(-1, 1))
    out = layer(x(dtype))
    assert out.dtype == dtype
    assert torch.equal(out, stock(x(dtype)))
    assert not torch.equal(out, base(kind, dtype)(x(dtype)))


@pytest.mark.parametrize("side", ["input", "output"])
def test_a_new_adapter_changes_no_bit(side):
    layer = Linear(base(), "default", Coordinates(side, RANGES["two"](IN if side == "input" else OUT)))
    assert torch.equal(layer(x()), base()(x()))


def test_coordinates_outside_of_the_selection_keep_every_bit():
    layer = surgical(base(dtype=torch.bfloat16), "output", "middle")
    special = x(torch.bfloat16)
    special[0, 0, 0] = float("inf")
    out, ref = layer(special), base(dtype=torch.bfloat16)(special)
    outside = [i for i in range(OUT) if not 2 <= i < 5]
    assert out[..., outside].view(torch.int16).equal(ref[..., outside].view(torch.int16))
    assert not torch.equal(out[1, :, 2:5], ref[1, :, 2:5])


@pytest.mark.parametrize("name", RANGES)
@pytest.mark.parametrize("side", ["input", "output"])
def test_gradient_is_that_of_the_formula(side, name):
    """Checked against a dense scale vector, written down plainly, and by finite differences."""
    layer = surgical(base().double(), side, name)
    delta = layer.surgical_ia3_delta["default"]
    index = layer.index("default", delta.device)
    inputs = x(torch.float64).requires_grad_()
    layer(inputs).pow(2).sum().backward()
    dense = torch.ones(layer.width).index_copy(0, index, 1 + delta.detach()).requires_grad_()
    plain = x(torch.float64).requires_grad_()
    module = base().double()
    out = module(plain * dense) if side == "input" else module(plain) * dense
    out.pow(2).sum().backward()
    torch.testing.assert_close(inputs.grad, plain.grad)
    torch.testing.assert_close(delta.grad, dense.grad[index])


@pytest.mark.parametrize("name", RANGES)
def test_the_coordinates_survive_the_meta_device(name):
    layer = surgical(base(), "input", name, "a")
    layer.update_layer("b", Coordinates("input", RANGES["scattered"](IN)))
    layer.surgical_ia3_delta["b"].data.uniform_(-0.5, 0.5, generator=torch.Generator().manual_seed(4))
    layer.set_adapter(["a", "b"])
    state, expected = copy.deepcopy(layer.state_dict()), layer(x())
    layer.to("meta")
    assert layer(x().to("meta")).shape == expected.shape
    layer.to_empty(device="cpu")
    layer.load_state_dict(state)
    assert torch.equal(layer(x()), expected)
    with torch.device("meta"):
        empty = Linear(nn.Linear(IN, OUT), "a", Coordinates("input", RANGES[name](IN)))
        empty.update_layer("b", Coordinates("input", RANGES["scattered"](IN)))
    empty.set_adapter(["a", "b"])
    empty.load_state_dict(state, assign=True)
    assert torch.equal(empty(x()), expected)


def test_indices_that_a_forward_without_gradients_made_serve_in_training():
    module = base()
    with torch.inference_mode():
        layer = surgical(module, "output", "scattered")
        layer(x())
    # What was made there itself does not train.
    layer.surgical_ia3_delta["default"] = nn.Parameter(torch.full((layer.coordinates["default"].n,), 0.5))
    layer(x()).sum().backward()
    assert layer.surgical_ia3_delta["default"].grad.abs().sum() > 0


def test_an_adapter_of_the_same_name_has_coordinates_of_its_own():
    layer = surgical(base(), "output", "scattered", "a")
    layer.update_layer("b", Coordinates("output", RANGES["first"](OUT)))
    layer.delete_adapter("b")
    layer.update_layer("b", Coordinates("output", RANGES["middle"](OUT)))
    assert layer.index("b", torch.device("cpu")).tolist() == [2, 3, 4]
    layer.update_layer("b", Coordinates("output", RANGES["two"](OUT)))
    assert layer.index("b", torch.device("cpu")).tolist() == [1, 2, 5, 6, 7]


def test_indices_are_where_they_are_asked_for():
    layer = surgical(base(), "output", "first")
    for device in ("cpu", "meta", "cpu"):
        assert layer.index("default", torch.device(device)).device.type == device
    assert layer.index("default", torch.device("cpu")).tolist() == [0, 1, 2]
    with FakeTensorMode():
        fake = surgical(nn.Linear(IN, OUT), "output", "first")
    assert fake.index("default", torch.device("cpu")).tolist() == [0, 1, 2]


def test_copies_and_pickles_have_the_coordinates():
    layer = surgical(base(), "output", "scattered")
    for again in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(again(x()), layer(x()))


def test_the_cut_and_the_dense_way_are_both_exercised():
    pieces = {name: len(Coordinates("output", ranges(OUT)).pieces(OUT)) for name, ranges in RANGES.items()}
    assert pieces["two"] < pieces["three"] <= MAX_PIECES < pieces["scattered"]


@pytest.mark.parametrize(("first", "second"), [("two", "two"), ("two", "middle"), ("whole", "scattered")])
def test_several_adapters_multiply_in_float32(first, second):
    layer = surgical(base(dtype=torch.bfloat16), "input", first, "a")
    layer.update_layer("b", Coordinates("input", RANGES[second](IN)))
    layer.surgical_ia3_delta["b"].data.uniform_(-0.5, 0.5, generator=torch.Generator().manual_seed(4))
    layer.set_adapter(["a", "b"])
    product = layer.dense_scale("a") * layer.dense_scale("b")
    inputs = x(torch.bfloat16)
    expected = base(dtype=torch.bfloat16)((inputs.float() * product).to(torch.bfloat16))
    assert torch.equal(layer(inputs), expected)
    rounded_twice = base(dtype=torch.bfloat16)(
        ((inputs.float() * layer.dense_scale("a")).bfloat16().float() * layer.dense_scale("b")).bfloat16()
    )
    assert not torch.equal(expected, rounded_twice)


def three_adapters(dtype=torch.float32):
    """The first and the last on the same coordinates, the one between them on others."""
    layer = surgical(base(dtype=dtype), "output", "two", "a")
    for seed, (name, where) in enumerate({"b": "middle", "c": "two"}.items()):
        layer.update_layer(name, Coordinates("output", RANGES[where](OUT)))
        layer.surgical_ia3_delta[name].data.uniform_(-0.5, 0.5, generator=torch.Generator().manual_seed(seed))
    layer.set_adapter(["a", "b", "c"])
    return layer


def test_each_of_three_adapters_multiplies_the_two_others():
    layer = three_adapters()
    dense = {name: layer.dense_scale(name) for name in "abc"}
    for order in ("abc", "acb"):
        layer.set_adapter([*order])
        torch.testing.assert_close(layer(x()), base()(x()) * dense["a"] * dense["b"] * dense["c"])
    for name, first, second in ("abc", "bac", "cab"):
        expected = (dense[first] * dense[second])[layer.index(name, torch.device("cpu"))]
        torch.testing.assert_close(layer.others_scale(name, ["a", "b", "elsewhere", "c"]), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_row_of_a_mixed_batch_has_the_bits_that_its_adapter_gives_it(dtype):
    layer, rows = three_adapters(dtype), x(dtype)[:1].expand(4, -1, -1)
    mixed = layer(rows, adapter_names=["a", "b", "c", "__base__"])
    for row, active in enumerate((["a"], ["b"], ["c"], [])):
        layer.set_adapter(active)
        assert torch.equal(layer(rows)[row], mixed[row])


def test_scales_that_start_at_random_lie_evenly_about_one():
    layer = Linear(nn.Linear(1000, 1), "a", Coordinates("input", ((0, 1000),)), init_weights=False)
    low, high = (float(value) for value in layer.scale("a").aminmax())
    assert 0.5 <= low < 0.55
    assert 1.45 < high < 1.5


def test_scales_are_float32_whatever_kind_of_number_torch_makes_by_default():
    held = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        layer = Linear(nn.Linear(4, 4, device="meta"), "a", Coordinates("input", ((0, 4),)))
    finally:
        torch.set_default_dtype(held)
    assert layer.surgical_ia3_delta["a"].dtype == torch.float32


def test_one_side_per_layer():
    layer = surgical(base(), "input")
    with pytest.raises(SelectionError, match="'b' cannot scale its output"):
        layer.update_layer("b", Coordinates("output", ((0, 1),)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", RANGES)
@pytest.mark.parametrize("side", ["input", "output"])
@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_merge_is_the_forward_and_unmerge_is_exact(kind, side, name, dtype):
    module = base(kind, dtype)
    layer = surgical(module, side, name)
    layer.surgical_ia3_delta["default"].data[0] = -1.0  # a scale of 0, which no division can take back
    before, unmerged = copy.deepcopy(module.state_dict()), layer(x(dtype))
    layer.merge()
    assert layer.merged_adapters == ["default"]
    changed = [not torch.equal(before[key], value) for key, value in module.state_dict().items()]
    assert changed == [True, side == "output"]
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 0.1, torch.float16: 0.02}[dtype]
    torch.testing.assert_close(layer(x(dtype)), unmerged, atol=tolerance, rtol=tolerance)
    layer.unmerge()
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())
    assert torch.equal(layer(x(dtype)), unmerged)


def test_merging_one_after_the_other_is_merging_at_once():
    layers = []
    for one_by_one in (True, False):
        layer = surgical(base(dtype=torch.bfloat16), "input", "two", "a")
        layer.update_layer("b", Coordinates("input", RANGES["middle"](IN)))
        layer.surgical_ia3_delta["b"].data.uniform_(-0.5, 0.5, generator=torch.Generator().manual_seed(5))
        layer.set_adapter(["a", "b"])
        if one_by_one:
            layer.merge(adapter_names=["a"])
            with pytest.warns(UserWarning, match="additionally merging b"):
                layer.merge(adapter_names=["b"])
        else:
            layer.merge()
        layers.append(layer)
    assert layers[0].merged_adapters == layers[1].merged_adapters == ["a", "b"]
    assert torch.equal(layers[0].weight, layers[1].weight)
    layers[0].unmerge()
    assert torch.equal(layers[0].weight, base(dtype=torch.bfloat16).weight)


def test_safe_merge_refuses_and_keeps_what_was_merged():
    layer = surgical(base(), "input", "two", "a")
    layer.update_layer("b", Coordinates("input", ((0, 2),)))
    layer.surgical_ia3_delta["b"].data[1] = float("nan")
    layer.merge(adapter_names=["a"])
    merged = layer.weight.clone()
    with (
        pytest.raises(AdapterError, match="NaNs detected in the merged weights"),
        pytest.warns(UserWarning, match="additionally"),
    ):
        layer.merge(safe_merge=True, adapter_names=["b"])
    assert layer.merged_adapters == ["a"]
    assert torch.equal(layer.weight, merged)
    layer.unmerge()
    assert torch.equal(layer.weight, base().weight)


def test_rounding_is_counted():
    """Around 1.0, bfloat16 steps by 2**-7 above and 2**-8 below: a scale of 1.003 moves only some weights."""
    module = nn.Linear(4, 1, bias=False).to(torch.bfloat16)
    module.weight.data = torch.tensor([[1.0, 1.9921875, 0.0, 1.0]], dtype=torch.bfloat16)
    layer = Linear(module, "a", Coordinates("input", ((0, 3),)))
    layer.surgical_ia3_delta["a"].data[:] = 0.003
    layer.merge()
    assert (layer.rounding.touched, layer.rounding.unchanged) == (2, 1)
    layer.unmerge()
    assert layer.rounding.touched == 0


def test_rounding_is_counted_of_what_should_move_in_the_weight_and_in_the_bias():
    module = nn.Linear(2, 2).to(torch.bfloat16)
    module.weight.data = torch.tensor([[1.0, 1.9921875], [1.0, 1.0]], dtype=torch.bfloat16)
    module.bias.data = torch.ones(2, dtype=torch.bfloat16)
    layer = Linear(module, "a", Coordinates("output", ((0, 2),)))
    # A scale of 1 moves nothing, and need not.
    layer.surgical_ia3_delta["a"].data = torch.tensor([0.003, 0.0])
    layer.merge()
    assert layer.rounding == Rounding(3, 2)


def test_the_rounding_of_all_weights_decides_whether_it_is_worth_a_warning(recwarn):
    assert Rounding.total([Rounding(3, 2), Rounding(5, 1)]) == Rounding(8, 3)
    Rounding.total([]).warn(torch.bfloat16)
    Rounding(200, 2).warn(torch.bfloat16)
    assert not recwarn
    with pytest.warns(UserWarning, match=r"1\.5% of the weights .* in bfloat16"):
        Rounding(200, 3).warn(torch.bfloat16)


def test_a_weight_that_is_no_number_is_merged_and_restored():
    module = nn.Linear(3, 2)
    module.weight.data[0, 1] = torch.nan
    before = module.weight.detach().clone()
    layer = Linear(module, "a", Coordinates("input", ((1, 3),)))
    layer.surgical_ia3_delta["a"].data = torch.tensor([1.0, 3.0])
    layer.merge()
    torch.testing.assert_close(module.weight.data, before * torch.tensor([1.0, 2.0, 4.0]), equal_nan=True)
    layer.unmerge()
    torch.testing.assert_close(module.weight.data, before, rtol=0, atol=0, equal_nan=True)


def test_what_is_merged_is_taken_out_of_a_module_of_another_dtype():
    module = nn.Linear(3, 2)
    before = module.weight.detach().clone()
    layer = Linear(module, "a", Coordinates("input", ((1, 3),)))
    layer.surgical_ia3_delta["a"].data = torch.tensor([1.0, 3.0])
    layer.merge()
    layer.bfloat16()
    layer.unmerge()
    assert torch.equal(module.weight.data, before.bfloat16())


def test_safe_merge_looks_at_the_bias_too():
    module = base()
    module.bias.data[1] = float("inf")
    with pytest.raises(AdapterError, match="NaNs detected"):
        surgical(module, "output").merge(safe_merge=True)


def test_embedding_is_refused():
    with pytest.raises(SelectionError, match="not Embedding"):
        Linear(nn.Embedding(3, 4), "a", Coordinates("input", ((0, 1),)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_computes_the_same_without_peft_casting_inputs(dtype):
    layer = surgical(base(dtype=dtype), "input")
    layer.surgical_ia3_delta["default"].data[:] = 0.5
    x = torch.randn(3, IN, generator=torch.Generator().manual_seed(1)).to(dtype)
    expected = layer(x)
    with disable_input_dtype_casting(layer):
        assert not layer.cast_input_dtype_enabled
        assert torch.equal(layer(x), expected)
    assert layer.cast_input_dtype_enabled


def test_a_row_without_an_adapter_is_refused_by_the_layer_too():
    layer = surgical(nn.Linear(IN, OUT), "input")
    with pytest.raises(AdapterError, match="1 names for a batch of 2 rows"):
        layer(x(), adapter_names=["default"])


def test_a_module_of_the_models_own_that_is_called_as_peft_calls_what_it_wraps_keeps_its_name():
    model = nn.ModuleDict({"base_layer": surgical(base(), "input"), "other": surgical(base(), "input")})
    assert own_names(model) == {"base_layer": "base_layer", "other": "other"}
