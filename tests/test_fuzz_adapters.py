"""An adapter folder with anything in it is an edit, which can be written and read again, or an `AdapterError`.

| What | Anything |
|---|---|
| `adapter_config.json` | any bytes; the real one with values replaced or left out |
| `adapter_model.safetensors` | any bytes; cut anywhere; every bit flipped; tensors of any name, shape and dtype |
"""

import json
import shutil
from contextlib import suppress

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import peft_surgical as ps
from peft_surgical.adapters.adapter_files import CONFIG, WEIGHTS, write_plain
from peft_surgical.adapters.edits import Edit
from peft_surgical.adapters.saving import save_adapter
from peft_surgical.errors import AdapterError, SurgicalError

from .adapters import tiny_peft
from .fuzzing import flipped, mutated

QUICK = settings(max_examples=60, deadline=None)
DTYPES = [
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float64,
    torch.float8_e4m3fn,
    torch.int8,
    torch.int64,
    torch.bool,
    torch.complex64,
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A surgical adapter, the same as plain (IA)^3, and a folder to damage."""
    root = tmp_path_factory.mktemp("adapters")
    save_adapter(tiny_peft(), "default", root / "surgical")
    write_plain(Edit.load(root / "surgical"), root / "plain")
    return root


def same(left, right):
    """Whether two edits are the same, bit for bit."""
    if left.modules.keys() != right.modules.keys():
        return False
    pairs = [(left.modules[name], right.modules[name]) for name in left.modules]
    return all(
        (a.coordinates, a.width) == (b.coordinates, b.width) and torch.equal(a.scale, b.scale) for a, b in pairs
    )


def damaged(folders, kind, file, content):
    """A copy of an adapter with one file replaced."""
    folder = folders / "damaged"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(folders / kind, folder)
    (folder / file).write_bytes(content)
    return folder


def checked(folder):
    """Reads a folder; None when it is refused."""
    try:
        edit = Edit.load(folder)
    except AdapterError:
        return None
    again = folder.with_name("again")
    edit.save(again, overwrite=True)
    assert Edit.load(again).modules.keys() == edit.modules.keys()
    # What else reads it fails on purpose or not at all.
    with suppress(SurgicalError):
        ps.stack([edit, edit], folder.with_name("stacked"), overwrite=True)
    return edit


@pytest.mark.parametrize("kind", ["surgical", "plain"])
def test_every_bit_flipped(folders, kind):
    content, whole = (folders / kind / WEIGHTS).read_bytes(), Edit.load(folders / kind)
    folder = damaged(folders, kind, WEIGHTS, content)
    refused = 0
    # Every byte of the header, every byte of the numbers, one bit of each.
    for byte in range(len(content)):
        (folder / WEIGHTS).write_bytes(flipped(content, 8 * byte + byte % 8))
        try:
            assert same(Edit.load(folder), whole)
        except AdapterError:
            refused += 1
    assert refused > 0.9 * len(content)


@pytest.mark.parametrize("kind", ["surgical", "plain"])
def test_cut_anywhere(folders, kind):
    content = (folders / kind / WEIGHTS).read_bytes()
    folder = damaged(folders, kind, WEIGHTS, content)
    for length in range(0, len(content), 7):
        (folder / WEIGHTS).write_bytes(content[:length])
        with pytest.raises(AdapterError):
            Edit.load(folder)


@pytest.mark.parametrize("kind", ["surgical", "plain"])
@QUICK
@given(draw=st.data())
def test_any_configuration(folders, kind, draw):
    config = json.loads((folders / kind / CONFIG).read_bytes())
    changed = draw.draw(mutated(config))
    checked(damaged(folders, kind, CONFIG, json.dumps(changed).encode()))


@pytest.mark.parametrize("kind", ["surgical", "plain"])
def test_half_of_a_surrogate_pair_is_refused(folders, kind):
    config = json.loads((folders / kind / CONFIG).read_bytes())
    for name, value in (("auto_mapping", {"base_model_class": "\ud800"}), ("base_model_name_or_path", "\udfff")):
        folder = damaged(folders, kind, CONFIG, json.dumps({**config, name: value}).encode())
        with pytest.raises(AdapterError, match="surrogates not allowed"):
            Edit.load(folder)


@QUICK
@given(file=st.sampled_from([CONFIG, WEIGHTS]), content=st.binary(max_size=80) | st.text(max_size=40).map(str.encode))
def test_any_bytes(folders, file, content):
    assert checked(damaged(folders, "surgical", file, content)) is None


@pytest.mark.parametrize("kind", ["surgical", "plain"])
@QUICK
@given(draw=st.data())
def test_any_tensors(folders, kind, draw):
    ending = {"surgical": "surgical_ia3_delta", "plain": "ia3_l"}[kind]
    names = [f"base_model.model.{name}.{ending}" for name in Edit.load(folders / kind).modules]
    shapes = st.lists(st.sampled_from([0, 1, 2, 8, 32, 48]), max_size=3)
    values = st.sampled_from([0.0, 0.5, -2.0, 1e30, float("nan"), float("inf")])

    def tensor(kind, shape, value):
        return torch.full(shape, value if kind.is_floating_point else 1.0).to(kind)

    tensors = st.builds(tensor, st.sampled_from(DTYPES), shapes, values)
    named = st.sampled_from([*names, names[0].removeprefix("base_model.model."), "x", f".{ending}", f"\n.{ending}"])
    drawn = draw.draw(st.dictionaries(named, tensors, max_size=4))
    folder = damaged(folders, kind, WEIGHTS, b"")
    save_file(drawn, folder / WEIGHTS)
    checked(folder)
