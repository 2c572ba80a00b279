"""What an adapter's folder may hold that neither this package nor PEFT's newest version has written."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from peft_surgical.adapters.edits import Edit, ModuleScale
from peft_surgical.adapters.export import from_ia3, to_ia3
from peft_surgical.errors import AdapterError
from peft_surgical.tuner.coordinates import Coordinates

PREFIX = "base_model.model."


def foreign(folder, tensors, **config):
    """A plain adapter as another program may write it."""
    folder.mkdir(exist_ok=True)
    names = [key.removeprefix(PREFIX).removesuffix(".ia3_l") for key in tensors]
    settings = {"peft_type": "IA3", "target_modules": names, **config}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def test_scales_without_pefts_prefix_are_read_and_each_module_s_once(tmp_path):
    scale = torch.full((1, 4), 2.0)
    assert Edit.load(foreign(tmp_path / "a", {"m.ia3_l": scale})).modules["m"].scale.tolist() == [2.0] * 4
    with pytest.raises(AdapterError, match="scales m twice"):
        Edit.load(foreign(tmp_path / "a", {"m.ia3_l": scale, f"{PREFIX}m.ia3_l": scale + 1}))
    for shape in ((2, 3), (4,), (1, 4, 1)):
        with pytest.raises(AdapterError, match="expected a linear module"):
            Edit.load(foreign(tmp_path / "a", {"m.ia3_l": torch.ones(shape)}))
    edit = Edit({"m": ModuleScale(Coordinates("input", ((0, 4),)), scale.flatten(), 4)})
    edit.save(tmp_path / "b")
    path = tmp_path / "b" / "adapter_model.safetensors"
    # As of a model that PEFT did not wrap, with the weights of a head that is scaled.
    own = {key.removeprefix(PREFIX): value for key, value in load_file(path).items()}
    save_file({**own, "m.base_layer.weight": torch.ones(2)}, path)
    found = Edit.load(tmp_path / "b")
    assert found == edit
    assert found.base_weights.keys() == {"m.weight"}


def test_a_single_scale_is_on_the_side_that_the_configuration_says(tmp_path):
    tensors = {f"{PREFIX}a.proj.ia3_l": torch.full((1, 1), 2.0)}
    for feedforward, side in ((["proj"], "input"), (["other"], "output"), (None, "output"), ("other", "output")):
        found = Edit.load(foreign(tmp_path / "a", tensors, feedforward_modules=feedforward))
        assert found.modules["a.proj"].coordinates.side == side


@pytest.mark.parametrize(
    ("key", "odd"),
    [("revision", 3), ("auto_mapping", ["Model"]), ("fan_in_fan_out", "yes"), ("task_type", "ANY")],
)
def test_what_a_configuration_cannot_say_is_named(key, odd, tmp_path):
    folder = foreign(tmp_path / "a", {"m.ia3_l": torch.ones(1, 4)}, **{key: odd})
    with pytest.raises(AdapterError, match=re.escape(f"{key} in {folder / 'adapter_config.json'} cannot be {odd!r}.")):
        Edit.load(folder)


def test_half_of_a_pair_of_surrogates_is_no_text(tmp_path):
    with pytest.raises(AdapterError, match=r"adapter_config\.json cannot be read: .*surrogates not allowed"):
        Edit.load(foreign(tmp_path / "a", {"m.ia3_l": torch.ones(1, 4)}, revision="\ud800"))


def test_an_adapter_file_without_scales_is_refused_and_a_base_without_a_name_is_none(tmp_path):
    with pytest.raises(AdapterError, match="holds no scales"):
        Edit.load(foreign(tmp_path / "none", {}))
    folder = foreign(tmp_path / "a", {"m.ia3_l": torch.ones(1, 4)}, base_model_name_or_path="")
    assert Edit.load(folder).base_model is None


def test_what_is_written_is_for_inference(tmp_path):
    edit = Edit({"m": ModuleScale(Coordinates("input", ((0, 2),)), torch.tensor([2.0, 3.0]), 4)})
    edit.save(tmp_path / "surgical"), to_ia3(edit, tmp_path / "plain")
    for kind in ("surgical", "plain"):
        assert json.loads((tmp_path / kind / "adapter_config.json").read_text())["inference_mode"] is True


def test_a_plain_adapter_is_the_same_bytes_in_whatever_order_its_modules_are_and_half_of_them_if_it_can(tmp_path):
    scale = ModuleScale(Coordinates("input", ((0, 2),)), torch.tensor([2.0, 3.0]), 4)
    files = ("adapter_config.json", "adapter_model.safetensors")
    for names in ("ab", "ba"):
        edit = Edit({f"{name}.m": scale for name in names})
        to_ia3(edit, tmp_path / names)
    edit.save(tmp_path / "surgical")
    for file in files:
        assert (tmp_path / "ab" / file).read_bytes() == (tmp_path / "ba" / file).read_bytes()
    for kind, dtype in (("ab", torch.float16), ("surgical", torch.float32)):
        config, tensors = json.loads((tmp_path / kind / files[0]).read_text()), load_file(tmp_path / kind / files[1])
        assert list(config) == sorted(config)
        assert {tensor.dtype for tensor in tensors.values()} == {dtype}


def test_the_changed_scales_of_some_coordinates_are_on_these(tmp_path):
    edit = Edit({"m": ModuleScale(Coordinates("input", ((2, 5),)), torch.tensor([1.0, 2.0, 1.0]), 8)})
    edit.save(tmp_path / "a")
    assert from_ia3(tmp_path / "a", only_changed=True).modules["m"].coordinates.ranges == ((3, 4),)
