import copy
import inspect
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from peft_surgical.errors import AdapterError
from peft_surgical.merging import merge
from peft_surgical.tuner import Coordinates
from peft_surgical.tuner.fold import Folded, Rounding, check_foldable
from tests.adapters import add, saved, tiny_peft
from tests.tiny import tiny_model


def hardly_edited():
    """A bfloat16 model whose scales are lost to rounding."""
    model = tiny_peft(dtype=torch.bfloat16)
    for layer in model.base_model.surgical_layers():
        layer.surgical_ia3_delta["default"].data[:] = 0.001
    return model


@pytest.mark.parametrize("work", ["merge", "merge_adapter", "merge_and_unload", "of_the_tuner"])
def test_what_rounding_loses_is_told_at_the_callers_line(work, tmp_path):
    model = hardly_edited()
    folder = saved(model, tmp_path / "adapter")

    calls = {
        "merge": lambda: merge(tiny_model("llama", dtype=torch.bfloat16), [folder], tmp_path / "out"),
        "merge_adapter": lambda: model.merge_adapter(),
        "merge_and_unload": lambda: model.merge_and_unload(),
        "of_the_tuner": lambda: model.base_model.merge_adapter(["default"]),
    }
    with pytest.warns(UserWarning, match="loses part of the edit") as told:
        calls[work]()
    (warning,) = [w for w in told if "loses part of the edit" in str(w.message)]
    assert (warning.filename, warning.lineno) == (__file__, inspect.getsourcelines(calls[work])[1])


def test_without_a_level_the_line_is_that_of_the_call():
    with pytest.warns(UserWarning, match="loses part") as told:
        Rounding(200, 3).warn(torch.bfloat16)
    assert told[0].filename == __file__


class Interrupting(dict):
    def __missing__(self, name):
        raise KeyboardInterrupt


def test_what_is_written_before_an_interrupt_is_taken_back():
    module = nn.Linear(3, 2)
    before = module.weight.detach().clone()
    folded, slices = Folded.of(module, Coordinates("output", ((0, 1),)), torch.tensor([2.0]), safe_for=None)
    with pytest.raises(KeyboardInterrupt):
        folded.write(module, Interrupting(weight=slices["weight"]))
    assert torch.equal(module.weight, before)


# What folds scales into the weights of one layer, or takes them out of it again.
FOLDING = {"merge", "merge_only", "_fold_in", "_restore", "restore", "of", "write"}


def interrupted(work, line):
    """Does some work and interrupts it before a line of what folds; whether there was one of that number."""
    left, before = [line], sys.gettrace()

    def trace(frame, event, _):
        folds = Path(frame.f_code.co_filename).name in ("merging.py", "fold.py") and frame.f_code.co_name in FOLDING
        if not folds or left[0] < 0:
            return None
        if event == "line":
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
        return trace

    try:
        sys.settrace(trace)
        work()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)
    return left[0] < 0


@pytest.mark.parametrize("before", [[], ["other"]])
def test_wherever_a_merge_is_interrupted_nothing_of_it_is_left(before):
    model = tiny_peft(components=["L1.mlp"])
    add(model, "other", components=["L1.mlp"])
    base = copy.deepcopy(model.state_dict())
    if before:
        model.merge_adapter(before)
    held, line = copy.deepcopy(model.state_dict()), 0
    (layer,) = model.base_model.surgical_layers()
    while interrupted(lambda: model.merge_adapter(["default"]), line):
        assert layer.merged_adapters == before, line
        assert all(torch.equal(held[name], value) for name, value in model.state_dict().items()), line
        line += 1
    assert line > 20
    assert layer.merged_adapters == [*before, "default"]
    layer.merge_only(before)
    # What an interrupt leaves of work that nobody undoes comes off by the next that takes it off.
    line = 0
    while interrupted(lambda: layer.merge_only(["default"]), line):
        layer.merge_only([])
        assert all(torch.equal(base[name], value) for name, value in model.state_dict().items()), line
        layer.merge_only(before)
        line += 1
    assert line > 10


@pytest.mark.parametrize(("lost", "told"), [(Rounding(), False), (Rounding(200, 2), False), (Rounding(200, 3), True)])
def test_one_weight_in_a_hundred_may_be_lost_without_a_word(lost, told):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        lost.warn(torch.bfloat16)
    assert ["1.5% of the weights that should change" in str(warning.message) for warning in said] == [True] * told


def test_steps_of_a_grid_take_no_edit_though_they_say_that_they_are_floating_point():
    module = nn.Linear(2, 2)
    module.weight = nn.Parameter(module.weight.detach().to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(AdapterError, match=r"a quantized weight \(float8_e4m3fn\) cannot take an edit"):
        check_foldable(module, "input")


def test_a_weight_without_a_value_is_merged_as_it_is_and_comes_back():
    module = nn.Linear(2, 1, bias=False)
    module.weight.data = torch.tensor([[float("nan"), 3.0]])
    folded, slices = Folded.of(module, Coordinates("input", ((0, 2),)), torch.tensor([2.0, 2.0]), safe_for=None)
    folded.write(module, slices)
    assert module.weight[0, 0].isnan()
    assert module.weight[0, 1] == 6
    folded.restore(module)
    assert module.weight[0, 1] == 3


def test_what_was_merged_before_the_model_was_cast_comes_out_in_the_new_dtype():
    module = nn.Linear(3, 2)
    before = module.weight.detach().clone()
    folded, slices = Folded.of(module, Coordinates("output", ((0, 1),)), torch.tensor([2.0]), safe_for=None)
    folded.write(module, slices)
    module.to(torch.bfloat16)
    folded.restore(module)
    assert torch.equal(module.weight, before.bfloat16())


@pytest.mark.parametrize("names", [["default", "other"], ["other", "default"]])
def test_the_adapter_that_is_not_finite_is_blamed_in_whatever_order(names):
    model = tiny_peft()
    add(model, "other")
    for layer in model.base_model.surgical_layers():
        if layer.coordinates.keys() == {"default", "other"}:
            layer.surgical_ia3_delta["other"].data[0] = float("inf")
    with pytest.raises(AdapterError, match="the adapter other has scales that are not finite"):
        model.merge_adapter(names, safe_merge=True)
