import struct
from types import SimpleNamespace

import numpy as np
import pytest

from peft_surgical.errors import ModelError
from peft_surgical.loading.gguf_header import Header, fault, lost_scaling
from peft_surgical.models import load_model

from .test_models import write_gguf

gguf = pytest.importorskip("gguf")

LINEAR, YARN, LONG = gguf.RopeScalingType.LINEAR, gguf.RopeScalingType.YARN, gguf.RopeScalingType.LONGROPE
PLAIN = SimpleNamespace(rope_parameters={"rope_type": "default", "rope_theta": 10000.0})
PARTED = SimpleNamespace(rope_parameters=dict.fromkeys(("full", "sliding"), PLAIN.rope_parameters))
DAMAGED = r"the file is damaged or only a part of it\."


@pytest.fixture
def path(tmp_path):
    return tmp_path / "tiny.gguf"


def refused(path, reason):
    with pytest.raises(ModelError, match=rf"^cannot load the model '.*': {reason}$"):
        load_model(path)


def scaling(kind=None, factor=None):
    def add(writer):
        if kind is not None:
            writer.add_rope_scaling_type(kind)
        if factor is not None:
            writer.add_rope_scaling_factor(factor)

    return add


def factors(*values, name="rope_freqs", dtype=np.float32):
    return lambda writer: writer.add_tensor(f"{name}.weight", np.array(values, dtype))


@pytest.mark.parametrize(
    ("add", "how"),
    [
        (scaling(LINEAR, 4.0), "linear, 4"),
        (scaling(YARN, 2.5), "yarn, 2.5"),
        (scaling(LONG), "longrope, 1"),
        # llama.cpp takes a factor without a kind for a linear one, also by its older name.
        (scaling(factor=4.0), "linear, 4"),
        (lambda writer: writer.add_float32("llama.rope.scale_linear", 8.0), "linear, 8"),
        (factors(1, 1, 2, 8), r"by rope_freqs\.weight"),
        (factors(1, 1, 1, 2, dtype=np.float16), r"by rope_freqs\.weight"),
        (factors(1, 2, 4, 8, name="rope_factors_long"), r"by rope_factors_long\.weight"),
    ],
)
def test_scaled_positions_that_would_be_lost_are_refused(add, how, path):
    write_gguf(path, add)
    refused(
        path,
        rf"the file scales its positions \({how}\), which transformers does not read from GGUF; use the safetensors"
        r" checkpoint\.",
    )
    header = Header(path)
    assert lost_scaling(header, PARTED)
    # What transformers has read, or has by itself for this kind of model, is not lost.
    for own in ({"rope_type": "yarn"}, {"full": {"rope_type": "proportional"}, "sliding": {"rope_type": "default"}}):
        assert lost_scaling(header, SimpleNamespace(rope_parameters=own)) is None


@pytest.mark.parametrize(
    "add",
    [
        scaling(gguf.RopeScalingType.NONE, 4.0),
        scaling(LINEAR, 1.0),
        scaling(LINEAR, 0.0),
        scaling(YARN),
        factors(1, 1, 1, 1),
        lambda writer: writer.add_string("llama.rope.scaling.factor", "4"),
    ],
)
def test_positions_that_are_not_scaled_are_taken(add, path):
    write_gguf(path, add)
    load_model(path)


def test_more_layers_than_the_metadata_ask_for(path):
    write_gguf(path, blocks=2)
    refused(path, r"its files hold blk\.2\.attn_k\.weight, and its configuration asks for 2 layers \(0 to 1\)\.")
    # One that predicts a further token is none of the model's own.
    write_gguf(path, lambda writer: writer.add_uint32("llama.nextn_predict_layers", 1), blocks=2)
    assert load_model(path)[0].config.num_hidden_layers == 2


def test_a_damaged_file(path):
    write_gguf(path)
    whole = path.read_bytes()
    assert fault(path, tokenizer=False) is None
    for length in (0, 3, 10, 30, 100, len(whole) // 8, len(whole) // 4, len(whole) // 2, len(whole) - 40):
        path.write_bytes(whole[:length])
        refused(path, DAMAGED)
    # Counts and lengths that no file holds end with the file.
    for place in (8, 16, 24):
        path.write_bytes(whole[:place] + b"\xff" * 8 + whole[place + 8 :])
        refused(path, DAMAGED)
    path.write_bytes(b"hello world" * 100)
    refused(path, r"it is not a GGUF file\.")
    path.write_bytes(whole[:4] + struct.pack("<I", 1) + whole[8:])
    refused(path, r"it is a GGUF file of version 1, which cannot be read\.")


@pytest.mark.parametrize("alignment", ["add_string", "add_uint32"])
def test_a_file_whose_alignment_is_none(alignment, path):
    write_gguf(path, lambda writer: getattr(writer, alignment)("general.alignment", "x" if "str" in alignment else 0))
    assert "damaged" in fault(path, tokenizer=True)


def test_a_tokenizer_that_lacks_a_part(path):
    write_gguf(path, merges=False)
    refused(path, r"its metadata lack tokenizer\.ggml\.merges\.")
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"tokenizer.ggml.model", b"tokenizer.ggml.modal"))
    refused(path, r"its metadata lack tokenizer\.ggml\.model\.")
    path.write_bytes(whole.replace(b"gpt2", b"none").replace(b"tokenizer.ggml.tokens", b"tokenizer.ggml.tokenz"))
    refused(path, r"its metadata lack tokenizer\.ggml\.tokens and tokenizer\.ggml\.scores\.")
    assert fault(path, tokenizer=True) is None
    # Gemma 4's is of merges, too.
    kind = "tokenizer.ggml.model"
    write_gguf(path, lambda writer: setattr(writer.kv_data[0][kind], "value", "gemma4"), merges=False)
    assert fault(path, tokenizer=False) == "its metadata lack tokenizer.ggml.merges."
