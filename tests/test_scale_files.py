import json

import pytest
import torch
from safetensors.torch import save_file

from peft_surgical.adapters.adapter_files import WEIGHTS
from peft_surgical.adapters.lineage import Lineage
from peft_surgical.adapters.scale_files import digest_of, read_scales, read_tensors, tensor_bytes, write_tensors
from peft_surgical.errors import AdapterError

TENSORS = {"b": torch.arange(6.0).view(3, 2).T, "a": torch.ones(2).half()}


def test_the_same_tensors_are_the_same_bytes_in_any_order(tmp_path):
    raw = tensor_bytes(TENSORS)
    assert raw == tensor_bytes(dict(reversed(TENSORS.items())))
    write_tensors(tmp_path / "x", TENSORS)
    found = read_tensors(tmp_path / "x")
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], value) and found[name].dtype == value.dtype for name, value in TENSORS.items())


def test_the_head_of_a_file_is_in_order_whatever_it_was_given_in():
    raw = tensor_bytes(TENSORS, {f"note {number}": "" for number in reversed(range(9))})
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    for found in (header, header["__metadata__"]):
        assert list(found) == sorted(found)


def test_a_digest_is_that_of_the_values_whatever_their_order_and_whether_they_are_trained():
    digest = digest_of(TENSORS)
    assert digest_of(dict(reversed(TENSORS.items()))) == digest
    assert digest_of({name: torch.nn.Parameter(value) for name, value in TENSORS.items()}) == digest
    assert digest_of({**TENSORS, "a": torch.ones(1, 2).half()}) != digest


def test_scales_of_any_floating_point_are_read_in_float32(tmp_path):
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        write_tensors(tmp_path / "x", {"a": torch.tensor([0.5, -3.0], dtype=dtype)})
        found = read_scales(tmp_path / "x")["a"]
        assert (found.dtype, found.tolist()) == (torch.float32, [0.5, -3.0])


def test_the_tensors_begin_at_a_multiple_of_eight_bytes():
    headers = [int.from_bytes(tensor_bytes({"x" * length: torch.ones(2)})[:8], "little") for length in range(1, 9)]
    assert [size % 8 for size in headers] == [0] * 8


@pytest.mark.parametrize(
    ("said", "instead"), [(b"[2,3]", b"[3,2]"), (b'"F16"', b'"I16"'), (b'"a"', b'"c"'), (b'"b"', b'"c"')]
)
def test_other_names_shapes_and_kinds_of_the_same_bytes_are_noticed(said, instead, tmp_path):
    raw = tensor_bytes(TENSORS)
    assert raw.count(said) == 1
    (tmp_path / "x").write_bytes(raw.replace(said, instead))
    with pytest.raises(AdapterError, match="is damaged: it does not hold what was written to it"):
        read_tensors(tmp_path / "x")


def test_another_programs_digest_is_none_of_these(tmp_path):
    tensors = {"base_model.model.q_proj.lora_A.weight": torch.ones(2)}
    save_file(tensors, tmp_path / WEIGHTS, {"format": "pt", "sha256": "0" * 64})
    assert read_tensors(tmp_path / WEIGHTS).keys() == tensors.keys()
    assert Lineage.of(tmp_path).digest == digest_of(tensors)
    with pytest.raises(AdapterError, match="is damaged"):
        read_tensors(tmp_path / WEIGHTS, any_program=False)


def test_what_was_read_does_not_change_with_the_file(tmp_path):
    path = tmp_path / "scales.safetensors"
    write_tensors(path, {"a": torch.ones(3)})
    found = read_scales(path)
    path.write_bytes(tensor_bytes({"a": torch.full((3,), 7.0)}))
    assert torch.equal(found["a"], torch.ones(3))
