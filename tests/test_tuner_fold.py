import copy
import inspect
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from peft_surgical.merging import merge
from peft_surgical.tuner import Coordinates
from peft_surgical.tuner.fold import Folded, Rounding
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
