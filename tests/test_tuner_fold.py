import inspect

import pytest
import torch

from peft_surgical.merging import merge
from peft_surgical.tuner.fold import Rounding
from tests.adapters import saved, tiny_peft
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
