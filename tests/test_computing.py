import pytest
import torch

from peft_surgical.running import computing as module
from peft_surgical.running.computing import compute_dtype, denormals_flushed

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [((4.0, 1.0), torch.bfloat16), ((1.2, 1.0), torch.float32), ((1.0, 2.0), torch.float32)],
)
def test_the_faster_dtype_is_taken_where_it_is_clearly_faster(monkeypatch, seconds, expected):
    times = dict(zip((torch.float32, torch.bfloat16), seconds, strict=True))
    monkeypatch.setattr(module, "_seconds", times.__getitem__)
    assert compute_dtype(torch.float32, CPU) == expected


def test_models_of_other_dtypes_and_devices_keep_theirs(monkeypatch):
    monkeypatch.setattr(module, "_seconds", lambda _: pytest.fail("nothing is to be measured"))
    assert compute_dtype(torch.float16, CPU) == torch.float16
    assert compute_dtype(torch.float32, torch.device("cuda")) == torch.float32


def test_it_is_measured():
    assert module._seconds(torch.float32, 8, 8) > 0


def test_denormals_are_flushed_inside_only():
    tiny = torch.tensor([1e-39])
    supported = torch.set_flush_denormal(False)
    with denormals_flushed():
        inside = float(tiny * 0.5)
    assert (inside == 0) == supported
    assert float(tiny * 0.5) > 0
    with pytest.raises(RuntimeError), denormals_flushed():
        raise RuntimeError
    assert float(tiny * 0.5) > 0
