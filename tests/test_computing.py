import pytest
import torch

from peft_surgical.errors import ModelError
from peft_surgical.running import computing as module
from peft_surgical.running.attention import GROUPED
from peft_surgical.running.computing import compute_dtype, computing, denormals_flushed, plain_attention

from .adapters import tiny_peft

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


def test_processes_compute_in_what_the_first_one_chose(monkeypatch):
    monkeypatch.setattr(module, "_seconds", {torch.float32: 1.0, torch.bfloat16: 1.0}.__getitem__)
    monkeypatch.setattr(module, "by_main", lambda _: torch.bfloat16)
    with computing(tiny_peft("llama"), "auto") as working:
        assert working.dtype == torch.bfloat16


def test_what_is_no_float_is_what_it_was_and_a_copy_answers_whatever_mode_the_model_is_in():
    model = tiny_peft("llama").train()
    table = torch.nn.Parameter(torch.arange(4, dtype=torch.int8), requires_grad=False)
    model.get_base_model().table = table
    with computing(model, "bfloat16") as working:
        assert working.dtype == torch.bfloat16
        assert working.table is table
        assert not any(part.training for part in working.modules())
    assert model.training


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


def test_only_a_copy_gets_another_attention(monkeypatch):
    peft_model = tiny_peft("llama", ("L1.mlp",))
    base = peft_model.get_base_model()
    own = base.config._attn_implementation
    with computing(peft_model, "bfloat16") as copy:
        assert copy.config._attn_implementation == own
        with plain_attention(copy):
            assert copy.config._attn_implementation == GROUPED
        assert copy.config._attn_implementation == own
        monkeypatch.setattr(module, "has_plain_attention", lambda _: False)
        with plain_attention(copy):
            assert copy.config._attn_implementation == "eager"
    with computing(peft_model, "float32") as same, plain_attention(same):
        assert same is base
        assert base.config._attn_implementation == own


def test_what_cannot_be_copied_trains_in_its_own_dtype(monkeypatch):
    peft_model = tiny_peft("llama", ("L1.mlp",))
    base = peft_model.get_base_model()
    torch.nn.utils.weight_norm(base.model.layers[1].self_attn.o_proj)
    monkeypatch.setattr(module, "compute_dtype", lambda *_: torch.bfloat16)
    with computing(peft_model, "auto") as working:
        assert working is base
    with pytest.raises(ModelError, match="cannot be copied to train in bfloat16"), computing(peft_model, "bfloat16"):
        pass


@pytest.mark.parametrize("flushed", [False, True])
def test_what_was_set_of_denormals_is_set_again(flushed):
    supported = torch.set_flush_denormal(flushed)
    try:
        with denormals_flushed():
            pass
        assert (float(torch.tensor([1e-39]) * 0.5) == 0) == (flushed and supported)
    finally:
        torch.set_flush_denormal(False)
