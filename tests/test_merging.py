import copy
import json
import shutil

import pytest
import torch
from huggingface_hub import constants
from peft import LoraConfig
from safetensors.torch import load_file
from torch.testing._internal.two_tensor import TwoTensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from peft_surgical.adapters.bases import may_be_read_from
from peft_surgical.adapters.edits import Edit
from peft_surgical.errors import AdapterError, ModelError, OutputError, SelectionError
from peft_surgical.merging import _cast, _with_dtype, merge
from peft_surgical.models import load_model
from peft_surgical.tuner import SurgicalIA3Config, activate
from peft_surgical.tuner.unloading import unload
from tests.adapters import add, logits, saved, tiny_peft
from tests.tiny import FAMILIES, tiny_model

WEIGHTS = "model.safetensors"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def stages(tmp_path, family="llama", dtype=torch.float32, **config):
    model = tiny_peft(family, dtype=dtype, **config)
    add(model, "learn", **config)
    model.save_pretrained(tmp_path / "adapters")
    activate(model, ["default", "learn"])
    return [tmp_path / "adapters", tmp_path / "adapters" / "learn"], model


@pytest.mark.parametrize("granularity", ["component", "module"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_checkpoint_is_the_two_stages_and_the_model_stays_as_it_was(family, granularity, tmp_path):
    adapters, model = stages(tmp_path, family, granularity=granularity)
    base = tiny_model(family)
    before, config = copy.deepcopy(base.state_dict()), base.config.to_dict()
    merge(base, adapters, tmp_path / "merged")
    assert all(torch.equal(before[key], value) for key, value in base.state_dict().items())
    assert base.config.to_dict() == config
    assert not any(path.suffix in {".bin", ".pt"} for path in (tmp_path / "merged").iterdir())
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(logits(merged), logits(model), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(logits(merged), logits(base), atol=1e-3)


@pytest.mark.parametrize("dtype", DTYPES)
def test_merging_is_merge_and_unload_bit_for_bit(dtype, tmp_path):
    adapters, model = stages(tmp_path, dtype=dtype)
    merge(tiny_model("llama", dtype=dtype), adapters, tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").state_dict()
    unloaded = model.merge_and_unload().state_dict()
    assert merged["lm_head.weight"].dtype == dtype
    assert all(torch.equal(merged[key], value) for key, value in unloaded.items())


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_another_dtype(family, tmp_path):
    """In float32 the merged bfloat16 weights are exact products; tied embeddings are stored once."""
    adapters, _ = stages(tmp_path, family, torch.bfloat16)
    base = tiny_model(family, dtype=torch.bfloat16)
    merge(base, adapters, tmp_path / "merged", dtype="float32")
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == "float32"
    assert base.dtype == base.config.dtype == torch.bfloat16 or base.config.dtype is None
    tensors = load_file(tmp_path / "merged" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert ("lm_head.weight" in tensors) == (family == "llama")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    exact = tiny_peft(family).unload()
    exact.load_state_dict({key: value.float() for key, value in base.state_dict().items()})
    merge(exact, adapters, tmp_path / "exact")
    other = AutoModelForCausalLM.from_pretrained(tmp_path / "exact")
    assert torch.equal(logits(merged), logits(other))


def test_what_rounding_loses_is_said(tmp_path):
    model = tiny_peft(dtype=torch.bfloat16)
    for layer in model.base_model.surgical_layers():
        layer.surgical_ia3_delta["default"].data[:] = 0.003
    folder = saved(model, tmp_path / "adapter")
    base = tiny_model("llama", dtype=torch.bfloat16)
    match = r"\d+\.\d% of the weights that should change stay .* bfloat16; .* float32"
    with pytest.warns(UserWarning, match=match) as caught:
        merge(base, [folder], tmp_path / "half")
    assert [one.filename for one in caught] == [__file__]
    merge(base, [folder], tmp_path / "full", dtype=torch.float32)
    full = AutoModelForCausalLM.from_pretrained(tmp_path / "full")
    half = AutoModelForCausalLM.from_pretrained(tmp_path / "half")
    name = "model.layers.1.mlp.down_proj.weight"
    changed = [(m.get_parameter(name) != base.get_parameter(name)).float().mean() for m in (full, half)]
    assert changed[0] == 1 > changed[1] > 0


def test_what_a_smaller_dtype_rounds_away_is_said(tmp_path):
    """A float32 weight and its bfloat16 are seldom equal, so they do not tell what the edit changed."""
    model = tiny_peft()
    for layer in model.base_model.surgical_layers():
        layer.surgical_ia3_delta["default"].data[:] = 0.0003
    folder = saved(model, tmp_path / "adapter")
    base = tiny_model("llama")
    with pytest.warns(UserWarning, match=r"9\d\.\d% of the weights that should change stay .* bfloat16; .* float32"):
        merge(base, [folder], tmp_path / "half", dtype="bfloat16")
    key = "model.layers.1.mlp.down_proj.weight"
    half = load_file(tmp_path / "half" / "model.safetensors")[key]
    assert (half != base.get_parameter(key).bfloat16()).float().mean() < 0.1


def test_one_rounding_is_closer_than_two(tmp_path):
    adapters, _ = stages(tmp_path, dtype=torch.bfloat16)
    base = tiny_model("llama", dtype=torch.bfloat16)
    merge(base, adapters, tmp_path / "once")
    merge(base, adapters[:1], tmp_path / "first")
    merge(AutoModelForCausalLM.from_pretrained(tmp_path / "first"), adapters[1:], tmp_path / "twice")
    merge(base, adapters, tmp_path / "exact", dtype="float32")
    key = "model.layers.1.mlp.down_proj.weight"
    once, twice, exact = (
        load_file(tmp_path / name / "model.safetensors")[key].float() for name in ("once", "twice", "exact")
    )
    assert (once - exact).norm() < (twice - exact).norm()


def test_weights_of_a_kind_that_cannot_be_rewritten_are_refused(tmp_path):
    """As those of a model that quanto or torchao quantized after it was loaded."""
    adapters, _ = stages(tmp_path)
    model = tiny_model("llama")
    weight = model.model.layers[0].mlp.up_proj.weight.data
    model.model.layers[0].mlp.up_proj.weight = torch.nn.Parameter(TwoTensor(weight, weight), requires_grad=False)
    with pytest.raises(ModelError, match="weights of a kind that cannot be rewritten, TwoTensor; load it in bfloat16"):
        merge(model, adapters, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_weight_that_is_computed_from_others_is_refused(tmp_path):
    adapters, _ = stages(tmp_path)
    model = tiny_model("llama")
    torch.nn.utils.parametrizations.weight_norm(model.model.layers[1].mlp.down_proj)
    with pytest.raises(AdapterError, match="the weight of a ParametrizedLinear is computed from other parameters"):
        merge(model, adapters, tmp_path / "merged")


def test_layers_that_a_deleted_adapter_left_are_refused(tmp_path):
    adapter, base = saved(tiny_peft(components=["L2.mlp"]), tmp_path / "adapter"), tiny_model("llama")
    base.add_adapter(SurgicalIA3Config(components=["L1.mlp"]), "x")
    base.delete_adapter("x")
    with pytest.raises(ModelError, match=r"has layers of a deleted adapter on it; give what unload\(model\) returns"):
        merge(base, adapter, tmp_path / "merged")
    merge(unload(base), adapter, tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(logits(merged), logits(tiny_peft(components=["L2.mlp"])), atol=1e-5, rtol=1e-4)


def test_tokenizer_is_saved_beside(tmp_path):
    class Tokenizer:
        def save_pretrained(self, folder):
            (folder / "tokenizer.json").write_text("{}")

    merge(tiny_model("llama"), [saved(tiny_peft(), tmp_path / "a")], tmp_path / "merged", tokenizer=Tokenizer())
    assert (tmp_path / "merged" / "tokenizer.json").exists()


def test_refusals(tmp_path):
    folder = saved(tiny_peft(), tmp_path / "a")
    out = tmp_path / "merged"
    with pytest.raises(ModelError, match="got a PeftModel"):
        merge(tiny_peft(), [folder], out)
    with pytest.raises(ModelError, match="has adapters on it"):
        merge(tiny_peft().base_model.model, [folder], out)
    with pytest.raises(ModelError, match="float32, bfloat16 or float16, got int8"):
        merge(tiny_model("llama"), [folder], out, dtype="int8")
    with pytest.raises(SelectionError, match="no module named"):
        merge(tiny_model("gpt2"), [folder], out)
    with pytest.raises(SelectionError, match="with 48 input features; this model's has 64"):
        merge(tiny_model("llama", intermediate_size=64), [folder], out)
    with pytest.raises(AdapterError, match="nothing to multiply"):
        merge(tiny_model("llama"), [], out)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    with pytest.raises(OutputError, match="not empty"):
        merge(tiny_model("llama"), [folder], tmp_path / "full")
    with pytest.raises(OutputError, match="full holds no checkpoint, so it is not replaced"):
        merge(tiny_model("llama"), [folder], tmp_path / "full", overwrite=True)
    assert not out.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "full"]


def test_a_base_on_which_transformers_could_put_no_adapter_is_merged_into(tmp_path):
    folder, model = saved(tiny_peft(), tmp_path / "a"), tiny_model("llama")
    with pytest.raises(ValueError, match="nope"):
        model.add_adapter(LoraConfig(target_modules=["nope"]), "x")
    for base, out in ((model, "refused"), (tiny_model("llama"), "bare")):
        merge(base, [folder], tmp_path / out)
    assert (tmp_path / "refused" / WEIGHTS).read_bytes() == (tmp_path / "bare" / WEIGHTS).read_bytes()


@pytest.mark.parametrize("shard", ["50GB", "20KB"])
def test_an_earlier_checkpoint_is_replaced_whole(shard, tmp_path):
    adapters, _ = stages(tmp_path)
    tiny_model("llama").save_pretrained(tmp_path / "merged", max_shard_size=shard)
    (tmp_path / "merged" / "notes.txt").write_text("of the earlier one")
    merge(tiny_model("llama"), adapters, tmp_path / "merged", overwrite=True)
    names = sorted(path.name for path in (tmp_path / "merged").iterdir())
    told = ["README.md", "peft_surgical.json"]
    assert names == sorted(["config.json", "generation_config.json", "model.safetensors", *told])


def test_a_tied_head_is_refused(tmp_path):
    config = SurgicalIA3Config(selections={"lm_head": {"side": "input", "ranges": [[0, 4]]}}, features={"lm_head": 32})
    edit = Edit.load(saved(tiny_peft(), tmp_path / "a"))
    scale = next(iter(edit.modules.values()))
    edit = Edit({"lm_head": type(scale)(config.coordinates["lm_head"], torch.full((4,), 2.0), 32)})
    with pytest.raises(AdapterError, match=r"lm_head\.weight is tied"):
        merge(tiny_model("qwen2"), [edit], tmp_path / "merged")
    merge(tiny_model("llama"), [edit], tmp_path / "merged")


def test_one_adapter_may_be_given_alone(tmp_path):
    adapters, _ = stages(tmp_path)
    for name, given in (("alone", adapters[0]), ("listed", adapters[:1])):
        merge(tiny_model("llama"), given, tmp_path / name)
    files = [load_file(tmp_path / name / "model.safetensors") for name in ("alone", "listed")]
    assert all(torch.equal(value, files[1][key]) for key, value in files[0].items())


def test_a_weight_that_the_dtype_cannot_hold_is_refused(tmp_path):
    adapters, _ = stages(tmp_path)
    model = tiny_model("llama")
    model.model.norm.weight.data[0] = 1e5
    with pytest.raises(AdapterError, match=r"norm\.weight does not fit into float16"):
        merge(model, adapters, tmp_path / "merged", dtype="float16")
    assert not (tmp_path / "merged").exists()
    merge(model, adapters, tmp_path / "merged", dtype="bfloat16")


def test_a_weight_that_was_not_finite_before_is_no_fault_of_the_edit(tmp_path):
    adapters, _ = stages(tmp_path)
    model, key = tiny_model("llama"), "model.layers.1.mlp.down_proj.weight"
    model.get_parameter(key).data[0, 0] = torch.inf
    merge(model, adapters, tmp_path / "merged", dtype="bfloat16")
    assert load_file(tmp_path / "merged" / "model.safetensors")[key].isinf().sum() == 1


def test_the_dtype_is_noted_in_every_part_of_a_configuration():
    part = {"dtype": "float32", "torch_dtype": None, "name": "float32"}
    noted = {"dtype": "bfloat16", "torch_dtype": None, "name": "float32"}
    assert _with_dtype({**part, "text_config": part, "sizes": [1]}, torch.bfloat16) == {
        **noted,
        "text_config": noted,
        "sizes": [1],
    }


def test_a_generation_config_that_cannot_be_saved_is_refused(tmp_path):
    adapters, _ = stages(tmp_path)
    model = tiny_model("llama")
    model.generation_config.temperature = 0.6
    with pytest.raises(ModelError, match=r"^the model cannot be saved: .*temperature.*$"):
        merge(model, adapters, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_what_stands_around_a_model_is_named():
    for wrapped, words in (
        (torch.compile(tiny_model("llama"), backend="eager"), "wrapped by torch.compile"),
        (torch.nn.DataParallel(tiny_model("llama")), "wrapped by DataParallel; give what it wraps"),
        (tiny_peft(), "needs the unedited base model, got a PeftModel"),
    ):
        with pytest.raises(ModelError, match=words):
            merge(wrapped, [], "out")


def test_a_square_weight_and_its_transpose_in_the_same_memory_stay_two():
    weight = torch.arange(9.0).view(3, 3)
    cast = _cast({"one": weight, "other": weight.T, "again": weight}, torch.bfloat16)
    assert torch.equal(cast["other"].float(), weight.T)
    assert cast["again"] is cast["one"]


def load(name, **options):
    return AutoModelForCausalLM.from_pretrained(name, **options)


def test_the_base_is_never_overwritten(tmp_path, monkeypatch, model_folder):
    """By whatever name it was loaded, and wherever one is by now."""
    adapters, _ = stages(tmp_path)
    base, work = tmp_path / "bases" / "base", tmp_path / "work"
    tiny_model("llama").save_pretrained(base)
    work.mkdir()
    monkeypatch.chdir(tmp_path)
    models = [(load(name), "may be the base itself") for name in ("bases/base", "./bases/base")]
    models += [(load("bases", subfolder="base"), "may be the base itself")]
    monkeypatch.chdir(base)
    models += [(load("."), "may be the base itself")]
    monkeypatch.chdir(tmp_path)
    shutil.copytree(model_folder, base, dirs_exist_ok=True)
    models += [(load_model("bases/base")[0], "would replace .*bases/base, which is read for it")]
    for place in (work, tmp_path):
        monkeypatch.chdir(place)
        for model, words in models:
            with pytest.raises(OutputError, match=f"{words}|would replace"):
                merge(model, adapters, base, overwrite=True)
    monkeypatch.chdir(work)
    with pytest.raises(OutputError, match=models[-1][1]):
        merge(models[-1][0], adapters, base, overwrite=True)
    # A new folder loses nothing, nor does one that is known not to be the base.
    merge(models[0][0], adapters, tmp_path / "new")
    merge(models[-1][0], adapters, tmp_path / "new", overwrite=True)
    merge(load(base), adapters, tmp_path / "new", overwrite=True)
    merge(tiny_model("llama"), adapters, tmp_path / "new", overwrite=True)


def hub(cache, model_folder):
    """A hub's cache with one model."""
    commit, repository = "a" * 40, cache / "models--org--base"
    shutil.copytree(model_folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    return repository / "snapshots" / commit


def test_a_model_of_the_hub_is_in_no_folder_here(tmp_path, model_folder, monkeypatch):
    model = tiny_model("llama")
    model.config._name_or_path = model.name_or_path = "org/base"
    assert may_be_read_from(model, tmp_path)
    hub(tmp_path / "cache", model_folder)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    assert not may_be_read_from(model, tmp_path)


def beside(folder):
    """Files that programs need and that neither a model nor a tokenizer saves."""
    names = ["LICENSE", "NOTICE.txt", "preprocessor_config.json", "processor_config.json", "tokenizer.model"]
    for name in names:
        (folder / name).write_text(f"the {name}")
    (folder / "notes.md").write_text("nothing of the model's")
    return names


def test_what_stands_beside_the_weights_goes_with_them(tmp_path, model_folder, monkeypatch):
    adapters, base = stages(tmp_path)[0], tmp_path / "base"
    shutil.copytree(model_folder, base)
    names = beside(base)
    (base / "NOTICES").mkdir()
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    given = {"loaded": load_model(base)[0], "read": load(base), "bare": tiny_model("llama")}
    for name, model in given.items():
        merge(model, adapters[0], tmp_path / name, tokenizer=tokenizer)
        found = {path.name: path.read_text() for path in (tmp_path / name).iterdir() if path.name in names}
        assert found == ({} if name == "bare" else {file: f"the {file}" for file in names})
        assert not (tmp_path / name / "notes.md").exists()
        assert not (tmp_path / name / "NOTICES").exists()

    class Tokenizer:
        def save_pretrained(self, folder):
            (folder / "tokenizer.model").write_text("its own")

    merge(given["read"], adapters[0], tmp_path / "own", tokenizer=Tokenizer())
    assert (tmp_path / "own" / "tokenizer.model").read_text() == "its own"


def test_of_the_hub_it_is_taken_from_the_cache(tmp_path, model_folder, monkeypatch):
    names = beside(hub(tmp_path / "cache", model_folder))
    model = load("org/base", cache_dir=tmp_path / "cache")
    merge(model, stages(tmp_path)[0][0], tmp_path / "merged")
    assert not {path.name for path in (tmp_path / "merged").iterdir()} & {*names}
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    merge(model, stages(tmp_path)[0][0], tmp_path / "merged", overwrite=True)
    assert {path.name for path in (tmp_path / "merged").iterdir()} >= {*names}


def test_the_padding_that_a_tokenizer_was_lent_is_not_written(tmp_path, model_folder):
    adapters, base = stages(tmp_path)[0], tmp_path / "base"
    shutil.copytree(model_folder, base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(base)
    model, lent = load_model(base)
    assert lent.pad_token == lent.eos_token
    merge(model, adapters[0], tmp_path / "merged", tokenizer=lent)
    assert lent.pad_token == lent.eos_token
    written = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert (written.pad_token, written.eos_token) == (None, lent.eos_token)
    lent.pad_token = "the"
    merge(model, adapters[0], tmp_path / "chosen", tokenizer=lent)
    assert AutoTokenizer.from_pretrained(tmp_path / "chosen").pad_token == "the"


def test_what_transformers_keeps_of_a_refused_adapter_stays_on_the_model(tmp_path):
    folder, model = saved(tiny_peft(), tmp_path / "a"), tiny_model("llama")
    model._hf_peft_config_loaded = True
    merge(model, folder, tmp_path / "out")
    assert vars(model)["_hf_peft_config_loaded"]
    assert (tmp_path / "out" / "model.safetensors").exists()
